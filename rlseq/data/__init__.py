"""Datasets on disk -> `TrajectoryStore` -> batches: stages 1 to 3 of the data path.

Names of datasets: ``minari:ID``, ``d4rl:ID``, ``d4rl:FILE.hdf5``, ``bundled:NAME``, or a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlseq.data import d4rl_source, minari_source
from rlseq.data._d4rl_table import TABLE, reference_scores
from rlseq.data._summary import summary
from rlseq.data.trajectories import TrajectoryStore, returns_to_go
from rlseq.data.windows import Sampler, SamplerConfig, make_sampler
from rlseq.errors import UnknownNameError
from rlseq.types import DatasetInfo, Trajectory

__all__ = [
    "Sampler",
    "SamplerConfig",
    "TrajectoryStore",
    "bundled_names",
    "from_dict",
    "known_datasets",
    "make_sampler",
    "open_dataset",
    "reference_scores",
    "returns_to_go",
    "summary",
]

_BUNDLED = Path(__file__).parent / "bundled"
_SCHEMES = ("minari", "d4rl", "bundled")


def open_dataset(name: str | Path) -> TrajectoryStore:
    """The dataset called `name`, read whole.

    Args:
        name: ``minari:ID`` (local, under $MINARI_DATASETS_PATH), ``d4rl:ID`` (downloaded once), ``d4rl:FILE.hdf5``,
            ``bundled:NAME``, or the path of a Minari folder or a D4RL HDF5 file.
    Raises:
        UnknownNameError: no such scheme, id or name; the message has the nearest and the list.
        DataError: the dataset cannot be read; one line naming file, episode and key.
    """
    info, trajectories = _source(str(name))
    return TrajectoryStore.from_trajectories(trajectories, info)


def from_dict(data: Mapping[str, Any], name: str = "dictionary") -> TrajectoryStore:
    """The store of a dictionary as from d4rl's ``env.get_dataset()``; an id of D4RL as `name` brings its scores.

    Raises:
        DataError: a missing key, a wrong rank, NaN or infinity, unequal lengths; one line naming the key.
    """
    info, trajectories = d4rl_source.from_dict(data, f"d4rl:{name}" if name in TABLE else name)
    return TrajectoryStore.from_trajectories(trajectories, info)


def bundled_names() -> list[str]:
    """Datasets inside the package."""
    return sorted(path.parent.parent.name for path in _BUNDLED.glob("*/data/metadata.json"))


def known_datasets() -> list[str]:
    """Every name that `open_dataset` knows without a path: bundled ones, local Minari ids, ids of D4RL."""
    bundled = [f"bundled:{name}" for name in bundled_names()]
    minari = [f"minari:{dataset_id}" for dataset_id in minari_source.local_ids()]
    return bundled + minari + [f"d4rl:{dataset_id}" for dataset_id in TABLE]


def _source(name: str) -> tuple[DatasetInfo, Iterator[Trajectory]]:
    scheme, colon, rest = name.partition(":")
    path = Path(rest if colon and scheme in ("minari", "d4rl") else name).expanduser()
    if scheme == "minari" and colon:
        return minari_source.open_id(rest)
    if scheme == "d4rl" and colon:
        is_file = path.suffix in (".hdf5", ".h5") or path.is_file()
        return d4rl_source.read_file(path, name) if is_file else d4rl_source.open_id(rest)
    if scheme == "bundled" and colon:
        if rest not in bundled_names():
            raise UnknownNameError("bundled dataset", rest, bundled_names())
        return minari_source.read(_BUNDLED / rest, name)
    if path.is_dir():
        return minari_source.read(path, name)
    if path.is_file() or path.suffix in (".hdf5", ".h5"):
        return d4rl_source.read_file(path, name)
    if colon:
        raise UnknownNameError("dataset scheme", scheme, _SCHEMES)
    known = known_datasets()
    schemeless = [one for one in known if one.partition(":")[2] == name]
    advice = f"It needs its scheme: {' or '.join(schemeless)}." if schemeless else "A path must exist."
    raise UnknownNameError("dataset", name, known, advice)
