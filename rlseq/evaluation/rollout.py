"""Stage 7 of 7: action -> environment, for many environments at once.

Which episodes count is fixed before the first step: taking those that end first would count short ones too often.
Where rows can be reset one by one, they take the seeds from a queue (`_Queue`); where not, each plays its share
(`_Quota`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlseq.agents import Policy
from rlseq.errors import ConfigError


@dataclass(frozen=True)
class Rollout:
    """Episodes in the order of their seeds.

    Attributes:
        seeds: (n,) the seed of the reset that each episode comes from: its own, or, in an environment whose rows cannot
            be reset one by one, that of all rows together.
        returns: (n,) float64 undiscounted returns, raw.
        lengths: (n,) steps.
        terminated: (n,) bool; the others were truncated.
        act_seconds: time spent in `Policy.act`.
        env_seconds: time spent in the environment's steps and resets.
        calls: vector steps taken.
        actions: every episode's actions (steps, ...), if they were recorded.
    """

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    act_seconds: float
    env_seconds: float
    calls: int
    actions: tuple[np.ndarray, ...] | None = None


def rollout(
    policy: Policy,
    env: VectorEnv,
    seeds: Sequence[int],
    *,
    record_actions: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Rollout:
    """Plays as many episodes as there are seeds; `Policy.act` is called once for every step of the environment.

    In an environment whose rows can be reset one by one (`resets_single_rows`), every seed is one episode, and a row
    whose episode ended goes on with the next seed at once. Elsewhere (Gymnasium's native CartPole), only the first
    seed is used, for the one reset of all rows; row r plays episodes r, r + num_envs, r + 2 num_envs, ..., each from
    the environment's own reset, so that the results depend on num_envs. In both ways, what a row plays beyond its
    episodes is not counted.

    Args:
        policy: acts for as many rows as env has.
        env: a vector environment that resets rows in the next step, or not at all (AutoresetMode.DISABLED).
        seeds: one for every episode.
        record_actions: keep the actions of every episode.
        on_step: called as on_step(episodes done, vector steps taken).

    Raises:
        ConfigError: the policy's rows and the environment's differ, no seeds, or same-step autoreset.
    """
    n, total = env.num_envs, len(seeds)
    if policy.num_envs != n:
        raise ConfigError(f"rollout: the policy must have a row for every environment, got {policy.num_envs} and {n}.")
    if not total:
        raise ConfigError("rollout: there must be a seed for every episode, got none.")
    if _autoreset_mode(env) == AutoresetMode.SAME_STEP:
        raise ConfigError(
            "rollout: the environment must reset in the next step or not by itself (AutoresetMode.NEXT_STEP, "
            "DISABLED), got AutoresetMode.SAME_STEP."
        )
    returns, lengths = np.zeros(total), np.zeros(total, np.int64)
    terminated = np.zeros(total, np.bool_)
    actions: list[list[np.ndarray]] = [[] for _ in range(total)]
    act_seconds, env_seconds, calls, finished = 0.0, 0.0, 0, 0
    rows = _Queue(env, seeds) if resets_single_rows(env) else _Quota(env, seeds)
    obs, reward, start = rows.first(), np.zeros(n), np.ones(n, np.bool_)
    while finished < total:
        began = time.perf_counter()
        action = policy.act(obs, reward, start)
        acted = time.perf_counter()
        obs, reward, term, trunc, _ = env.step(action)
        ended, counts = term | trunc, rows.episode < total
        live = rows.episode[counts]
        returns[live] += reward[counts]
        lengths[live] += 1
        terminated[live] = term[counts]
        finished += int((ended & counts).sum())
        calls += 1
        if record_actions:
            for episode, taken in zip(live, action[counts], strict=True):
                actions[episode].append(taken)
        obs, start = rows.next(obs, ended)
        act_seconds, env_seconds = act_seconds + acted - began, env_seconds + time.perf_counter() - acted
        if on_step is not None:
            on_step(finished, calls)
    recorded = tuple(np.stack(episode) for episode in actions) if record_actions else None
    return Rollout(rows.seeds, returns, lengths, terminated, act_seconds, env_seconds, calls, recorded)


def resets_single_rows(env: VectorEnv) -> bool:
    """Whether `env.reset(seed=[...], options={"reset_mask": mask})` resets the rows of the mask, and no others.

    True of Gymnasium's sync and async vectors, and of every vector with AutoresetMode.DISABLED: that mode asks for it.
    """
    base = env.unwrapped
    # Without shared memory, a worker of Gymnasium 1.4 in next-step mode would reset the row once more.
    shared = isinstance(base, AsyncVectorEnv) and base.shared_memory
    return _autoreset_mode(env) == AutoresetMode.DISABLED or isinstance(base, SyncVectorEnv) or shared


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    return env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)


class _Queue:
    """Rows take the seeds in order; when none is left they replay the last one, so that every row can be stepped.

    Attributes:
        seeds: (total,) of the episodes.
        episode: (n,) what every row plays in the next step; not one to count if it is `total` or more.
    """

    def __init__(self, env: VectorEnv, seeds: Sequence[int]) -> None:
        self._env, self._taken = env, env.num_envs
        self.seeds, self.episode = np.asarray(seeds), np.arange(env.num_envs)

    def first(self) -> np.ndarray:
        """The first observations."""
        return self._reset(None)

    def next(self, obs: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to act on after a step that returned obs and ended rows' episodes, and the rows where that starts."""
        if ended.any():
            last, self._taken = self._taken, self._taken + int(ended.sum())
            self.episode[ended] = np.arange(last, self._taken)
            obs = self._reset({"reset_mask": ended.copy()})
        return obs, ended

    def _reset(self, options: dict[str, np.ndarray] | None) -> np.ndarray:
        seeds = self.seeds[np.minimum(self.episode, len(self.seeds) - 1)].tolist()
        obs, _ = self._env.reset(seed=seeds, options=options)
        return obs


class _Quota:
    """Row r of n plays the episodes r, r + n, r + 2n, ...; the environment resets it in the step after each.

    That step ignores the row's action, gives reward 0 and returns the next episode's first observation: it belongs to
    no episode. The attributes are those of `_Queue`.
    """

    def __init__(self, env: VectorEnv, seeds: Sequence[int]) -> None:
        self._env, self._total = env, len(seeds)
        self.seeds, self.episode = np.full(len(seeds), seeds[0]), np.arange(env.num_envs)
        self._own, self._ended = self.episode, np.zeros(env.num_envs, np.bool_)

    def first(self) -> np.ndarray:
        """The first observations."""
        obs, _ = self._env.reset(seed=int(self.seeds[0]))
        return obs

    def next(self, obs: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to act on after a step that returned obs and ended rows' episodes, and the rows where that starts."""
        reset, self._ended = self._ended, ended
        self._own = self._own + self._env.num_envs * reset
        self.episode = np.where(ended, self._total, self._own)
        # Rows that have just ended are marked as well, so that an episode's time limit bounds the policy's timestep.
        return obs, reset | ended
