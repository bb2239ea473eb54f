"""The command line of the checker: ``python -m rlseq.conformance NAME | my.module``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from rlseq.backbones import memory_errors, parameter_count, plug_in_errors, state_bytes
from rlseq.conformance import check, subject
from rlseq.errors import RlseqError, UnknownNameError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: a line a law; returns 0 if all are kept, 1 if not, 2 for a wrong name or option."""
    parser = argparse.ArgumentParser(prog="python -m rlseq.conformance", description="Check a backbone's contract.")
    parser.add_argument("backbone", help="a name, or the dotted name of a module with Config and build")
    parser.add_argument("--steps", type=int, default=10_000, help="steps that a state is carried (%(default)s)")
    parser.add_argument("--cases", type=int, default=40, help="random cases a law (%(default)s)")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile (%(default)s)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="one of its options")
    given = parser.parse_args(arguments)
    try:
        options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.option)}
        if given.compiler not in (known := torch.compiler.list_backends(exclude_tags=None)):
            raise UnknownNameError("backend of torch.compile", given.compiler, known)
        tested = subject(given.backbone, options, cases=given.cases, steps=given.steps, compiler=given.compiler)
        with (
            memory_errors(f"conformance: a state of {given.backbone}", " ".join(given.option)),
            plug_in_errors(given.backbone, "make a model and a state"),
        ):
            model = tested.model(torch.float32)
            state = state_bytes(model.init_state(1))
    except json.JSONDecodeError as error:
        parser.error(f"--option must be NAME=JSON, such as window=7, got {error.doc!r} as JSON.")
    except RlseqError as error:
        parser.error(str(error))
    print(f"{given.backbone}: {tested.config}")
    print(f"{parameter_count(model):,} parameters, {state:,} bytes of state a row")
    failures = 0
    for name, broken, seconds in check(tested):
        failures += broken is not None
        print(f"{'BROKEN' if broken else 'kept':8}{name:36}{seconds:7.2f} s", f"\n    {broken}" if broken else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
