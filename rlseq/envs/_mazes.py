"""T-Maze's dynamics and draws for n mazes at once, in NumPy: the single and the vector environment both step these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from rlseq.errors import ConfigError, ShapeError, SpaceError, UnknownNameError

RIGHT, UP, LEFT, DOWN = range(4)
KINDS = ("passive", "active")
DISTRIBUTIONS = ("uniform", "log-uniform")
MAX_LENGTH = 2**31 - 1

_MOVE_X = np.array([1, 0, -1, 0])
_MOVE_Y = np.array([0, 1, 0, -1])
_GAMMA = np.uint64(0x9E3779B97F4A7C15)

Rows = np.ndarray | slice


class Streams:
    """n splitmix64 generators side by side (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").

    state += gamma, output = mix(state). A seed is mixed before it becomes a state: otherwise the streams of two seeds
    could be one stream, shifted.
    """

    def __init__(self, n: int) -> None:
        self.state = np.zeros(n, np.uint64)
        self.seeded = np.zeros(n, np.bool_)

    def seed(self, rows: Rows, seeds: np.ndarray) -> None:
        self.state[rows] = _mix(seeds + _GAMMA)
        self.seeded[rows] = True

    def draw(self, rows: Rows) -> np.ndarray:
        """The next 64 bits of each row."""
        self.state[rows] += _GAMMA
        return _mix(self.state[rows])

    def below(self, rows: Rows, bound: int) -> np.ndarray:
        """int64 in [0, bound), bound <= 2^31; no number is likelier than another by more than bound / 2^32."""
        high = self.draw(rows) >> np.uint64(32)
        return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def uniform(self, rows: Rows) -> np.ndarray:
        """float64 in [0, 1)."""
        return (self.draw(rows) >> np.uint64(11)) * 2.0**-53


class Mazes:
    """The state of n mazes: column x and row y of the agent, steps t, cue +-1, column of the junction, time limit.

    Column 0 shows the cue. Passive mazes start there, active ones a column to its right. x, y, t and the rest are (n,).
    """

    def __init__(
        self,
        n: int,
        kind: str,
        length: int | Sequence[int],
        max_episode_steps: int | None = None,
        distribution: str = "uniform",
    ) -> None:
        if kind not in KINDS:
            raise UnknownNameError("kind of T-Maze", str(kind), KINDS)
        if distribution not in DISTRIBUTIONS:
            raise UnknownNameError("distribution of T-Maze's lengths", str(distribution), DISTRIBUTIONS)
        self.start = KINDS.index(kind)
        self.low, self.high = length_range(length)
        self.max_episode_steps = max_episode_steps
        self.distribution = distribution
        self.streams = Streams(n)
        self.x, self.y, self.t, self.cue, self.junction, self.limit = np.zeros((6, n), np.int64)

    def begin(self, chosen: np.ndarray, given: np.ndarray, seeds: np.ndarray, generator: np.random.Generator) -> None:
        """Starts an episode in the chosen rows: from its seed where one is given, else the row's stream goes on.

        Args:
            chosen: (n,) bool.
            given: (n,) bool, see `row_seeds`.
            seeds: (n,) uint64.
            generator: seeds the rows that never had a seed.
        """
        fresh = np.flatnonzero(chosen & given)
        self.streams.seed(fresh, seeds[fresh])
        unseeded = np.flatnonzero(chosen & ~self.streams.seeded)
        if len(unseeded):
            drawn = generator.integers(0, 2**64 - 1, len(unseeded), np.uint64, endpoint=True)
            self.streams.seed(unseeded, drawn)
        self.restart(np.flatnonzero(chosen))

    def restart(self, rows: Rows) -> None:
        """The next episode of each row's stream: a cue, then a length, are drawn."""
        self.cue[rows] = 1 - 2 * self.streams.below(rows, 2)
        self.junction[rows] = self.start + self._lengths(rows)
        limit = self.start + self.junction[rows] + 1
        self.limit[rows] = limit if self.max_episode_steps is None else np.minimum(limit, self.max_episode_steps)
        self.x[rows], self.y[rows], self.t[rows] = self.start, 0, 0

    def _lengths(self, rows: Rows) -> np.ndarray:
        """A draw for each row; log-uniform: a number in [low, high + 1) with a uniform logarithm, rounded down."""
        if self.distribution == "uniform":
            return self.low + self.streams.below(rows, self.high - self.low + 1)
        drawn = self.low * ((self.high + 1) / self.low) ** self.streams.uniform(rows)
        return np.clip(drawn.astype(np.int64), self.low, self.high)  # rounding may reach either end

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps every row; action (n,) ints in [0, 4). Returns reward (float64), terminated, truncated, all (n,)."""
        np.multiply(_MOVE_Y.take(action), self.x == self.junction, out=self.y)
        np.maximum(self.x + _MOVE_X.take(action), 0, out=self.x)
        np.minimum(self.x, self.junction, out=self.x)
        self.t += 1
        terminated = self.y != 0
        truncated = (self.t >= self.limit) & ~terminated
        return (self.y == self.cue).astype(np.float64), terminated, truncated

    def observe(self) -> np.ndarray:
        """(n, 2) float32, a new array."""
        obs = np.empty((len(self.x), 2), np.float32)
        at_junction = self.x == self.junction
        obs[:, 0] = at_junction
        obs[:, 1] = self.y
        np.copyto(obs[:, 1], self.cue, where=self.x == 0, casting="unsafe")
        return obs


def length_range(length: int | Sequence[int]) -> tuple[int, int]:
    """(low, high) of the corridor's length.

    Raises:
        ConfigError: neither an int nor two, or not 1 <= low <= high < 2^31.
    """
    pair = [length] * 2 if _is_int(length) else length
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_int(one) for one in pair):
        low, high = (int(one) for one in pair)
        if 1 <= low <= high <= MAX_LENGTH:
            return low, high
    raise ConfigError(
        f"TMaze: length must be an int or a pair (low, high) with 1 <= low <= high <= {MAX_LENGTH}, got {length!r}. "
        f"Give a corridor of at least one cell."
    )


def row_seeds(seed: int | Sequence[int | None] | np.ndarray | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n rows get a seed, (n,) bool, and the seeds, (n,) uint64: `SyncVectorEnv.reset` reads them like this.

    Args:
        seed: row i gets seed + i from an int, entry i of a list or array; None, also as an entry, gives none.
        n: rows.
    Raises:
        ConfigError: a seed that is no int in [0, 2^64).
        ShapeError: not one entry a row.
    """
    given, seeds = np.zeros(n, np.bool_), np.zeros(n, np.uint64)
    if seed is None:
        return given, seeds
    if _is_int(seed):
        first = int(seed)
        if not 0 <= first <= 2**64 - n:
            raise ConfigError(f"reset: seeds must be ints in [0, 2^64), got {first} for {n} rows. Give a smaller one.")
        return ~given, np.uint64(first) + np.arange(n, dtype=np.uint64)
    entries = np.asarray(seed, dtype=None if isinstance(seed, np.ndarray) else object)
    if entries.shape != (n,):
        raise ShapeError(
            f"reset: seeds must be one a row, ({n},), got shape {entries.shape}. Give an int or {n} entries."
        )
    given = np.not_equal(entries, np.array(None)).astype(np.bool_) if entries.dtype == object else ~given
    # NumPy finds the type of Python's ints: a float, a bool or a negative one among them shows in it
    values = np.array(entries[given].tolist(), object if not given.any() else None)
    if given.any() and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ConfigError(f"reset: seeds must be ints in [0, 2^64) or None, got {seed!r:.80}. Give such ones.")
    seeds[given] = values
    return given, seeds


def check_actions(actions: Any, n: int) -> np.ndarray:
    """(n,) ints.

    Raises:
        ShapeError: not one int a row.
    """
    array = np.asarray(actions)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ShapeError(
            f"step: actions must be {n} ints, one a row, got {array.dtype} of shape {array.shape}. Give shape ({n},)."
        )
    return array


def check_range(actions: np.ndarray) -> None:
    """Every action is one of the four.

    Raises:
        SpaceError: the first that is not, and its row.
    """
    if actions.min() < 0 or actions.max() > DOWN:
        row = int(np.flatnonzero((actions < 0) | (actions > DOWN))[0])
        raise SpaceError(
            f"step: an action must be 0 (right), 1 (up), 2 (left) or 3 (down), got {actions[row]} in row {row}."
        )


def _is_int(value: Any) -> TypeGuard[int | np.integer]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
