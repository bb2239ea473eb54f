"""Offline data of T-Maze: the episodes of `rlseq.envs.t_maze` as a Minari dataset."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlseq.data import minari_recorder

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def write_minari(
    dataset_id: str,
    *,
    kind: str,
    length: int | Sequence[int],
    policy: str = "expert",
    episodes: int = 1000,
    seed: int = 0,
    epsilon: float | None = None,
    turn_noise: float = 0.5,
    distribution: str = "uniform",
) -> Path:
    """Writes episodes of the optimal policy or of a noisy one as the local Minari dataset `dataset_id`.

    The dataset names its environment with its kwargs, for evaluation too. Normalized score 0 is the random policy's
    mean return, `t_maze.random_score`, 1 the optimal policy's. Actions are ints (T,), as in the environment's space.

    Args:
        dataset_id: ``namespace/name-v0``, not taken yet.
        kind: ``passive`` or ``active``.
        length: T, or a pair (low, high) to draw it from for every episode.
        policy: ``expert`` or ``noisy``.
        episodes: how many.
        seed: of the first episode; episode i has seed + i.
        epsilon: of the noisy policy, see `t_maze.trajectories`.
        turn_noise: likewise.
        distribution: of the lengths, ``uniform`` or ``log-uniform``.
    Returns:
        the dataset's folder.
    Raises:
        ConfigError: an unknown kind, policy or distribution, a number out of range, an id that is malformed or taken.
    """
    from rlseq.envs import t_maze

    played = t_maze.trajectories(
        kind,
        length,
        policy,
        episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        turn_noise=turn_noise,
        distribution=distribution,
    )
    low, high = t_maze.length_range(length)
    corridor = f"corridors of {low} cells" if low == high else f"corridors of {low} to {high} cells"
    if distribution != "uniform":
        corridor += f", {distribution}"
    noise = f" (epsilon {'by length' if epsilon is None else epsilon}, turn noise {turn_noise})"
    return minari_recorder.write(
        f"minari:{dataset_id}",
        played,
        _spec(kind, length, distribution),
        algorithm_name=f"t_maze.trajectories: {policy}{noise if policy == 'noisy' else ''}",
        description=f"{kind} T-Maze, {corridor}: {episodes} episodes of the {policy} policy, seeds from {seed}.",
        ref_min_score=t_maze.random_score(kind, length, distribution),
        ref_max_score=1.0,
        requirements=["rlseq"],
    )


def _spec(kind: str, length: int | Sequence[int], distribution: str) -> EnvSpec:
    import gymnasium

    from rlseq.envs import t_maze

    low, high = t_maze.length_range(length)
    spec = copy.deepcopy(gymnasium.spec(f"rlseq/TMaze{kind.capitalize()}-v0"))
    spec.kwargs["length"] = low if low == high else [low, high]
    if distribution != "uniform":
        spec.kwargs["distribution"] = distribution
    # The mazes keep their own limit; this one tells a reader how long an episode can be.
    spec.max_episode_steps = t_maze.episode_limit(kind, length)
    return spec
