"""Which implementation of an op runs: the first of gpu, cpu, blocked, reference that has no reason against it.

Every module of an op folder answers ``why_not(device, dtype) -> str | None``. ``RLSEQ_KERNEL`` forces: one name, or
several with commas between (``cpu,blocked``), and an op that has any of those uses them alone; an op that has none of
them (``geglu`` under ``gpu``) chooses as usual. The plain PyTorch loop ``reference`` comes last: it is chosen only
where nothing else can run, and ``status()`` says so.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from rlseq.errors import KernelError, UnknownNameError

ORDER = ("gpu", "cpu", "blocked", "reference")
_FOLDER = Path(__file__).parent
_chosen: dict[tuple[str, str, torch.dtype, str], str] = {}
_lock = threading.RLock()
_loaded: set[tuple[str, str]] = set()
_functions: dict[tuple[str, str], Callable[..., Any]] = {}


class Status(NamedTuple):
    """One implementation of one op on this machine: live if reason is None; chosen if it is the one that would run."""

    op: str
    implementation: str
    reason: str | None
    chosen: bool


def ops() -> list[str]:
    """Names of the ops: the sub-folders."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/reference.py"))


def implementations(op: str) -> list[str]:
    """Names of an op's implementations, best first."""
    return [name for name in ORDER if (_FOLDER / op / f"{name}.py").exists()]


def choose(op: str, device: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The function of an op that runs for tensors of this device type and dtype.

    Raises:
        UnknownNameError: RLSEQ_KERNEL holds a name that is no implementation.
        KernelError: nothing allowed can run; the message lists every reason.
    """
    name = _chosen_name(op, device, dtype)
    return _functions[op, name]


def _chosen_name(op: str, device: str, dtype: torch.dtype) -> str:
    forced = os.environ.get("RLSEQ_KERNEL", "")
    key = (op, device, dtype, forced)
    if key not in _chosen:
        with _lock:
            if (device, forced) not in _loaded:
                # all at once: a trace that has seen the table does not look at it again
                for each in ops():
                    for name in implementations(each):
                        module, _ = _load(each, name, device, dtype)
                        if module is not None:
                            _functions[each, name] = getattr(module, each)
                _loaded.add((device, forced))
            _chosen[key] = _first_live(op, device, dtype, forced)
    return _chosen[key]


# torch.compile asks once while it traces, and guards on neither the environment nor the import system. This is what
# torch.compiler.assume_constant_result sets, without the import of the whole compiler (1.6 s) that it brings.
_chosen_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def status(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Status]:
    """Every implementation of every op with the reason against it, under the current RLSEQ_KERNEL."""
    forced = os.environ.get("RLSEQ_KERNEL", "")
    rows = []
    for op in ops():
        allowed, chosen = _allowed(op, forced), False
        for name in implementations(op):
            reason = _load(op, name, device, dtype)[1]
            if reason is None and name not in allowed:
                reason = "excluded by RLSEQ_KERNEL"
            rows.append(Status(op, name, reason, chosen=reason is None and not chosen))
            chosen = chosen or reason is None
    return rows


def _first_live(op: str, device: str, dtype: torch.dtype, forced: str) -> str:
    allowed = _allowed(op, forced)
    reasons = []
    for name in implementations(op):
        if name not in allowed:
            reasons.append(f"{name}: excluded by RLSEQ_KERNEL={forced}")
            continue
        module, reason = _load(op, name, device, dtype)
        if module is not None and reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise KernelError(
        f"{op}: one implementation must be able to take {dtype} tensors on {device}, got none ({'; '.join(reasons)}). "
        "Change RLSEQ_KERNEL, the device or the dtype."
    )


def _allowed(op: str, forced: str) -> list[str]:
    names = [name.strip() for name in forced.split(",")] if forced else []
    for name in names:
        if name not in ORDER:
            raise UnknownNameError("implementation in RLSEQ_KERNEL", name, ORDER)
    own = implementations(op)
    return [name for name in own if name in names] or own


def _load(op: str, name: str, device: str, dtype: torch.dtype) -> tuple[ModuleType | None, str | None]:
    if name == "gpu" and device != "cuda" and "gpu" not in os.environ.get("RLSEQ_KERNEL", ""):
        # not asked of the module: importing triton takes a quarter of a second
        return None, f"tensors are on {device}"
    try:
        module = importlib.import_module(f"{__package__}.{op}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("numba", "triton"):
            raise
        return None, f"{error.name} is not installed"
    return module, module.why_not(device, dtype)
