"""Keeps notes away from users that they can do nothing about.

MuJoCo 3.17 and 4.0 print a deprecation note when they load them, and write MUJOCO_LOG.TXT into the working directory.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_mujoco() -> None:
    """Sends MuJoCo's warnings to `warnings`, less its deprecation notes; a handler that is already set stays."""
    if importlib.util.find_spec("mujoco") is None:
        return
    import mujoco  # type: ignore[import-untyped]

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_pass_on)


@contextmanager
def no_version_note_on_failure() -> Iterator[None]:
    """Shows the block's warnings at its end; if it raises, without Gymnasium's note that the version is out of date."""
    failed = True
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
        failed = False
    finally:
        for one in caught:
            is_note = issubclass(one.category, DeprecationWarning) and "is out of date" in str(one.message)
            if not (failed and is_note):
                warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _pass_on(message: str) -> None:
    if "deprecated" in message:
        return
    try:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning as error:
        # Under an "error" filter; MuJoCo calls this from C, where an exception would abort the process.
        sys.stderr.write(f"{error}\n")
