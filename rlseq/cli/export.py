"""``rlseq export``: a trained agent's acting step as a file for onnxruntime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from rlseq.cli._print import facts


@dataclass(frozen=True)
class Export:
    """Writes one acting step of a trained agent as an ONNX graph: state in, state out, all scaling inside.

    The file acts with onnxruntime and numpy alone (examples/act_from_onnx.py), any number of rows at once, or through
    rlseq.load_policy. It is compared with PyTorch over some steps before it is written.
    """

    run: tyro.conf.Positional[Path]
    """Run folder that `rlseq train` wrote, or one of its checkpoints."""

    file: tyro.conf.Positional[Path]
    """Where to write, such as policy.onnx."""

    mode: Literal["recurrent", "window"] = "recurrent"
    """recurrent carries the state, O(1) a step; window re-reads the last K steps."""

    window: int | None = None
    """Environment steps that window mode reads. None: the training window."""

    overwrite: bool = False
    """Replace the file."""

    json: bool = False
    """Print one JSON object and nothing else."""


def main(arguments: list[str]) -> None:
    """``rlseq export``."""
    chosen = tyro.cli(Export, prog="rlseq export", args=arguments)
    from rlseq.provenance import provenance
    from rlseq.run import load

    agent = load(chosen.run, "cpu")
    difference = agent.export(
        chosen.file,
        mode=chosen.mode,
        window=chosen.window,
        overwrite=chosen.overwrite,
        facts={"run": str(chosen.run), **provenance()},
    )
    found = {
        "file": str(chosen.file),
        "bytes": chosen.file.stat().st_size,
        "mode": chosen.mode,
        "state bytes a row": agent.policy(1, mode=chosen.mode, window=chosen.window).state_bytes,
        "largest difference from PyTorch": difference,
    }
    if chosen.json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(facts(found))
    console.print(f"Act: python examples/act_from_onnx.py {chosen.file}", highlight=False, markup=False, soft_wrap=True)
