"""Stage 1 of 7: a Minari dataset (0.5, HDF5 or Arrow) -> `DatasetInfo` and an iterator of `Trajectory`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlseq.data._checks import check_episode, check_equal_lengths, score_range
from rlseq.errors import DataError, UnknownNameError
from rlseq.types import DatasetInfo, Trajectory

if TYPE_CHECKING:
    from gymnasium import Space
    from minari.dataset.minari_storage import MinariStorage

MADE_BY = "rlseq_env"
"""Key of the metadata: what `gymnasium.make` was called with, ``{"id": …, "kwargs": …}``; Minari's env_spec has neither
the module of ``module:id`` nor a time limit that was an argument."""

# What h5py, pyarrow, PIL and Minari raise on damaged files; Minari checks with bare assertions.
_READ_ERRORS = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError, AssertionError, AttributeError)


def datasets_root() -> Path:
    """The folder of local Minari datasets: $MINARI_DATASETS_PATH or ~/.minari/datasets, Minari's own rule."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def local_ids() -> list[str]:
    """Ids of the Minari datasets on this machine, sorted."""
    root = datasets_root()
    return sorted(path.relative_to(root).as_posix() for path in _dataset_folders(root))


def open_id(dataset_id: str) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    """A local Minari dataset by its id, such as ``mujoco/hopper/medium-v0``; nothing is downloaded.

    Raises:
        UnknownNameError: no dataset of this id under the datasets folder.
        DataError: see `read`.
    """
    folder = datasets_root() / dataset_id
    if not (folder / "data").is_dir():
        advice = f"A remote one: `minari download {dataset_id}` stores it under {datasets_root()}."
        raise UnknownNameError("Minari dataset", dataset_id, local_ids(), advice)
    return read(folder, f"minari:{dataset_id}")


def read(folder: Path, name: str) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    """The dataset in `folder` (or in its subfolder ``data``).

    Drops the final one of Minari's T + 1 observations: no action follows it. Nested observations are flattened in the
    order of `gymnasium.spaces.flatten`. The environment is the one that `MinariRecorder` noted, else the metadata's
    eval_env_spec, else its env_spec; reference scores are the metadata's.

    Args:
        folder: the dataset on disk.
        name: id that DatasetInfo gets.
    Returns:
        the facts, and an iterator that reads one episode at a time.
    Raises:
        DataError: no or damaged metadata, reference scores that are none (see `score_range`), spaces other than Box in
            an action or numbers in observations, and, while iterating, a missing key, a truncated file, unequal
            lengths, NaN or infinity; one line with file, episode and key.
    """
    data = folder / "data" if (folder / "data").is_dir() else folder
    if not (data / "metadata.json").is_file():
        raise DataError(
            f"open_dataset: {folder} must hold a Minari dataset, got no data/metadata.json. Check the path."
        )
    from minari.dataset.minari_storage import MinariStorage

    try:
        metadata = MinariStorage.read_raw_metadata(data)
        storage = MinariStorage.read(data)
        info = _info(name, data, metadata, storage)
    except DataError:
        raise
    except (ImportError, NotImplementedError, *_READ_ERRORS) as error:
        raise _unreadable(data, "metadata and file", error) from error
    return info, _trajectories(data, storage)


def flat_rows(space: Space[Any], value: Any) -> np.ndarray:
    """(rows, S) columns of a (nested) batch of values, in the order of `gymnasium.spaces.flatten`."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = [flat_rows(part, value[key]) for key, part in space.spaces.items()]
        return np.concatenate(parts, axis=1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([flat_rows(part, v) for part, v in zip(space.spaces, value, strict=True)], axis=1)
    array = np.asarray(value)
    if isinstance(space, spaces.Discrete):
        return _one_hot(array, int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        columns = zip(array.reshape(len(array), -1).T, space.start.flat, space.nvec.flat, strict=True)
        return np.concatenate([_one_hot(column, int(start), int(n)) for column, start, n in columns], axis=1)
    return array.reshape(len(array), -1)


def _one_hot(values: np.ndarray, start: int, n: int) -> np.ndarray:
    """(T,) whole numbers from start on -> (T, n) float32 rows; one outside the space raises ValueError."""
    if not np.isin(values, np.arange(start, start + n)).all():
        raise ValueError(f"a value outside Discrete({n}, start={start})")
    return (values.reshape(-1, 1) == np.arange(start, start + n)).astype(np.float32)


def _info(name: str, data: Path, metadata: dict[str, Any], storage: MinariStorage) -> DatasetInfo:
    from gymnasium import spaces

    low, high = _action_bounds(name, storage.action_space)
    _require_vectors(name, storage.observation_space)
    spec = json.loads(metadata.get("eval_env_spec") or metadata.get("env_spec") or "{}")
    made = metadata.get(MADE_BY) or {"id": spec.get("id"), "kwargs": spec.get("kwargs")}
    scores = score_range(str(data / "metadata.json"), metadata) or (None, None)
    return DatasetInfo(
        id=name,
        env_id=made["id"],
        obs_size=spaces.flatdim(storage.observation_space),
        action_low=low,
        action_high=high,
        max_episode_steps=spec.get("max_episode_steps"),
        ref_min_score=scores[0],
        ref_max_score=scores[1],
        discrete=isinstance(storage.action_space, spaces.Discrete),
        env_kwargs=made["kwargs"] or {},
    )


def _action_bounds(name: str, space: Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return np.zeros(int(space.n), np.float32), np.ones(int(space.n), np.float32)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DataError(
            f"open_dataset: the actions of {name} must be a Box of one axis or Discrete from 0, got {space}. Nested "
            f"actions are not supported."
        )
    if not space.is_bounded():
        raise DataError(f"open_dataset: the actions of {name} must be bounded, got {space}. Rescale them.")
    return space.low.astype(np.float32), space.high.astype(np.float32)


def _require_vectors(name: str, space: Space[Any]) -> None:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = tuple(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        parts = space.spaces
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or (
        isinstance(space, spaces.Box) and not (space.dtype == np.uint8 and len(space.shape) > 1)
    ):
        return
    else:
        raise DataError(
            f"open_dataset: the observations of {name} must be (nested) Box or Discrete spaces, got {space}. Images "
            f"and text are not supported."
        )
    for part in parts:
        _require_vectors(name, part)


def _trajectories(data: Path, storage: MinariStorage) -> Iterator[Trajectory]:
    # Straight from the storage: MinariDataset adds nothing but EpisodeData, whose repr fails on sets without infos.
    number = 0
    try:
        for number, episode in enumerate(storage.get_episodes(range(storage.total_episodes))):
            yield _trajectory(f"{data}: episode_{number}", storage, episode)
            number += 1
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(data, f"episode_{number}", error) from error


def _trajectory(where: str, storage: MinariStorage, episode: dict[str, Any]) -> Trajectory:
    from gymnasium import spaces

    obs, action = flat_rows(storage.observation_space, episode["observations"]), np.asarray(episode["actions"])
    if isinstance(storage.action_space, spaces.Discrete):
        action = flat_rows(storage.action_space, action)
    reward, terminations, truncations = (np.asarray(episode[k]) for k in ("rewards", "terminations", "truncations"))
    lengths = {"observations - 1": len(obs) - 1, "actions": len(action), "rewards": len(reward)}
    check_equal_lengths(where, lengths | {"terminations": len(terminations), "truncations": len(truncations)})
    obs, action, reward = check_episode(where, obs[:-1], action, reward)
    return Trajectory(obs, action, reward, bool(terminations[-1]), bool(truncations[-1]))


def _unreadable(data: Path, place: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"open_dataset: {data}: {place} must be readable, got {reason}. Download or record it again.")


def _dataset_folders(folder: Path) -> Iterator[Path]:
    if (folder / "data").is_dir():
        yield folder
    elif folder.is_dir():
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _dataset_folders(child)
