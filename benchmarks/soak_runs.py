"""What `soak.py` plays, and what it compares that with: rows of random episodes together, and each episode alone.

A scenario is a list of steps for N rows. Lone runs come in two kinds, and neither shares a line of the way that rows
are kept apart with what is soaked: `LonePasses` gives every episode as one sequence to the agent's parallel pass in
float64; `lone_steps` plays rows with a policy of one row, which is fresh at every episode's start.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from rlseq.agents import Agent, Policy
from rlseq.data import TrajectoryStore
from rlseq.types import Batch

Show = Callable[[float], None]
"""Told the share that is done, 0 to 1."""


class Step(NamedTuple):
    """What `Policy.act` takes.

    Attributes:
        obs: (N, S) float32.
        reward: (N,) float64, of the previous action; where an episode starts a number that must have no effect.
        episode_start: (N,) bool.
    """

    obs: np.ndarray
    reward: np.ndarray
    episode_start: np.ndarray


class Episode(NamedTuple):
    """Steps first to last - 1 of a row."""

    row: int
    first: int
    last: int


def scenario(store: TrajectoryStore, rows: int, steps: int, *, longest: int, seed: int = 0) -> list[Step]:
    """Random observations and rewards of a store; random episodes of 1 to `longest` steps, most of them short."""
    rng = np.random.default_rng(seed)
    start = starts(rows, steps, longest, rng)
    obs = store.obs[rng.integers(len(store.obs), size=(steps, rows))]
    reward = store.reward[rng.integers(len(store.reward), size=(steps, rows))]
    return [Step(*each) for each in zip(obs, reward, start, strict=True)]


def starts(rows: int, steps: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """(steps, N) bool. Lengths are log-uniform, besides what must be among them.

    From a quarter on all rows start at once, twice in a row; from the middle on one row after the other, step by step;
    and at three quarters the first row has as many episodes of one step as there are rows.
    """
    found = np.zeros((steps, rows), bool)
    for row in range(rows):
        first = 0
        while first < steps:
            found[first, row] = True
            first += int(np.exp(rng.uniform(0.0, np.log(longest + 1))))
    found[steps // 4 : steps // 4 + 2] = True
    waves = np.arange(min(rows, steps - steps // 2))
    found[steps // 2 + waves, waves] = True
    found[3 * steps // 4 : 3 * steps // 4 + rows, 0] = True
    return found


def targets_for(store: TrajectoryStore, steps: Sequence[Step], seed: int = 0) -> np.ndarray:
    """(T, N) another target return for every step and row, of which an episode reads the one at its start."""
    low, high = store.stats.return_min, store.stats.return_max
    return np.random.default_rng(seed).uniform(low, high, size=(len(steps), len(steps[0].reward)))


def episodes_of(steps: Sequence[Step]) -> list[Episode]:
    """All episodes, row after row."""
    start = np.stack([step.episode_start for step in steps])
    found = []
    for row in range(start.shape[1]):
        bounds = [*np.flatnonzero(start[:, row]), len(steps)]
        found += [Episode(row, int(a), int(b)) for a, b in pairwise(bounds)]
    return found


def played(
    policy: Policy, steps: Sequence[Step], targets: np.ndarray | None = None, show: Show = lambda share: None
) -> np.ndarray:
    """(T, N, A) actions of all rows together; targets (T, N) replaces the policy's target before every step."""
    actions = []
    for number, step in enumerate(steps):
        if targets is not None:
            policy.target_return = targets[number]
        actions.append(policy.act(*step))
        show((number + 1) / len(steps))
    return np.stack(actions)


def microseconds(policy: Policy, steps: Sequence[Step]) -> float:
    """Median time of `Policy.act`."""
    found = []
    for step in steps:
        began = time.perf_counter()
        policy.act(*step)
        found.append(time.perf_counter() - began)
    return 1e6 * float(np.median(found))


class LonePasses:
    """The agent's parallel pass over one episode at a time, in float64.

    The actions that the agent is shown as its past are those that the rows played: an action that is wrong is seen at
    its own step and does not hide behind what follows from it.

    Args:
        agent: it is copied.
        window: steps that window mode reads; None for recurrent mode.
        steps: what was played, N rows.
        targets: (T, N).
        actions: (T, N, A) of the rows.
    """

    def __init__(
        self, agent: Agent, window: int | None, steps: Sequence[Step], targets: np.ndarray, actions: np.ndarray
    ) -> None:
        self.agent, self.window = copy.deepcopy(agent).double().eval(), window
        self.obs = np.stack([step.obs for step in steps])
        self.reward = np.stack([step.reward for step in steps])
        self.targets, self.actions = targets, actions

    def read_all(self, episodes: Sequence[Episode], show: Show = lambda share: None) -> np.ndarray:
        """(T, N, A) actions of the lone runs of all episodes."""
        found = np.full(self.actions.shape, np.nan)
        for number, one in enumerate(episodes):
            found[one.first : one.last, one.row] = self.read([one])
            show((number + 1) / len(episodes))
        return found

    def missed(self, episodes: Sequence[Episode], most: int = 16) -> float:
        """How far actions would be off were a memory not reset: the least over some episodes, of each its largest."""
        pairs = [
            (one, other)
            for one, other in pairwise(episodes)
            if one.row == other.row and min(one.last - one.first, other.last - other.first) > 1
        ]
        chosen = [pairs[index] for index in np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(int)]
        found = [np.abs(self.read([one, other])[one.last - one.first :] - self.read([other])) for one, other in chosen]
        return min((float(each.max()) for each in found), default=0.0)

    @torch.inference_mode()
    def read(self, joined: Sequence[Episode]) -> np.ndarray:
        """(T, A) actions of episodes of a row that follow each other, read as one: only the first is told to start."""
        own = slice(joined[0].first, joined[-1].last), joined[0].row
        count, reward = joined[-1].last - joined[0].first, np.roll(self.reward[own], -1)
        return_to_go, clock = np.empty(count), np.empty(count, np.int64)
        for one in joined:
            inner = slice(one.first - joined[0].first, one.last - joined[0].first)
            return_to_go[inner] = self.targets[one.first, one.row] - np.append(0.0, np.cumsum(reward[inner])[:-1])
            clock[inner] = np.arange(one.last - one.first)
        newest = torch.arange(count)
        if self.window is None:
            oldest, index = torch.zeros(count, dtype=torch.int64), newest.unsqueeze(0)
        else:
            oldest = (newest - self.window + 1).clamp_min(0)
            index = torch.minimum(oldest.unsqueeze(1) + torch.arange(self.window), newest.unsqueeze(1))
        columns = (self.obs[own], self.actions[own], reward, return_to_go)
        begins = (index == 0) & (torch.arange(index.shape[1]) == 0)
        batch = Batch(
            *(torch.from_numpy(column).double()[index] for column in columns),
            torch.from_numpy(clock)[index],
            begins,
            torch.ones_like(begins),
        )
        prediction, _ = self.agent(self.agent.window_inputs(batch))
        actions = self.agent.to_bounds(prediction)
        return (actions[0] if self.window is None else actions[newest, newest - oldest]).numpy()


def lone_steps(
    policy: Policy, rows: Sequence[int], steps: Sequence[Step], targets: np.ndarray, show: Show = lambda share: None
) -> np.ndarray:
    """(T, len(rows), A) actions of a policy of one row, fresh at every episode's start, row after row."""
    found = []
    for place, row in enumerate(rows):
        actions = []
        for number, step in enumerate(steps):
            begins = step.episode_start[row]
            if begins:
                policy.state, policy.target_return = policy.initial_state(), targets[number, row : row + 1]
            actions.append(policy.act(step.obs[row], None if begins else step.reward[row]))
            show((place + (number + 1) / len(steps)) / len(rows))
        found.append(np.stack(actions))
    return np.stack(found, axis=1)
