"""Stage 3 of 7: `TrajectoryStore` -> endless `Batch`es, gathered by index arithmetic, in one of three regimes.

A sampler only decides which rows of the flat arrays a batch holds; `_Gather` fetches them. No Python loop runs over
samples or steps; loops over episodes run only when a queue is refilled.
"""

from __future__ import annotations

import heapq
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from rlseq.data.trajectories import TrajectoryStore
from rlseq.errors import ConfigError, UnknownNameError
from rlseq.types import Batch

Regime = Literal["window", "stream", "pack"]
_STREAM_LOOKAHEAD = 16  # batches queued at a refill, so that its loop over episodes is paid once in so many
_PACK_LOOKAHEAD = 4  # batches' worth of episodes binned together: more choice, fuller rows


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are cut from the trajectories."""

    regime: Regime = "window"
    """window: random windows, as published; stream: whole episodes end to end, cut every `window` steps, nothing
    padded, each row going on where it stopped; pack: whole episodes, several to a row."""
    window: int = 20
    """K, environment steps in a row."""
    batch_size: int = 64
    """B, rows in a batch."""

    def __post_init__(self) -> None:
        if self.regime not in get_args(Regime):
            raise UnknownNameError("sampling regime", str(self.regime), get_args(Regime))
        for name in ("window", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"SamplerConfig: {name} must be an integer >= 1, got {value!r}. Give a larger one.")


def make_sampler(store: TrajectoryStore, config: SamplerConfig, seed: int = 0) -> Sampler:
    """The sampler of `config.regime`; the same store, config and seed give the same batches, to the bit.

    Raises:
        ConfigError: regime pack and an episode longer than the window.
    """
    return _SAMPLERS[config.regime](store, config, seed)


class Sampler(ABC):
    """An endless iterator of `Batch`. `state_dict` taken before a batch brings that batch back, in another process."""

    def __init__(self, store: TrajectoryStore, config: SamplerConfig, seed: int) -> None:
        self.config = config
        self._offsets = store.offsets
        self._lengths = store.lengths
        self._gather = _Gather(store)
        self._rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._gather(*self._next_rows())

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, as integers, strings and lists of them."""
        return {
            "made_for": self._made_for(),
            "rng": json.dumps(self._rng.bit_generator.state),  # a string: its integers have 128 bits
            "queues": self._queues(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            ConfigError: the state is of another regime, window, batch size or dataset.
        """
        if state.get("made_for") != self._made_for():
            raise ConfigError(
                f"load_state_dict: the state must be of a sampler for {self._made_for()}, got "
                f"{state.get('made_for')}. Resume with the dataset and the options of the first run."
            )
        self._rng.bit_generator.state = json.loads(state["rng"])
        self._load_queues(state["queues"])

    def _made_for(self) -> dict[str, Any]:
        return {**asdict(self.config), "episodes": len(self._lengths), "steps": int(self._offsets[-1])}

    @abstractmethod
    def _next_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(B, K) rows of the flat arrays, and (B, K) bool mask of the real ones; None where all are."""

    @abstractmethod
    def _queues(self) -> dict[str, Any]:
        """What the next batches depend on beside the generator."""

    @abstractmethod
    def _load_queues(self, queues: dict[str, Any]) -> None:
        """The reverse of `_queues`."""


class _Gather:
    """Fetches rows of a store's flat arrays as a `Batch`; padded places are zero."""

    def __init__(self, store: TrajectoryStore) -> None:
        self._columns = {
            "obs": store.obs,
            "action": store.action,
            "reward": store.reward,
            "return_to_go": store.return_to_go,
            "timestep": store.timestep,
        }

    def __call__(self, rows: np.ndarray, mask: np.ndarray | None) -> Batch:
        arrays = {name: np.take(column, rows, axis=0) for name, column in self._columns.items()}
        arrays["reward"] = arrays["reward"].astype(np.float32)
        arrays["reset"] = arrays["timestep"] == 0
        if mask is None:
            mask = np.ones(rows.shape, dtype=bool)
        else:
            padded = np.flatnonzero(~mask)
            for array in arrays.values():
                array.reshape(rows.size, -1)[padded] = 0
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, mask=torch.from_numpy(mask))


class WindowSampler(Sampler):
    """Windows of K steps: trajectories proportional to length, start uniform in it, the end padded on the right.

    Both draws together are one uniform draw over all steps of the store. Decision Transformer (arXiv 2106.01345), but
    padded on the right, not on the left.
    """

    def __init__(self, store: TrajectoryStore, config: SamplerConfig, seed: int) -> None:
        super().__init__(store, config, seed)
        self._steps = np.arange(config.window)

    def _next_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        start = self._rng.integers(self._offsets[-1], size=self.config.batch_size)
        end = self._offsets[np.searchsorted(self._offsets, start, side="right")]
        rows = start[:, None] + self._steps
        mask = rows < end[:, None]
        if mask.all():
            return rows, None
        return np.minimum(rows, end[:, None] - 1), mask

    def _queues(self) -> dict[str, Any]:
        return {}

    def _load_queues(self, queues: dict[str, Any]) -> None:
        return


class _EpochSampler(Sampler):
    """Draws episodes from one shuffled permutation after the other: every epoch has every episode once."""

    def __init__(self, store: TrajectoryStore, config: SamplerConfig, seed: int) -> None:
        super().__init__(store, config, seed)
        self._order: list[int] = []  # what is left of the epoch, its next episode last

    def _draw(self) -> int:
        if not self._order:
            self._order = self._rng.permutation(len(self._lengths)).tolist()
        return self._order.pop()

    def _episode_rows(self, episode: int) -> np.ndarray:
        return np.arange(self._offsets[episode], self._offsets[episode + 1])


class StreamSampler(_EpochSampler):
    """Row b is an endless queue of whole episodes, cut every K steps: batch n + 1 goes on where batch n stopped.

    Episodes go to the row with the least left, so that rows drift apart by no more than an episode.
    """

    def __init__(self, store: TrajectoryStore, config: SamplerConfig, seed: int) -> None:
        super().__init__(store, config, seed)
        self._set_queues([[] for _ in range(config.batch_size)], [0] * config.batch_size)

    def _set_queues(self, episodes: list[list[int]], position: list[int]) -> None:
        """Row b is `episodes[b]` end to end, from step `position[b]` of the first on."""
        self._episodes = episodes
        lengths = self._lengths
        self._left = [int(sum(lengths[e] for e in row)) - at for row, at in zip(episodes, position, strict=True)]
        self._position = position
        self._lay_out()

    def _lay_out(self) -> None:
        # The rows advance together, so the steps that all of them have are one rectangle, read by slicing.
        window = self.config.window
        width = min(self._left) // window * window
        self._rectangle = np.empty((self.config.batch_size, width), dtype=np.int64)
        for row, (episodes, at) in enumerate(zip(self._episodes, self._position, strict=True)):
            if width:
                self._rectangle[row] = np.concatenate([self._episode_rows(e) for e in episodes])[at : at + width]
        self._cursor = 0

    def _refill(self) -> None:
        episodes, position = self._remaining()
        left = [(count - self._cursor, row) for row, count in enumerate(self._left)]
        heapq.heapify(left)
        while left[0][0] < _STREAM_LOOKAHEAD * self.config.window:
            count, row = left[0]
            episode = self._draw()
            episodes[row].append(episode)
            heapq.heapreplace(left, (count + int(self._lengths[episode]), row))
        self._set_queues(episodes, position)

    def _remaining(self) -> tuple[list[list[int]], list[int]]:
        """Each row's unfinished episodes, and the steps of the first that are behind the cursor."""
        episodes, position = [], []
        for row, at in zip(self._episodes, self._position, strict=True):
            at, first = at + self._cursor, 0
            while first < len(row) and at >= self._lengths[row[first]]:
                at -= int(self._lengths[row[first]])
                first += 1
            episodes.append(row[first:])
            position.append(at)
        return episodes, position

    def _next_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self._cursor == self._rectangle.shape[1]:
            self._refill()
        rows = self._rectangle[:, self._cursor : self._cursor + self.config.window]
        self._cursor += self.config.window
        return rows, None

    def _queues(self) -> dict[str, Any]:
        episodes, position = self._remaining()
        return {"order": list(self._order), "episodes": episodes, "position": position}

    def _load_queues(self, queues: dict[str, Any]) -> None:
        self._order = list(queues["order"])
        self._set_queues([list(row) for row in queues["episodes"]], list(queues["position"]))


class PackSampler(_EpochSampler):
    """Rows of whole episodes, first-fit decreasing over a shuffled chunk, padded on the right."""

    def __init__(self, store: TrajectoryStore, config: SamplerConfig, seed: int) -> None:
        super().__init__(store, config, seed)
        longest = int(self._lengths.max())
        if longest > config.window:
            raise ConfigError(
                f"make_sampler: regime pack needs a window of at least the longest episode, {longest} steps, got "
                f"{config.window}. Set the window to {longest}, or use regime window or stream."
            )
        self._bins: list[list[int]] = []

    def _next_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        count = self.config.batch_size
        while len(self._bins) < count:
            self._refill()
        rows = np.zeros((count, self.config.window), dtype=np.int64)
        mask = np.zeros(rows.shape, dtype=bool)
        for row, episodes in enumerate(self._bins[:count]):
            packed = np.concatenate([self._episode_rows(episode) for episode in episodes])
            rows[row, : len(packed)] = packed
            mask[row, : len(packed)] = True
        del self._bins[:count]
        return rows, None if mask.all() else mask

    def _refill(self) -> None:
        wanted = _PACK_LOOKAHEAD * self.config.batch_size * self.config.window
        chunk, steps = [self._draw()], 0
        # A chunk ends with its epoch: a bin that mixes two could hold one episode twice.
        while self._order and steps < wanted:
            chunk.append(self._draw())
            steps += int(self._lengths[chunk[-1]])
        chunk.sort(key=lambda episode: -int(self._lengths[episode]))
        space = np.full(len(chunk), self.config.window)
        bins: list[list[int]] = [[] for _ in chunk]
        for episode in chunk:
            first = int(np.argmax(space >= self._lengths[episode]))
            space[first] -= self._lengths[episode]
            bins[first].append(episode)
        filled = [episodes for episodes in bins if episodes]
        self._bins += [filled[i] for i in self._rng.permutation(len(filled))]

    def _queues(self) -> dict[str, Any]:
        return {"order": list(self._order), "bins": [list(episodes) for episodes in self._bins]}

    def _load_queues(self, queues: dict[str, Any]) -> None:
        self._order = list(queues["order"])
        self._bins = [list(episodes) for episodes in queues["bins"]]


_SAMPLERS: dict[str, type[Sampler]] = {"window": WindowSampler, "stream": StreamSampler, "pack": PackSampler}
