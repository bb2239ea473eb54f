"""The command line: parsing and printing only; `rlseq.run` does the work. One file a command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rlseq.errors import RlseqError

COMMANDS = {
    "train": "train an agent on a dataset and evaluate it",
    "eval": "evaluate a trained agent in its environment",
    "export": "write a trained agent's acting step as an ONNX file",
    "data": "look at datasets, record new ones",
    "bench": "measure how fast agents act on this machine, and that they stay so",
    "doctor": "say what this installation can do",
}
"""Each is the module of that name and its function ``main``."""
USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="rlseq",
        description="Offline-RL agents that read trajectories as sequences and act in constant time and memory.",
        epilog="rlseq COMMAND --help explains every option of a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(command=name)
    known = parser.parse_args(arguments[:1])
    try:
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.append(folder)  # plug-ins beside the user, as `python -m` finds them, but after what is installed
        importlib.import_module(f"rlseq.cli.{known.command}").main(arguments[1:])
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RlseqError, OSError, MemoryError) as error:
        print(f"rlseq: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        print("rlseq: stopped.", file=sys.stderr)
        return INTERRUPTED_EXIT
    return 0
