"""Stage 2 of 7: trajectories -> `TrajectoryStore`, flat arrays and episode offsets.

A store larger than its memory limit keeps its columns in unlinked temporary files, mapped into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import BinaryIO

import numpy as np

from rlseq.data._checks import bounds_from_actions, check_episode
from rlseq.errors import ConfigError, DataError
from rlseq.types import DatasetInfo, DatasetStats, Trajectory

_COLUMN_DTYPES = {"obs": np.float32, "action": np.float32, "reward": np.float64, "return_to_go": np.float32}
_STATS_CHUNK = 1 << 18  # rows a pass reads at once, so that a mapped store never comes into memory whole


def returns_to_go(reward: np.ndarray) -> np.ndarray:
    """Undiscounted return from each step to the end: g_0 = sum(r), g_{t+1} = g_t - r_t.

    Subtracts step by step in float64, as a policy does that knows only its target and the rewards so far: training
    and acting inputs are then equal to the bit.

    Args:
        reward: (T,) float64.
    Returns:
        (T,) float32, in raw reward units.
    """
    steps = np.concatenate([[reward.sum()], reward[:-1]])
    return np.subtract.accumulate(steps).astype(np.float32)


class TrajectoryStore:
    """Trajectories as flat arrays, episode after episode; `store[i]` is a view of episode i.

    Attributes:
        info: what the dataset says of itself.
        obs: (N, S) float32.
        action: (N, A) float32.
        reward: (N,) float64.
        return_to_go: (N,) float32, raw reward units.
        timestep: (N,) int64, counted from the start of the episode.
        offsets: (n + 1,) int64; episode i is rows offsets[i]:offsets[i + 1].
        terminated: (n,) bool.
        truncated: (n,) bool.
    """

    def __init__(
        self,
        info: DatasetInfo,
        columns: dict[str, np.ndarray],
        offsets: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        memory_limit: int | None = None,
    ) -> None:
        """Takes finished columns as they are; users call `from_trajectories`, which checks and copies."""
        self.info = info
        self.obs = columns["obs"]
        self.action = columns["action"]
        self.reward = columns["reward"]
        self.return_to_go = columns["return_to_go"]
        self.offsets = offsets
        self.terminated = terminated
        self.truncated = truncated
        self._memory_limit = memory_limit

    @classmethod
    def from_trajectories(
        cls, trajectories: Iterable[Trajectory], info: DatasetInfo | None = None, *, memory_limit: int | None = None
    ) -> TrajectoryStore:
        """A store of these trajectories, in this order.

        Args:
            trajectories: any iterable, read once; obs (T, S), action (T, A), reward (T,) of any real dtype, T >= 1.
            info: what is known of the dataset. By default no environment and no reference scores, and action bounds
                [-1, 1], or the data's own range in the columns that leave it.
            memory_limit: bytes above which the columns go to temporary files (in TMPDIR) that are mapped into
                memory; half of the physical memory by default.
        Raises:
            DataError: no trajectory, none of its steps, NaN or infinity, unequal lengths, or sizes that change between
                episodes or differ from info; the message names the episode and the array.
        """
        name = info.id if info else "from_trajectories"
        limit = _half_of_memory() if memory_limit is None else memory_limit
        columns = _Columns(limit)
        lengths: list[int] = []
        terminated: list[bool] = []
        truncated: list[bool] = []
        sizes = (info.obs_size, info.action_size) if info else None
        for number, trajectory in enumerate(trajectories):
            where = f"{name}: episode {number}"
            obs, action, reward = check_episode(where, trajectory.obs, trajectory.action, trajectory.reward, sizes)
            sizes = (obs.shape[1], action.shape[1])
            columns.append(obs=obs, action=action, reward=reward, return_to_go=returns_to_go(reward))
            lengths.append(len(reward))
            terminated.append(bool(trajectory.terminated))
            truncated.append(bool(trajectory.truncated))
        if not lengths:
            raise DataError(f"{name}: a dataset must hold at least one episode, got none. Check its id or path.")
        arrays = columns.finish()
        if info is None:
            low, high = bounds_from_actions(arrays["action"])
            info = DatasetInfo("trajectories", None, arrays["obs"].shape[1], low, high, None, None, None)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(info, arrays, offsets, np.array(terminated), np.array(truncated), memory_limit)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Trajectory:
        """Episode `index` as views of the flat arrays; negative numbers count from the end."""
        episode = range(len(self))[index]
        rows = slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))
        ends = bool(self.terminated[episode]), bool(self.truncated[episode])
        return Trajectory(self.obs[rows], self.action[rows], self.reward[rows], *ends)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"TrajectoryStore({self.info.id!r}, episodes={len(self)}, steps={self.steps})"

    @property
    def steps(self) -> int:
        """N, environment steps in all."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64 environment steps of each episode."""
        return np.diff(self.offsets)

    @cached_property
    def timestep(self) -> np.ndarray:
        """(N,) int64 steps since the start of the episode."""
        return np.arange(self.steps, dtype=np.int64) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def returns(self) -> np.ndarray:
        """(n,) float64 undiscounted return of each episode, raw reward units."""
        return np.array([trajectory.reward.sum() for trajectory in self])

    @cached_property
    def stats(self) -> DatasetStats:
        """Figures over the whole store; means and deviations are of the population, summed in float64."""
        mean, std = mean_and_std(self.obs)
        returns, lengths = self.returns, self.lengths
        return DatasetStats(
            episodes=len(self),
            steps=self.steps,
            return_mean=float(returns.mean()),
            return_std=float(returns.std()),
            return_min=float(returns.min()),
            return_max=float(returns.max()),
            return_to_go_std=float(self.return_to_go.std(dtype=np.float64)),
            return_to_go_min=float(self.return_to_go.min()),
            return_to_go_max=float(self.return_to_go.max()),
            length_mean=float(lengths.mean()),
            length_min=int(lengths.min()),
            length_max=int(lengths.max()),
            obs_mean=mean.astype(np.float32),
            obs_std=std.astype(np.float32),
        )

    def episodes(self, indices: Sequence[int] | np.ndarray) -> TrajectoryStore:
        """A store of its own that holds copies of these episodes, in this order.

        Raises:
            DataError: no index given.
            IndexError: an index outside the store.
        """
        return self.from_trajectories((self[int(i)] for i in indices), self.info, memory_limit=self._memory_limit)

    def split(self, fraction: float, seed: int = 0) -> tuple[TrajectoryStore, TrajectoryStore]:
        """Two stores (rest, held out): a random `fraction` of the whole episodes is held out, in the order of the data.

        Raises:
            ConfigError: fraction outside (0, 1), or fewer than two episodes; both stores always hold at least one.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"split: fraction must lie in (0, 1), got {fraction}. Hold out 0.1, say.")
        if len(self) < 2:
            raise ConfigError(f"split: the store must hold at least 2 episodes, got {len(self)}. Train without it.")
        count = min(max(round(fraction * len(self)), 1), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        return self.episodes(np.sort(order[count:])), self.episodes(np.sort(order[:count]))

    def top(self, fraction: float) -> TrajectoryStore:
        """The best `fraction` of the episodes by return (at least one), in the order of the data.

        Raises:
            ConfigError: fraction outside (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ConfigError(f"top: fraction must lie in (0, 1], got {fraction}. Give 0.1 for the best tenth.")
        count = max(round(fraction * len(self)), 1)
        best = np.argsort(-self.returns, kind="stable")[:count]
        return self.episodes(np.sort(best))

    def drop_obs(self, columns: Iterable[int]) -> TrajectoryStore:
        """The same episodes without these observation columns, such as the velocities (a "-nv" set).

        `info.dropped_obs` of the result names the columns of the full observation: `envs.make` takes them.

        Raises:
            ConfigError: a column that is not there, or none left.
        """
        dropped = sorted(set(columns))
        size = self.info.obs_size
        if any(not 0 <= column < size for column in dropped) or len(dropped) == size:
            raise ConfigError(f"drop_obs: columns must be some, not all, of 0..{size - 1}, got {dropped}. Name fewer.")
        kept = np.setdiff1d(np.arange(size), dropped)
        full = np.setdiff1d(np.arange(size + len(self.info.dropped_obs)), self.info.dropped_obs)
        all_dropped = tuple(sorted((*self.info.dropped_obs, *(int(full[column]) for column in dropped))))
        info = replace(self.info, obs_size=len(kept), dropped_obs=all_dropped)
        thinner = (replace(trajectory, obs=trajectory.obs[:, kept]) for trajectory in self)
        return self.from_trajectories(thinner, info, memory_limit=self._memory_limit)


class _Columns:
    """Grows the flat columns in memory, and in files once they pass the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMN_DTYPES}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, BinaryIO] = {}

    def append(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            # A copy: a view would keep alive the whole array that a source or a caller cut it from.
            self._parts[name].append(np.array(array, dtype=_COLUMN_DTYPES[name], order="C"))
            self._shapes[name] = array.shape[1:]
            self._bytes += self._parts[name][-1].nbytes
        if self._bytes > self._limit:
            self._spill()

    def finish(self) -> dict[str, np.ndarray]:
        """The columns, each in one piece."""
        if not self._files:
            return {name: np.concatenate(self._parts.pop(name)) for name in _COLUMN_DTYPES}
        self._spill()
        return {name: self._map(name, file) for name, file in self._files.items()}

    def _spill(self) -> None:
        for name, parts in self._parts.items():
            if name not in self._files:
                # Unlinked from the start: nothing is left behind however the process ends.
                self._files[name] = tempfile.TemporaryFile(prefix="rlseq-")  # noqa: SIM115
            for part in parts:
                self._files[name].write(part.tobytes())
            parts.clear()
        self._bytes = 0

    def _map(self, name: str, file: BinaryIO) -> np.ndarray:
        file.flush()
        shape, dtype = self._shapes[name], np.dtype(_COLUMN_DTYPES[name])
        rows = file.tell() // (dtype.itemsize * int(np.prod(shape)))
        column = np.memmap(file, dtype=dtype, mode="r", shape=(rows, *shape))
        file.close()
        return np.asarray(column)


def mean_and_std(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) float64 mean and population deviation in two passes over (N, S)."""
    chunks = range(0, len(array), _STATS_CHUNK)
    mean = sum(array[i : i + _STATS_CHUNK].sum(axis=0, dtype=np.float64) for i in chunks) / len(array)
    square = sum(((array[i : i + _STATS_CHUNK] - mean) ** 2).sum(axis=0) for i in chunks) / len(array)
    return np.asarray(mean), np.sqrt(square)


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
