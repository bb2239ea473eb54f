"""Ctrl-C for a process that a test started."""

from __future__ import annotations

import os
import signal
import subprocess

MAY_BE_INTERRUPTED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""First line of a process's code: where the tests run as a background job, SIGINT is ignored, by their children too."""


def interrupt(process: subprocess.Popen[str], *, group: bool = False) -> tuple[str, str]:
    """Sends SIGINT to a process, or as a terminal does to its group, and returns stdout and stderr of a quick end."""
    try:
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        return process.communicate(timeout=60)
    finally:
        process.kill()
