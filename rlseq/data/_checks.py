"""Checks that both dataset sources and the store share: each failure is one line naming the place and the array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlseq.errors import DataError


def real_array(where: str, key: str, value: Any, dtype: type, rank: int) -> np.ndarray:
    """`value` as a finite array of this dtype and rank; scalar feature axes of rank 2 must not be empty.

    Args:
        where: the file and episode, for the message.
        key: the name of the array in that place.
        value: anything that NumPy takes.
        dtype: target dtype.
        rank: 1 for (T,), 2 for (T, size).
    Raises:
        DataError: not numbers, another rank, or NaN or infinity, before or after the cast.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: {key!r} must hold real numbers, got dtype {array.dtype}. Convert it.")
    if array.ndim != rank or (rank == 2 and array.shape[1] == 0):
        form = "(T,)" if rank == 1 else "(T, size)"
        raise DataError(f"{where}: {key!r} must have shape {form}, got {array.shape}. Reshape or flatten it.")
    with np.errstate(over="ignore"):
        cast: np.ndarray = array.astype(dtype, copy=False)
    finite = np.isfinite(array if dtype is bool else cast)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(f"{where}: {key!r} must be finite, got {array[place]} at {place}. Remove that episode.")
    return cast


def check_episode(
    where: str, obs: Any, action: Any, reward: Any, sizes: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An episode as obs (T, S) float32, action (T, A) float32, reward (T,) float64: finite, T >= 1, equally long.

    Args:
        where: the file and episode, for the message.
        obs: (T, S), anything that NumPy takes.
        action: (T, A).
        reward: (T,).
        sizes: (S, A) that the episode must have; None takes any.
    Raises:
        DataError: one of these does not hold.
    """
    checked_obs = real_array(where, "obs", obs, np.float32, 2)
    checked_action = real_array(where, "action", action, np.float32, 2)
    checked_reward = real_array(where, "reward", reward, np.float64, 1)
    lengths = {"obs": len(checked_obs), "action": len(checked_action), "reward": len(checked_reward)}
    check_equal_lengths(where, lengths)
    if not len(checked_reward):
        raise DataError(f"{where}: an episode must have at least one step, got none. Remove it.")
    found = checked_obs.shape[1], checked_action.shape[1]
    if sizes is not None and found != sizes:
        raise DataError(f"{where}: (obs size, action size) must be {sizes}, got {found}. Every episode needs the same.")
    return checked_obs, checked_action, checked_reward


def check_equal_lengths(where: str, lengths: dict[str, int]) -> None:
    """Every key has the same length.

    Raises:
        DataError: two differ; the message shows all.
    """
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"{where}: all arrays must have the same length, got {shown}. The recording is damaged.")


def score_range(where: str, metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """The pair (ref_min_score, ref_max_score) of a dataset's metadata; None where it has neither, or both are None.

    Args:
        where: the file, for the message.
        metadata: the two under these keys, and anything else.
    Raises:
        DataError: one without the other, not a finite number each, or not min < max; one line naming the key.
    """
    keys = ("ref_min_score", "ref_max_score")
    missing = [key for key in keys if metadata.get(key) is None]
    if len(missing) == len(keys):
        return None
    if missing:
        raise DataError(f"{where}: {keys[0]!r} and {keys[1]!r} must come together, got no {missing[0]!r}. Add it.")
    low, high = (_finite_number(where, key, metadata[key]) for key in keys)
    if not low < high:
        raise DataError(f"{where}: {keys[0]!r} must be less than {keys[1]!r}, got {low} and {high}. Correct them.")
    return low, high


def _finite_number(where: str, key: str, value: Any) -> float:
    array = np.asarray(value)
    if array.ndim:
        got = f"an array of shape {array.shape}"
    elif array.dtype.kind not in "fiu":
        got = f"type {type(value).__name__}"
    elif not np.isfinite(number := float(array)):
        got = str(number)
    else:
        return number
    raise DataError(f"{where}: {key!r} must be one finite number, got {got}. Correct it, or remove both scores.")


def bounds_from_actions(action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A,) float32 bounds for a dataset that states none: [-1, 1], or the data's range in columns that leave it."""
    low, high = action.min(axis=0), action.max(axis=0)
    inside = (low >= -1) & (high <= 1)
    return np.where(inside, np.float32(-1), low), np.where(inside, np.float32(1), high)
