"""Keeps MuJoCo's notes about Gymnasium's own models away from users.

MuJoCo 3.17 and 4.0 print a deprecation note when they load them, and write MUJOCO_LOG.TXT into the working directory.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings


def quiet_mujoco() -> None:
    """Sends MuJoCo's warnings to `warnings`, less its deprecation notes; a handler that is already set stays."""
    if importlib.util.find_spec("mujoco") is None:
        return
    import mujoco  # type: ignore[import-untyped]

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_pass_on)


def _pass_on(message: str) -> None:
    if "deprecated" in message:
        return
    try:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning as error:
        # Under an "error" filter; MuJoCo calls this from C, where an exception would abort the process.
        sys.stderr.write(f"{error}\n")
