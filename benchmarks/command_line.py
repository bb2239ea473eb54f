"""What several scripts do with their command lines: check files and threads before the work, and write it down."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from rlseq.provenance import provenance

MOST_THREADS = 1024
"""As many as ``rlseq bench`` takes; with millions of them the process dies."""


def check_file(parser: argparse.ArgumentParser, file: Path | None) -> None:
    """A usage error where the file could not be written; None is no file."""
    if file is None:
        return
    if not file.parent.is_dir():
        parser.error(f"{file.parent} is no folder; make it first.")
    if file.is_dir():
        parser.error(f"{file} must be a file, got a folder. Give a file in it.")


def check_picture(parser: argparse.ArgumentParser, file: Path | None) -> None:
    """The same for a picture: matplotlib is there, and knows the name's ending."""
    check_file(parser, file)
    if file is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install rlseq[plot].")
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix[1:].lower() not in known:
        parser.error(f"--plot must end in one of {', '.join(known)}, got {file.name}. Choose one of them.")


def threads(text: str) -> int:
    """The type of an option: a number of threads."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_THREADS}, got {text}.")
    return int(text)


def script_provenance() -> dict[str, Any]:
    """``rlseq.provenance.provenance`` with this script's own command."""
    return provenance(shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def set_threads(count: int) -> None:
    """One setting for torch and the kernels."""
    torch.set_num_threads(count)
    os.environ["RLSEQ_NUM_THREADS"] = str(count)
