"""Stage 7 of 7: action -> environment, for many environments at once.

Gymnasium's vector environments (AutoresetMode.NEXT_STEP) reset a row in the step *after* its episode ended: that step
ignores the row's action, gives reward 0 and returns the next episode's first observation. So the policy must forget
that row on exactly that step, and the step belongs to no episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rlseq.agents import Policy
from rlseq.errors import ConfigError


@dataclass(frozen=True)
class Rollout:
    """Episodes in the order of their seeds.

    Attributes:
        seeds: (n,) the seed that each episode was reset with.
        returns: (n,) float64 undiscounted returns, raw.
        lengths: (n,) steps.
        terminated: (n,) bool; the others were truncated.
        act_seconds: time spent in `Policy.act`.
        env_seconds: time spent in the environment's step.
        calls: vector steps taken.
    """

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    act_seconds: float
    env_seconds: float
    calls: int


def rollout(
    policy: Policy, env: VectorEnv, seeds: Sequence[int], *, on_step: Callable[[int, int], None] | None = None
) -> Rollout:
    """Plays one episode for every seed, each from a reset with that seed.

    Rows take the seeds in rounds of `env.num_envs`; a round lasts until its longest episode ended, and what a row plays
    after its own episode is not counted, so short episodes are not over-represented.

    Args:
        policy: acts for as many rows as env has.
        env: a vector environment in next-step autoreset mode.
        seeds: one for every episode.
        on_step: called as on_step(episodes done, vector steps taken).

    Raises:
        ConfigError: the policy's rows and the environment's differ, or another autoreset mode.
    """
    n = env.num_envs
    if policy.num_envs != n:
        raise ConfigError(f"rollout: the policy must have a row for every environment, got {policy.num_envs} and {n}.")
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if mode != AutoresetMode.NEXT_STEP:
        raise ConfigError(
            f"rollout: the environment must reset in the next step (AutoresetMode.NEXT_STEP), got {mode}."
        )
    total = len(seeds)
    returns, lengths = np.zeros(total), np.zeros(total, np.int64)
    terminated = np.zeros(total, np.bool_)
    act_seconds, env_seconds, calls, finished = 0.0, 0.0, 0, 0
    for first in range(0, total, n):
        episode = np.arange(first, first + n)
        counts = episode < total
        padded = [int(seeds[min(first + i, total - 1)]) for i in range(n)]
        obs, _ = env.reset(seed=padded)  # type: ignore[arg-type]  # a list is allowed, the base class does not say so
        reward, start, ended = np.zeros(n), np.ones(n, np.bool_), np.zeros(n, np.bool_)
        while counts.any():
            began = time.perf_counter()
            action = policy.act(obs, reward, start)
            acted = time.perf_counter()
            obs, reward, term, trunc, _ = env.step(action)
            act_seconds, env_seconds = act_seconds + acted - began, env_seconds + time.perf_counter() - acted
            calls += 1
            live = episode[counts]
            returns[live] += reward[counts]
            lengths[live] += 1
            terminated[live] = term[counts]
            # Rows that had ended were reset by this step. Rows that end now are given an action that the environment
            # will ignore; they are marked too, so that an episode's time limit bounds the policy's timestep.
            ended, reset = term | trunc, ended
            start = reset | ended
            counts &= ~ended
            finished += int(len(live) - counts.sum())
            if on_step is not None:
                on_step(finished, calls)
    return Rollout(np.asarray(seeds), returns, lengths, terminated, act_seconds, env_seconds, calls)
