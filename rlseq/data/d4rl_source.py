"""Stage 1 of 7: D4RL's flat HDF5 (a file, an id, or a dictionary) -> `DatasetInfo` and an iterator of `Trajectory`.

Differs from the d4rl package: the last, unfinished episode is kept, as truncated; files without ``timeouts`` are split
by the step count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlseq.data._checks import bounds_from_actions, check_equal_lengths, real_array, score_range
from rlseq.data._d4rl_table import TABLE
from rlseq.data._download import download
from rlseq.errors import DataError, UnknownNameError
from rlseq.types import DatasetInfo, Trajectory

_REQUIRED = ("observations", "actions", "rewards", "terminals")


def cache_folder() -> Path:
    """Where D4RL files are kept: $D4RL_DATASET_DIR or ~/.d4rl/datasets, d4rl's own rule."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def open_id(dataset_id: str) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    """A dataset of D4RL by its id, such as ``hopper-medium-expert-v2``; downloaded once into the cache.

    Raises:
        UnknownNameError: no id of D4RL.
        DataError: the download failed (what came stays, and the next call goes on from there), or see `read_file`.
    """
    if dataset_id not in TABLE:
        raise UnknownNameError("D4RL dataset", dataset_id, TABLE)
    entry = TABLE[dataset_id]
    path = cache_folder() / entry.file_name
    if not path.is_file():
        download(entry.url, path)
    return read_file(path, f"d4rl:{dataset_id}")


def read_file(path: Path, name: str) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    """A file of D4RL's layout; the keys of version 2 that rlseq does not need are not read.

    ``metadata/env``, ``metadata/ref_min_score`` and ``metadata/ref_max_score`` are used where present, then D4RL's
    table if `name` is ``d4rl:`` and an id of D4RL.

    Raises:
        DataError: no HDF5 file, a truncated one, or see `from_dict`; one line with file and key.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"open_dataset: {path} must be a D4RL HDF5 file, got no such file. Check the path.")
    arrays: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            metadata = {key: file["metadata"][key][()] for key in _metadata_keys(file)}
            for key in (*_REQUIRED, "timeouts"):
                if key in file and isinstance(file[key], h5py.Dataset):
                    arrays[key] = file[key][()]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"open_dataset: {path} must be a whole HDF5 file, got {reason}. Download it again.") from error
    return from_dict(arrays, name, metadata=metadata, where=str(path))


def from_dict(
    data: Mapping[str, Any], name: str, *, metadata: Mapping[str, Any] | None = None, where: str | None = None
) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    """A dictionary as from d4rl's ``env.get_dataset()``.

    Args:
        data: observations (N, S), actions (N, A), rewards (N,) or (N, 1), terminals and, where known, timeouts, (N,)
            or (N, 1); other keys are ignored. An episode ends at a terminal or a timeout; without timeouts also when
            it reaches the environment's time limit. The last episode is kept, as truncated, if nothing ends it.
        name: id that DatasetInfo gets; ``d4rl:`` and an id of D4RL brings that dataset's environment and scores.
        metadata: env, ref_min_score, ref_max_score, as in a file's ``metadata``: they come before D4RL's table.
        where: what messages call the data; `name` by default.
    Raises:
        DataError: a missing key, a wrong rank, NaN or infinity, unequal lengths, no step, reference scores that are
            none (see `score_range`); one line naming the key.
    """
    where = where or name
    missing = [key for key in _REQUIRED if key not in data]
    if missing:
        raise DataError(f"open_dataset: {where} must hold {', '.join(_REQUIRED)}, got no {', '.join(missing)}. Add it.")
    ends = [key for key in ("terminals", "timeouts") if key in data]
    columns = {key: real_array(where, key, data[key], np.float32, 2) for key in ("observations", "actions")}
    columns["rewards"] = real_array(where, "rewards", _flat(data["rewards"]), np.float64, 1)
    columns |= {key: real_array(where, key, _flat(data[key]), bool, 1) for key in ends}
    check_equal_lengths(where, {key: len(column) for key, column in columns.items()})
    if not len(columns["rewards"]):
        raise DataError(f"open_dataset: {where} must hold at least one step, got none. Download or record it again.")
    info = _info(name, where, metadata or {}, columns)
    return info, _trajectories(columns, info.max_episode_steps)


def episode_ends(terminal: np.ndarray, timeout: np.ndarray | None, max_steps: int | None) -> np.ndarray:
    """(n,) rows that are the last of their episode; the final row always is.

    Args:
        terminal: (N,) bool.
        timeout: (N,) bool; None splits by the step count.
        max_steps: time limit that the step count is held against; None splits at terminals alone.
    """
    last = terminal.copy() if timeout is None else terminal | timeout
    if timeout is None and max_steps is not None:
        starts = np.concatenate([[0], np.flatnonzero(terminal[:-1]) + 1])
        step = np.arange(len(terminal)) - np.repeat(starts, np.diff(starts, append=len(terminal)))
        last |= (step + 1) % max_steps == 0
    last[-1] = True
    return np.flatnonzero(last)


def _trajectories(columns: dict[str, np.ndarray], max_steps: int | None) -> Iterator[Trajectory]:
    terminal, timeout = columns["terminals"], columns.get("timeouts")
    ends = episode_ends(terminal, timeout, max_steps)
    start = 0
    for end in ends.tolist():
        rows = slice(start, end + 1)
        terminated = bool(terminal[end])
        truncated = not terminated if timeout is None else bool(timeout[end]) or not terminated
        yield Trajectory(
            columns["observations"][rows], columns["actions"][rows], columns["rewards"][rows], terminated, truncated
        )
        start = end + 1


def _info(name: str, where: str, metadata: Mapping[str, Any], columns: dict[str, np.ndarray]) -> DatasetInfo:
    entry = TABLE.get(name.removeprefix("d4rl:"))
    env_id = entry.env_id if entry else None
    if "env" in metadata:
        env_id = _text(metadata["env"])
    scores = score_range(where, metadata) or (entry.scores if entry else (None, None))
    action = columns["actions"]
    # Every environment of D4RL acts in [-1, 1]; some of its files exceed that by rounding.
    low, high = (-np.ones_like(action[0]), np.ones_like(action[0])) if entry else bounds_from_actions(action)
    return DatasetInfo(
        id=name,
        env_id=env_id,
        obs_size=columns["observations"].shape[1],
        action_low=low,
        action_high=high,
        max_episode_steps=entry.max_episode_steps if entry else _time_limit(env_id),
        ref_min_score=scores[0],
        ref_max_score=scores[1],
        env_kwargs=dict(entry.env_kwargs) if entry and env_id == entry.env_id else {},
    )


def _time_limit(env_id: str | None) -> int | None:
    """Gymnasium's limit for `env_id`, from its registry alone: no environment is made."""
    import gymnasium

    spec = gymnasium.registry.get(env_id or "")
    return spec.max_episode_steps if spec else None


def _metadata_keys(file: Any) -> list[str]:
    return [key for key in ("env", "ref_min_score", "ref_max_score") if f"metadata/{key}" in file]


def _flat(column: Any) -> np.ndarray:
    array = np.asarray(column)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
