"""Threads for the Numba kernels: Python threads without the GIL, RLSEQ_NUM_THREADS of them, else as many as torch has.

Not Numba's own threading layers: workqueue aborts the process when two Python threads call it at once, and an OpenMP
pool beside torch's spins on the same cores. Threads of a pool sleep between calls, and each call splits its rows in a
fixed way, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rlseq.errors import ConfigError

_SMALL = 1 << 20
"""Below this many elements one thread is faster in training: torch's OpenMP threads still spin from the op before, and
a second thread waits for them (Hawk, 6 x 200 steps, 2 cores: 17,700 env-steps/s with one kernel thread, 15,000 with 2).
"""
_NARROWEST, _WIDEST = 32, 1024
"""Channels of a tile: enough for whole vectors, few enough that the carried rows stay in the first-level cache."""

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)


def thread_count() -> int:
    """Threads that a kernel may use: RLSEQ_NUM_THREADS, or torch.get_num_threads() where that is unset.

    Raises:
        ConfigError: RLSEQ_NUM_THREADS is no positive integer.
    """
    setting = os.environ.get("RLSEQ_NUM_THREADS")
    if setting is None:
        return torch.get_num_threads()
    if not setting.isdecimal() or int(setting) < 1:
        raise ConfigError(
            f"thread_count: RLSEQ_NUM_THREADS must be a positive integer, got {setting!r}. Change or unset it."
        )
    return int(setting)


def rule_torch() -> None:
    """Give torch the threads of RLSEQ_NUM_THREADS where it is set: one setting for both, on cores that both share."""
    if "RLSEQ_NUM_THREADS" in os.environ:
        torch.set_num_threads(thread_count())


def over_rows(kernel: Callable[..., None], arguments: Sequence[Any], shape: Sequence[int], unit: int = 1) -> None:
    """Call kernel(*arguments, L, D, tile, begin, end) over all B rows x tiles of at most ``tile`` channels.

    Args:
        kernel: works on the items begin..end, where item i is row i // tiles, tile i % tiles; releases the GIL.
        arguments: its arrays.
        shape: (B, L, D).
        unit: channels that stay in one tile; D is a multiple of it.
    """
    rows, length, width = shape
    threads = _threads_for(rows * length * width)
    tile = -(-_tile(rows, width, threads) // unit) * unit
    _share_out(kernel, [*arguments, length, width, tile], rows * -(-width // tile), threads)


def over_elements(kernel: Callable[..., None], arguments: Sequence[Any], count: int) -> None:
    """Call kernel(*arguments, begin, end) over all elements 0 .. count; it releases the GIL."""
    _share_out(kernel, arguments, count, _threads_for(count))


def _threads_for(elements: int) -> int:
    # asked for small inputs too, so that a wrong setting is always an error
    threads = thread_count()
    return threads if elements >= _SMALL else 1


def _share_out(kernel: Callable[..., None], arguments: Sequence[Any], items: int, threads: int) -> None:
    """Call kernel(*arguments, begin, end) over all items, in equal parts for the threads."""
    threads = min(threads, items)
    if threads <= 1:
        kernel(*arguments, 0, items)
        return
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="rlseq")
    bounds = [items * i // threads for i in range(threads + 1)]
    waiting = [_pools[threads].submit(kernel, *arguments, begin, end) for begin, end in itertools.pairwise(bounds[1:])]
    kernel(*arguments, 0, bounds[1])
    for future in waiting:
        future.result()


def _tile(rows: int, width: int, threads: int) -> int:
    """Whole rows where there are enough of them (memory is then read in order), else narrower tiles."""
    widest = max(min(width, _WIDEST), 1)
    if rows % threads == 0 or rows >= 4 * threads:
        return widest
    parts = -(-threads // rows)
    return min(widest, max(_NARROWEST, -(-width // (16 * parts)) * 16))
