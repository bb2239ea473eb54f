"""Scores of a policy in an environment: raw returns, and normalized ones where the dataset has reference scores.

normalized_score = (return - ref_min) / (ref_max - ref_min)          (D4RL, Fu et al. 2020, arXiv 2004.07219, section 4)
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rlseq import envs
from rlseq.agents import Agent
from rlseq.errors import ConfigError
from rlseq.evaluation.rollout import rollout
from rlseq.evaluation.video import check_video, record_videos
from rlseq.progress import ProgressBar
from rlseq.types import DatasetInfo


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; `as_dict` is what ``rlseq eval --json`` prints and ``result.json`` holds.

    Attributes:
        env_id: Gymnasium id.
        mode: recurrent or window.
        target_return: raw return that was asked for.
        seeds: reset seed of every episode.
        returns: raw undiscounted return of every episode.
        lengths: steps of every episode.
        normalized_scores: fractions, an episode each; None where the dataset has no reference scores.
        act_us: microseconds of `Policy.act` a call, all rows together.
        env_us: microseconds of the environment a call, all rows together.
        num_envs: rows that a call acted for.
        state_bytes: bytes that one environment's state occupies.
        vectorization: sync, async or native.
        engine: what ran the steps.
        videos: the files written.
    """

    env_id: str
    mode: str
    target_return: float
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    normalized_scores: list[float] | None
    act_us: float
    env_us: float
    num_envs: int
    state_bytes: int
    vectorization: str = "sync"
    engine: str = "eager"
    videos: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values with means and standard deviations beside the episodes."""
        figures: dict[str, Any] = {
            "episodes": len(self.returns),
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "return_min": float(np.min(self.returns)),
            "return_max": float(np.max(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
            "normalized_score": None if self.normalized_scores is None else float(np.mean(self.normalized_scores)),
        }
        return {**asdict(self), **figures}


def normalized_score(returns: np.ndarray, info: DatasetInfo) -> np.ndarray | None:
    """Fractions (n,) of raw returns (n,); None where the dataset has no reference scores."""
    return info.normalized_score(returns)


def evaluate(
    agent: Agent,
    env_id: str | None = None,
    *,
    episodes: int = 10,
    target_return: float | None = None,
    seed: int = 0,
    mode: str = "recurrent",
    num_envs: int | None = None,
    vectorization: envs.Vectorization = "sync",
    engine: str = "eager",
    video: Path | str | None = None,
    progress: bool = False,
) -> Scores:
    """Rolls an agent out and scores it.

    Args:
        agent: a trained agent.
        env_id: Gymnasium id; the dataset's own if None.
        episodes: how many; episode i is reset with seed + i. A native vector whose rows cannot be reset one by one uses
            the first seed only (`rollout`).
        target_return: raw return to ask for; the agent's default if None.
        seed: of the first episode.
        mode: recurrent or window.
        num_envs: environments side by side; `episodes`, at most 16, if None.
        vectorization: how they are run: sync, async (a process each) or native, see `rlseq.envs.make`.
        engine: what runs the agent's steps: eager, compiled or onnx, see `rlseq.agents.engines`.
        video: folder for mp4 files of the best, the median and the worst episode; see `record_videos`.
        progress: show progress bars.

    Raises:
        ConfigError: no environment is known, a number out of range, or no video can be made.
        SpaceError: the environment's spaces do not fit the agent.
        UnknownNameError: Gymnasium has no such environment, or there is no such engine.
        RunError: video is no place to write to, or a replayed episode differs from the played one.
    """
    if episodes < 1 or seed < 0:
        raise ConfigError(f"evaluate: episodes must be >= 1 and seed >= 0, got {episodes} and {seed}.")
    rows = min(episodes, 16) if num_envs is None else num_envs
    info = agent.info if env_id is None else replace(agent.info, env_id=env_id, env_kwargs={})
    env = _vector(info, rows, vectorization)
    try:
        policy = agent.policy(rows, target_return=target_return, mode=mode, engine=engine)
        if video is not None:
            check_video(info, env, Path(video))
        limit = agent.info.max_episode_steps
        total = None if limit is None else (limit + 1) * -(-episodes // rows)
        with ProgressBar(f"{mode} rollout", total, quiet=not progress) as bar:
            played = rollout(
                policy,
                env,
                [seed + i for i in range(episodes)],
                record_actions=video is not None,
                on_step=lambda done, calls: bar.update(calls, f"{done}/{episodes} episodes"),
            )
    finally:
        env.close()
    target = float(policy.target_return[0])
    videos: list[Path] = []
    if video is not None:
        videos = record_videos(info, played, Path(video), f"{mode}-{target:g}", progress=progress)
    scores = normalized_score(played.returns, agent.info)
    return Scores(
        env_id=str(info.env_id),
        mode=mode,
        target_return=target,
        seeds=played.seeds.tolist(),
        returns=played.returns.tolist(),
        lengths=played.lengths.tolist(),
        normalized_scores=None if scores is None else scores.tolist(),
        act_us=1e6 * played.act_seconds / played.calls,
        env_us=1e6 * played.env_seconds / played.calls,
        num_envs=rows,
        state_bytes=policy.state_bytes,
        vectorization=vectorization,
        engine=engine,
        videos=[str(path) for path in videos],
    )


def _vector(info: DatasetInfo, rows: int, vectorization: envs.Vectorization) -> VectorEnv:
    """With rows that can be reset one by one; a native vector that cannot has its own way, and `rollout` follows it."""
    asked = functools.partial(envs.make_for, info, rows, vectorization=vectorization)
    if vectorization == "native":
        if info.env_id is None or not envs.takes_autoreset_mode(info.env_id):
            return asked()
        with contextlib.suppress(ConfigError):  # the argument alone does not promise this mode
            return asked(autoreset_mode=AutoresetMode.DISABLED)
        return asked()
    return asked(autoreset_mode=AutoresetMode.DISABLED)
