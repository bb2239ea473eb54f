"""What ``rlseq bench acting`` times: one acting step of rlseq's agents, with every engine and in both modes.

Untrained agents of one size, 3 layers of width 128, with Hopper's 11 observations and 3 actions: what is computed does
not depend on the weights' values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from rlseq.agents import Agent, DecisionTransformer, Policy
from rlseq.agents.engines import build
from rlseq.agents.engines.onnx import Onnx, graph
from rlseq.errors import ConfigError
from rlseq.types import DatasetInfo, DatasetStats

OBS_SIZE, ACTION_SIZE = 11, 3
WIDTH, DEPTH = 128, 3
TARGET_RETURN = 3000.0
POOL = 1024
OBS = np.random.default_rng(0).normal(size=(POOL, OBS_SIZE)).astype(np.float32)
"""Observations of the benchmark's episodes: step t of every row sees entry t mod 1,024. The reward is 0."""
CHECKED = 8
"""Steps before a contender is timed, in which what reads in parallel is held against what carries a state."""
SAME = 1e-5
"""Largest difference of a step's action, in [-1, 1], from the one read in parallel."""


class Actor(Protocol):
    """What acts for a fixed number of rows."""

    @property
    def state_bytes(self) -> int:
        """Bytes that one row's state occupies at present."""
        ...

    def act(self, obs: np.ndarray, reward: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """(N, S), (N,), (N,) -> (N, A); moves the state on."""
        ...


@dataclass(frozen=True)
class Contender:
    """One thing to time.

    Attributes:
        name: the backbone's, or the rival's.
        mode: recurrent, window or cache.
        window: environment steps that are read again at every step; None where none are.
        engine: what runs the step.
        make: rows -> an actor in the middle of an episode, its window full.
        agent: of a recurrent one, for a run in float64; None else.
        tokens: "joint" where the backbone usually has several tokens a step, and here has one; None else.
    """

    name: str
    mode: str
    window: int | None
    engine: str
    make: Callable[[int], Actor]
    agent: Agent | None = None
    tokens: str | None = None

    @property
    def label(self) -> str:
        """What a line of a picture is called."""
        words = (self.name, self.tokens, self.mode, None if self.window is None else f"K={self.window}")
        return " ".join(filter(None, words))

    def facts(self) -> dict[str, Any]:
        """What a row of figures says about it."""
        own = ("name", "tokens", "mode", "window", "engine", "label")
        return {field: getattr(self, field) for field in own}


def agent_of(name: str, window: int | None = None, tokens: str = "auto") -> Agent:
    """The agent of a backbone with its usual tokens and window, without a timestep table: an episode has no end."""
    ones, bound = np.ones(OBS_SIZE, np.float32), np.ones(ACTION_SIZE, np.float32)
    info = DatasetInfo("bench", None, OBS_SIZE, -bound, bound, None, None, None)
    stats = DatasetStats(
        episodes=1,
        steps=1000,
        return_mean=TARGET_RETURN,
        return_std=0.0,
        return_min=TARGET_RETURN,
        return_max=TARGET_RETURN,
        return_to_go_std=1000.0,
        return_to_go_min=0.0,
        return_to_go_max=TARGET_RETURN,
        length_mean=1000.0,
        length_min=1000,
        length_max=1000,
        obs_mean=0 * ones,
        obs_std=ones,
    )
    torch.manual_seed(0)
    agent = DecisionTransformer.for_data(
        SimpleNamespace(info=info, stats=stats),
        name,
        window=window,
        backbone_options={"width": WIDTH, "depth": DEPTH},
        timestep_embedding=False,
        tokens=tokens,
    )
    return agent.eval()


def carried(name: str, engine: str) -> list[Contender]:
    """A backbone that carries its state, with its usual tokens, and with one a step where it usually has more."""
    usual = recurrent(name, engine)
    several = isinstance(usual.agent, DecisionTransformer) and usual.agent.tokens.per_step > 1
    return [usual, recurrent(name, engine, "joint")] if several else [usual]


def recurrent(name: str, engine: str, tokens: str | None = None) -> Contender:
    """A backbone that carries its state; tokens as in `Contender`."""
    agent = agent_of(name, tokens=tokens or "auto")
    graphs: list[bytes] = []

    def make(rows: int) -> Policy:
        step = agent.acting_step("recurrent", None)
        if engine == "onnx":
            if not graphs:  # one does for any number of rows
                graphs.append(graph(step, {}))
            made: Any = Onnx(graphs[0], rows)
        else:
            made = build(engine, step, rows)
        policy = Policy(made, rows, target_return=None)
        _check(policy, agent.policy(rows, mode="window", window=CHECKED), f"{name} with engine {engine}")
        return policy

    return Contender(name, "recurrent", None, engine, make, agent, tokens)


def window(name: str, steps: int) -> Contender:
    """A backbone that reads the last `steps` steps again at every step, eagerly."""
    agent = agent_of(name, steps)

    def make(rows: int) -> Policy:
        policy = agent.policy(rows, mode="window")
        if rows == 1:
            # no further: a carried state has heard of what the window has lost
            _check(policy, agent.policy(1), f"{name} with a window of {steps}", min(steps, CHECKED))
        policy.state = _full(policy, steps)
        return policy

    return Contender(name, "window", steps, "eager", make)


def _full(policy: Policy, steps: int) -> Any:
    """Window mode's state when all `steps` have been seen: to play them would take a multiple of the measurement."""
    state = policy.initial_state()
    seen = torch.from_numpy(OBS[np.arange(steps) % POOL]).expand(policy.num_envs, -1, -1)
    history = state.memory._replace(
        obs=seen.contiguous(),
        return_to_go=torch.full_like(state.memory.return_to_go, TARGET_RETURN),
        timestep=torch.arange(steps).repeat(policy.num_envs, 1),
        length=torch.full_like(state.memory.length, steps),
    )
    clock = torch.full_like(state.timestep, steps - 1)
    target = torch.full_like(state.return_to_go, TARGET_RETURN)
    return state._replace(memory=history, return_to_go=target, timestep=clock)


def _check(policy: Policy, reference: Policy, name: str, steps: int = CHECKED) -> None:
    """Refuses to time what does not act as the reference does, over some steps of all rows."""
    start, reward = np.zeros(policy.num_envs, np.bool_), np.zeros(policy.num_envs)
    for step in range(steps):
        rows = np.tile(OBS[step], (policy.num_envs, 1))
        start[:] = step == 0
        start[0] = step in (0, 5)  # a row that starts over alone
        both = [one.act(rows, reward, start) for one in (policy, reference)]
        difference = float(np.abs(both[0] - both[1]).max())
        if not difference <= SAME:
            raise ConfigError(
                f"bench: {name} must act as the parallel pass does within {SAME}, got {difference:.2g} at step {step}. "
                "It is not timed."
            )
