"""The few exception classes of rlseq: each is something that a user can cause, told in one line.

The form of every message: ``<function>: <what must hold>, got <what came>. <what to do>.``
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlseqError(Exception):
    """Base of every error that a user's input can cause; the command line turns it into one line and exit code 2."""


class ConfigError(RlseqError):
    """An option has a value outside its range, or options contradict each other.

    Not a ValueError: the command-line parser would catch one and wrap it in a box of its own.
    """


class UnknownNameError(ConfigError):
    """A name (backbone, dataset, agent, recipe) in no table; the message has the nearest match and the whole list."""

    def __init__(self, what: str, name: str, known: Iterable[str], advice: str = "") -> None:
        names = sorted(known)
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        listed = ", ".join(names) or "none"
        super().__init__(f"unknown {what} {name!r}.{hint} Known: {listed}. {advice}".rstrip())


class ShapeError(RlseqError, ValueError):
    """Arrays whose shapes or dtypes do not fit each other."""


class DataError(RlseqError, ValueError):
    """A dataset that cannot be read: missing key, truncated file, wrong rank, NaN, unequal lengths."""


class SpaceError(RlseqError, ValueError):
    """An environment whose observation or action space does not fit the dataset or the agent."""


class RunError(RlseqError, RuntimeError):
    """A run folder that is not one, exists already, or holds a broken checkpoint."""


class KernelError(RlseqError, RuntimeError):
    """No implementation of an op can take these inputs; the message lists the reason of each."""
