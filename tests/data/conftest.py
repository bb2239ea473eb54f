"""Small trajectories of random numbers, and dataset files made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from rlseq.data import TrajectoryStore
from rlseq.types import Trajectory

OBS_SIZE, ACTION_SIZE = 5, 2


def _trajectories(lengths: Sequence[int], seed: int = 0) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    return [
        Trajectory(
            obs=rng.normal(size=(length, OBS_SIZE)).astype(np.float32),
            action=rng.uniform(-1, 1, size=(length, ACTION_SIZE)).astype(np.float32),
            reward=rng.normal(size=length),
            terminated=number % 2 == 0,
            truncated=number % 2 == 1,
        )
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def make_trajectories() -> Callable[..., list[Trajectory]]:
    """(lengths, seed) -> random trajectories; even ones terminated, odd ones truncated."""
    return _trajectories


@pytest.fixture(scope="session")
def make_store() -> Callable[..., TrajectoryStore]:
    """(lengths, seed) -> a store of random trajectories."""
    return lambda lengths, seed=0: TrajectoryStore.from_trajectories(_trajectories(lengths, seed))


@pytest.fixture
def d4rl_arrays() -> dict[str, np.ndarray]:
    """Three episodes of 4, 3 and 5 steps in D4RL's layout: terminated, timed out, unfinished."""
    episodes = _trajectories([4, 3, 5])
    arrays = {
        "observations": np.concatenate([e.obs for e in episodes]),
        "actions": np.concatenate([e.action for e in episodes]),
        "rewards": np.concatenate([e.reward for e in episodes]).astype(np.float32),
        "terminals": np.zeros(12, dtype=bool),
        "timeouts": np.zeros(12, dtype=bool),
    }
    arrays["terminals"][3] = arrays["timeouts"][6] = True
    return arrays


@pytest.fixture
def write_d4rl(tmp_path: Path) -> Callable[..., Path]:
    """(arrays, name) -> path of an HDF5 file that holds them."""

    def write(arrays: dict[str, object], name: str = "set.hdf5") -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in arrays.items():
                file[key] = value
        return tmp_path / name

    return write
