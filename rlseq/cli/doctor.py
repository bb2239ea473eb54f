"""``rlseq doctor``: what an installation can do."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from rlseq.cli._print import facts


@dataclass(frozen=True)
class Doctor:
    """Says what this installation can do: versions, devices, the implementation of every kernel, the backbones."""

    json: bool = False
    """Print one JSON object and nothing else."""


def main(arguments: list[str]) -> None:
    """``rlseq doctor``."""
    chosen = tyro.cli(Doctor, prog="rlseq doctor", args=arguments)
    from rlseq.doctor import diagnose

    found = diagnose()
    if chosen.json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(facts({**found["versions"], **found["machine"], **found["checks"]}))
    kernels = Table("kernel", "tensors on", "implementation", "", box=None, pad_edge=False, header_style="bold")
    for row in found["kernels"]:
        state = "runs" if row["chosen"] else row["reason"] or "could run"
        kernels.add_row(row["op"], row["device"], row["implementation"], state)
    console.print(kernels)
    shown = Table("backbone", box=None, pad_edge=False, header_style="bold")
    for column in ("parameters", "state bytes", "FLOPs a token"):
        shown.add_column(column, justify="right")
    for row in found["backbones"]:
        shown.add_row(row["name"], *(f"{row[name]:,}" for name in ("parameters", "state_bytes", "step_flops")))
    console.print(shown)
