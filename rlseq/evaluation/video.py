"""Videos of played episodes: each is replayed from its seed with the actions that were recorded, and drawn.

Acting once more would not do: in a batch of other rows an action's last bits differ, and an episode follows them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rlseq import envs
from rlseq.errors import ConfigError, RunError
from rlseq.evaluation.rollout import Rollout, resets_single_rows
from rlseq.progress import ProgressBar
from rlseq.types import DatasetInfo

DEFAULT_FPS = 30


def check_video(info: DatasetInfo, env: VectorEnv, folder: Path) -> None:
    """Finds out before a rollout in `env` whether videos of its episodes can be made in `folder`; writes nothing.

    Raises:
        ConfigError: moviepy is missing, the environment cannot draw, or its episodes have no seeds of their own.
        RunError: the folder is no place to write to.
    """
    _load_save_video()
    if not resets_single_rows(env):
        raise ConfigError(
            f"evaluate: a video needs episodes with a seed each, got the native vector of {info.env_id!r}, whose rows "
            f"cannot be reset one by one. Give vectorization sync or async, or no video."
        )
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"evaluate: video must be a folder to write to, got {folder}. Give another one.")
    envs.make_rendering(str(info.env_id), **info.env_kwargs).close()


def record_videos(
    info: DatasetInfo, played: Rollout, folder: Path, prefix: str, *, progress: bool = False
) -> list[Path]:
    """Writes ``PREFIX-best-seedS-returnR.mp4`` and likewise median and worst; an episode that is two of them once.

    Of an even number of episodes the upper of the two in the middle is the median. All frames of one episode are in
    memory until its file is written. The files appear when all are whole, and replace those of the same names.

    Args:
        info: names the environment.
        played: with `actions`, from an environment whose episodes have a seed each.
        folder: made if it does not exist.
        prefix: of the names.
        progress: show a progress bar.

    Raises:
        ConfigError: see `check_video`.
        RunError: an episode's replay has another length or return: the environment is not deterministic.
    """
    save_video = _load_save_video()
    order, chosen = np.argsort(-played.returns, kind="stable").tolist(), dict[int, str]()
    for rank, place in (("best", 0), ("worst", -1), ("median", (len(order) - 1) // 2)):
        chosen.setdefault(order[place], rank)
    total, done = sum(int(played.lengths[episode]) for episode in chosen), 0
    files: dict[Path, Path] = {}
    with (
        tempfile.TemporaryDirectory(prefix=".rlseq-video-", dir=_existing_parent(folder)) as unfinished,
        ProgressBar(f"{prefix} videos", total, quiet=not progress) as bar,
        closing(envs.make_rendering(str(info.env_id), **info.env_kwargs)) as env,
    ):
        fps = env.metadata.get("render_fps") or DEFAULT_FPS
        for episode, rank in chosen.items():
            frames = []
            for frame in _replay(env, played, episode):
                frames.append(frame)
                bar.update(done + len(frames) - 1, rank)
            done += len(frames) - 1
            # The last frame once more: moviepy 2 rounds a clip's frames down, and would leave the last step out.
            save_video([*frames, frames[-1]], unfinished, episode_trigger=lambda _: True, name_prefix=rank, fps=fps)
            name = f"{prefix}-{rank}-seed{played.seeds[episode]}-return{played.returns[episode]:.0f}.mp4"
            files[Path(unfinished) / f"{rank}-episode-0.mp4"] = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for whole, file in files.items():
            whole.replace(file)
    return list(files.values())


def _replay(env: gymnasium.Env[Any, Any], played: Rollout, episode: int) -> Iterator[np.ndarray]:
    """The frames of an episode: the first observation's, then one after every step."""
    assert played.actions is not None
    seed, length, wanted = int(played.seeds[episode]), int(played.lengths[episode]), float(played.returns[episode])
    env.reset(seed=seed)
    yield env.render()  # type: ignore[misc]  # an array, as `make_rendering` found
    steps, found, ended = 0, 0.0, False
    for action in played.actions[episode]:
        if ended:
            break
        _, reward, terminated, truncated, _ = env.step(action)
        steps, found, ended = steps + 1, found + float(reward), terminated or truncated
        yield env.render()  # type: ignore[misc]
    # Equal but for a native vector's rewards, which may be float32.
    if not ended or steps != length or not math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-6):
        raise RunError(
            f"record_videos: the replay of seed {seed} with the recorded actions must be the episode again, {length} "
            f"steps and return {wanted:.6g}, got {steps} steps{'' if ended else ' without an end'} and {found:.6g}. "
            f"{env.spec.id if env.spec else env} is not deterministic: leave the video out."
        )


def _load_save_video() -> Callable[..., None]:
    try:
        from gymnasium.utils.save_video import save_video
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ConfigError(
            'evaluate: a video needs moviepy, which is not installed. Install it: pip install "rlseq[video]"'
        ) from error
    return save_video


def _existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
