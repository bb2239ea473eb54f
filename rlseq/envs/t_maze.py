"""T-Maze, passive and active (Ni et al. 2023, arXiv 2307.03864, section 4): one cue, a corridor, one turn that tells.

A row of cells with a cue in column 0 and a junction at its right end, T cells from the start. Observations are float32
(2,): [0, cue] in the cue's column with cue = +-1, [0, 0] in the corridor, [1, 0] at the junction, [1, +-1] after the
turn up or down. Actions: 0 right, 1 up, 2 left, 3 down; a step into a wall only takes time. Up or down at the junction
ends the episode (terminated), with reward 1 if the turn is the cue's, else 0; every other reward is 0.

The time limit is what the optimal policy needs: T + 1 steps in `passive`, which starts at the cue, and T + 3 in
`active`, which starts a step to its right (left, T + 1 times right, turn). At the limit the episode is truncated with
reward 0, so a single wasted step costs the reward.

Differs from the paper:

- no penalty for steps behind schedule: the reward is only the turn's
- the cue is seen whenever the agent is in its column, not only the first time
- a turn ends the episode, also in `active` before the time limit
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlseq.envs._mazes import (
    DISTRIBUTIONS,
    DOWN,
    KINDS,
    LEFT,
    RIGHT,
    UP,
    Mazes,
    Streams,
    check_actions,
    check_range,
    length_range,
    row_seeds,
)
from rlseq.envs._picture import picture
from rlseq.errors import ConfigError, ShapeError, SpaceError, UnknownNameError
from rlseq.types import Episode

__all__ = [
    "DISTRIBUTIONS",
    "KINDS",
    "POLICIES",
    "TMazeEnv",
    "TMazeVectorEnv",
    "episode_limit",
    "length_range",
    "random_score",
    "trajectories",
]

POLICIES = ("expert", "noisy")
_METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
_NOISE = np.uint64(0x6E6F697365)  # apart from the seeds of the mazes themselves


class TMazeEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One T-Maze; the module says what it is. Registered as `rlseq/TMazePassive-v0` and `rlseq/TMazeActive-v0`.

    `reset(seed=s + i)` gives the cue and the length of row i of a `TMazeVectorEnv` after `reset(seed=s)`; plain resets
    go on with the same episodes in both.

    Args:
        kind: ``passive`` or ``active``.
        length: T; a pair (low, high) draws it for every episode, both ends included.
        render_mode: ``rgb_array`` or None.
        distribution: of the lengths, ``uniform`` or ``log-uniform``: T has the probability log(1 + 1/T), normalised.
    Raises:
        ConfigError: a length below 1 or low > high, an unknown kind, render mode or distribution.
        SpaceError: `step` got an action that is none.
        gymnasium.error.ResetNeeded: `step` or `render` before a reset, `step` after the episode's end.
    """

    metadata = _METADATA

    def __init__(
        self,
        kind: str = "passive",
        length: int | Sequence[int] = 10,
        render_mode: str | None = None,
        distribution: str = "uniform",
    ) -> None:
        self._mazes = Mazes(1, kind, length, distribution=distribution)
        self.render_mode = _known_render_mode(render_mode)
        self.observation_space, self.action_space = _spaces()
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode: from `seed`, or the next one of the seed before; without any, one from `np_random`."""
        super().reset(seed=seed)
        self._mazes.begin(np.ones(1, np.bool_), *row_seeds(seed, 1), self.np_random)
        self._running = True
        return self._mazes.observe()[0], {}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One move."""
        if not self._running:
            raise ResetNeeded("step: an episode must have started and not ended, got none. Call reset.")
        if not self.action_space.contains(action):
            raise SpaceError(
                f"step: an action must be 0 (right), 1 (up), 2 (left) or 3 (down), got {action!r:.80}. Give an int."
            )
        reward, terminated, truncated = self._mazes.advance(np.array([action]))
        self._running = not (terminated[0] or truncated[0])
        return self._mazes.observe()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """(80, 240, 3) uint8, or None without a render mode."""
        frames = _frames(self._mazes, self.render_mode)
        return None if frames is None else frames[0]


class TMazeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Rows of T-Mazes stepped as arrays: thousands cost little more than one.

    Row i plays what a `TMazeEnv` plays that gets its seeds and actions, in either autoreset mode.

    Args:
        num_envs: rows.
        kind: ``passive`` or ``active``.
        length: T; a pair (low, high) draws it for every episode, both ends included.
        render_mode: ``rgb_array`` or None.
        autoreset_mode: ``NextStep`` (the step after an episode's end ignores the row's action and returns the next
            episode's first observation with reward 0) or ``Disabled`` (reset ended rows with
            ``options={"reset_mask": mask}``); an `AutoresetMode` is taken too.
        max_episode_steps: a lower time limit, which `gymnasium.make_vec` passes where a spec has one.
        distribution: of the lengths, ``uniform`` or ``log-uniform``.
    Raises:
        ConfigError: a number out of range, an unknown kind, render mode, autoreset mode or distribution.
        ShapeError: actions, seeds or a mask that are not one a row.
        SpaceError: an action that is none.
        gymnasium.error.ResetNeeded: `step` before a reset, or with rows that ended in the mode ``Disabled``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        kind: str = "passive",
        length: int | Sequence[int] = 10,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        distribution: str = "uniform",
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"TMazeVectorEnv: num_envs must be >= 1, got {num_envs}. Give a larger one.")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(f"TMazeVectorEnv: max_episode_steps must be >= 1, got {max_episode_steps}. Leave it out.")
        self.num_envs = num_envs
        self._mazes = Mazes(num_envs, kind, length, max_episode_steps, distribution)
        self._mode = _known_autoreset_mode(autoreset_mode)
        self.metadata = {**_METADATA, "autoreset_mode": self._mode}
        self.render_mode = _known_render_mode(render_mode)
        self.single_observation_space, self.single_action_space = _spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, np.bool_)
        self._started = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | np.ndarray | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in every row, or in those of ``options["reset_mask"]``, (num_envs,) bool.

        Args:
            seed: row i starts from seed + i, or from entry i of a list or array; None, also as an entry, goes on with
                the row's stream of episodes.
            options: only the mask is read.
        Returns:
            the observations of all rows, and an empty dictionary.
        """
        chosen = self._chosen(options)
        given, seeds = row_seeds(seed, self.num_envs)
        super().reset(seed=int(seed) if isinstance(seed, int | np.integer) else None)
        self._mazes.begin(chosen, given, seeds, self.np_random)
        self._ended[chosen] = False
        self._started = True
        return self._mazes.observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One move of every row; rows that ended in the step before start their next episode instead."""
        if not self._started:
            raise ResetNeeded("step: the rows must have started, got none that has. Call reset.")
        actions = check_actions(actions, self.num_envs)
        ended = np.flatnonzero(self._ended)
        if len(ended):
            if self._mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    f"step: rows must not have ended in the autoreset mode Disabled, got {len(ended)} that have, row "
                    f"{ended[0]} first. Reset them with options={{'reset_mask': terminated | truncated}}."
                )
            actions = np.where(self._ended, RIGHT, actions)
        check_range(actions)
        reward, terminated, truncated = self._mazes.advance(actions)
        if len(ended):
            self._mazes.restart(ended)
            reward[ended], terminated[ended], truncated[ended] = 0.0, False, False
        self._ended = terminated | truncated
        return self._mazes.observe(), reward, terminated, truncated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of every row, (80, 240, 3) uint8 each, or None without a render mode."""
        return _frames(self._mazes, self.render_mode)

    def _chosen(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            got = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ShapeError(f"reset: reset_mask must be a bool array of shape ({self.num_envs},), got {got}.")
        if not mask.any() or not (self._started or mask.all()):
            raise ConfigError(
                f"reset: reset_mask must choose a row, and all of them in the first reset, got {mask.sum()} of "
                f"{self.num_envs}. Choose more."
            )
        return mask


def random_score(kind: str, length: int | Sequence[int], distribution: str = "uniform") -> float:
    """Mean return of uniformly random actions, in closed form, averaged over the lengths as they are drawn.

    passive: p^(T+1); active: p^(T+1) (1 + (2T+1) p + (2T+1)(T+2) p^2), with p = 1/4.

    In `passive` only T times right and the right turn do it. In `active` the cue need not be seen, so two steps may be
    wasted on the way: none (1 way), one (2T ways in the corridor's T cells, 1 at the junction), or two, of which
    (2T+1)(T+2) - (T+1) ways stand still twice and T+1 step back once.

    Raises:
        ConfigError: an unknown kind or distribution, or a length out of range.
    """
    active = bool(Mazes(1, kind, length, distribution=distribution).start)
    low, high = length_range(length)
    p, T = 0.25, np.arange(low, min(high, low + 600) + 1, dtype=np.float64)  # p^600 is 0 in float64
    scores = p ** (T + 1)
    if active:
        scores *= 1 + (2 * T + 1) * p + (2 * T + 1) * (T + 2) * p**2
    if distribution == "log-uniform":
        return float((scores * np.log1p(1 / T)).sum() / np.log((high + 1) / low))
    return float(scores.sum() / (high - low + 1))


def episode_limit(kind: str, length: int | Sequence[int]) -> int:
    """Time limit of the longest corridor, in steps: T + 1 (passive) or T + 3 (active).

    Raises:
        ConfigError: an unknown kind, or a length out of range.
    """
    mazes = Mazes(1, kind, length)
    return mazes.high + 1 + 2 * mazes.start


def trajectories(
    kind: str,
    length: int | Sequence[int],
    policy: str = "expert",
    *,
    episodes: int,
    seed: int = 0,
    epsilon: float | None = None,
    turn_noise: float = 0.5,
    distribution: str = "uniform",
) -> Iterator[Episode]:
    """Episodes of the optimal policy, or of a noisy one; episode i is a `TMazeEnv`'s after `reset(seed=seed + i)`.

    The optimal policy fetches the cue, walks to the junction and turns: return 1. The noisy one takes, in every step
    in the corridor, one of the four actions at random with probability `epsilon`; unless chance draws the right one
    each time, the episode runs into the time limit and returns 0. Its turn is drawn from up and down with probability
    `turn_noise`. With the defaults half of the walks arrive in time and three quarters of their turns are right: the
    mean return is 0.375.

    Args:
        kind: ``passive`` or ``active``.
        length: T, or a pair (low, high) to draw it from for every episode.
        policy: ``expert`` or ``noisy``.
        episodes: how many.
        seed: of the first episode; noise comes from the same seeds.
        epsilon: in [0, 1]; None lets half of the walks of any length arrive: 3/4 epsilon = 1 - 2^(-1/steps).
        turn_noise: in [0, 1].
        distribution: of the lengths, ``uniform`` or ``log-uniform``, which has more turns among its steps.
    Raises:
        ConfigError: an unknown kind, policy or distribution, a number out of range.
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy for T-Maze", str(policy), POLICIES)
    if episodes < 1 or not 0 <= seed <= 2**64 - episodes:
        raise ConfigError(
            f"trajectories: episodes must be >= 1 and the seeds of all in [0, 2^64), got {episodes} and {seed}."
        )
    for name, value in (("epsilon", 0.0 if epsilon is None else epsilon), ("turn_noise", turn_noise)):
        if not 0 <= value <= 1:
            raise ConfigError(f"trajectories: {name} must be in [0, 1], got {value}. It is a probability.")
    Mazes(1, kind, length, distribution=distribution)  # what is wrong shows now, not at the first episode
    rows = max(1, min(256, 2**22 // episode_limit(kind, length)))  # about 100 MB at a time
    noise = (epsilon, turn_noise) if policy == "noisy" else None
    counts = ((first, min(rows, episodes - first)) for first in range(0, episodes, rows))
    mazes = ((first, Mazes(n, kind, length, distribution=distribution)) for first, n in counts)
    return (episode for first, several in mazes for episode in _played(several, seed + first, noise))


def _played(mazes: Mazes, seed: int, noise: tuple[float | None, float] | None) -> Iterator[Episode]:
    n = len(mazes.x)
    every, (given, seeds) = slice(None), row_seeds(seed, n)
    dice = Streams(n)
    mazes.begin(given, given, seeds, np.random.default_rng(0))
    dice.seed(every, seeds ^ _NOISE)
    steps = int(mazes.limit.max())
    obs, action = np.empty((steps + 1, n, 2), np.float32), np.empty((steps, n), np.int64)
    reward, seen = np.empty((steps, n)), np.zeros(n, np.bool_)
    lengths, terminated = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    if noise is not None:
        epsilon, turn_noise = noise
        slip = (1 - 0.5 ** (1 / (mazes.limit - 1))) / 0.75 if epsilon is None else epsilon
    obs[0] = mazes.observe()
    for t in range(steps):
        seen |= mazes.x == 0
        at_junction = mazes.x == mazes.junction
        turn, walk = mazes.cue, np.where(seen, RIGHT, LEFT)
        if noise is not None:
            walk = np.where((dice.uniform(every) < slip) & ~at_junction, dice.below(every, 4), walk)
            turn = np.where(dice.uniform(every) < turn_noise, 1 - 2 * dice.below(every, 2), turn)
        action[t] = np.where(at_junction & seen, np.where(turn > 0, UP, DOWN), walk)
        reward[t], turned, cut = mazes.advance(action[t])
        obs[t + 1] = mazes.observe()
        first_end = (turned | cut) & (lengths == 0)
        lengths[first_end] = t + 1
        terminated |= first_end & turned
    for i, end in enumerate(lengths.tolist()):
        ended = bool(terminated[i])
        yield Episode(
            obs[: end + 1, i].copy(), action[:end, i].copy(), reward[:end, i].copy(), ended, not ended, seed + i
        )


def _spaces() -> tuple[spaces.Box, spaces.Discrete]:
    return spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(4)


def _known_render_mode(mode: str | None) -> str | None:
    if mode is not None and mode not in _METADATA["render_modes"]:
        raise UnknownNameError("render mode", str(mode), ["rgb_array"])
    return mode


def _known_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    known = {one.value: one for one in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)}
    name = mode.value if isinstance(mode, AutoresetMode) else mode
    if name not in known:
        raise UnknownNameError("autoreset mode", str(name), known)
    return known[name]


def _frames(mazes: Mazes, render_mode: str | None) -> tuple[np.ndarray, ...] | None:
    if render_mode is None:
        return None
    if not mazes.junction.all():
        raise ResetNeeded("render: an episode must have started, got none. Call reset.")
    columns = (mazes.x, mazes.y, mazes.cue, mazes.junction)
    return tuple(picture(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
