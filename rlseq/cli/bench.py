"""``rlseq bench``: measures on the user's machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from rich.table import Table

from rlseq.errors import ConfigError

if TYPE_CHECKING:
    from rlseq.bench.measure import Plan


@dataclass(frozen=True)
class Acting:
    """Times an acting step: untrained agents of 3 layers of width 128, Hopper's sizes.

    latency: microseconds a step for numbers of rows, beside a Transformer that reads a window again at every step and
    Hugging Face's (pip install transformers). growth: one long episode of each backbone, with the engine and tokens
    that latency found fastest (without it the last engine, the usual tokens): time, state and memory at its marks, and
    how far the last action is from a run in float64. Some minutes; with --steps 1000000 more than an hour.
    """

    backbones: tuple[str, ...] = ()
    """Names, or dotted names of plug-ins. Empty: all."""

    engines: tuple[Literal["eager", "compiled", "onnx"], ...] = ()
    """Engines to time; compiled takes a minute for each backbone and number of rows. Empty: eager, and onnx where it
    is installed."""

    batches: tuple[int, ...] = (1, 16, 64, 256)
    """Numbers of rows that act at once."""

    windows: tuple[int, ...] = (20, 100, 1000)
    """Environment steps that the window-mode Transformers read again at every step."""

    steps: int = 10_000
    """Steps of the long episode. What grows, or reads a window again, stops at the first mark after half a minute."""

    parts: tuple[Literal["latency", "growth"], ...] = ("latency", "growth")
    """What to measure."""

    rounds: int = 7
    """Turns of each contender; figures are medians."""

    threads: int = 1
    """Of PyTorch and the kernels; onnxruntime always has one."""

    out: Path | None = None
    """Folder for acting.json, acting.md, acting-latency.png and acting-growth.png (pip install "rlseq[plot]").
    The same command goes on where it was stopped."""

    json: bool = False
    """Print one JSON object and nothing else."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("parts", "batches", "windows"):
            if not getattr(self, name):
                raise ConfigError(f"bench acting: --{name} must have a value, got none. Leave it out for the default.")
        for name in ("batches", "windows"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"bench acting: --{name} must be at least 1, got {min(getattr(self, name))}.")
        for name, most in (("steps", 10**9), ("rounds", 10**6), ("threads", 1024)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"bench acting: --{name} must be in 1 to {most}, got {getattr(self, name)}.")


def main(arguments: list[str]) -> None:
    """``rlseq bench acting``."""
    parser = argparse.ArgumentParser(
        prog="rlseq bench",
        description="Measures on this machine.",
        epilog="Such as: rlseq bench acting --out figures. rlseq bench acting --help explains what is measured.",
    )
    parser.add_subparsers(title="measurements", metavar="WHAT", required=True).add_parser(
        "acting", help="time and memory of an acting step, against rows and steps", add_help=False
    )
    parser.parse_args(arguments[:1])
    chosen = tyro.cli(Acting, prog="rlseq bench acting", args=arguments[1:])
    import torch

    from rlseq.bench import plots, tables
    from rlseq.bench.measure import measure, rows_of
    from rlseq.provenance import provenance
    from rlseq.report import Report

    plan = _plan(chosen)
    torch.set_num_threads(plan.threads)  # after the kernels were loaded: they set what RLSEQ_NUM_THREADS says
    report = Report(None if chosen.out is None else chosen.out / "acting.json", asdict(plan), provenance())
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
    if not plan.rivals and not chosen.json:
        print("Without Hugging Face's models: pip install transformers brings them.")
    measure(plan, report, chosen.parts, quiet=chosen.json)
    found = {part: rows for part in ("latency", "growth") if (rows := rows_of(report, part))}
    printed = {part: getattr(tables, part)(rows) for part, rows in found.items()}
    if chosen.json:
        print(json.dumps(report.content()))
    else:
        for table in printed.values():
            _print(table)
    if chosen.out is not None:
        text = "\n\n".join(tables.markdown(table) for table in printed.values())
        (chosen.out / "acting.md").write_text(f"{text}\n")
        for part, rows in found.items():
            getattr(plots, part)(rows, chosen.out / f"acting-{part}.png")
        if not chosen.json:
            print(f"Written to {chosen.out}: acting.json, acting.md and the pictures.")


def _plan(chosen: Acting) -> Plan:
    """What was chosen, with what is installed in place of what was left out; one clear error before any work."""
    from rlseq import backbones
    from rlseq.bench import rivals
    from rlseq.bench.measure import Plan

    for name in chosen.backbones:
        backbones.load(name)
    if chosen.out is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('bench acting: --out needs matplotlib, got none. Install it: pip install "rlseq[plot]".')
    with_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    usual = ("eager", "onnx") if with_onnx else ("eager",)
    return Plan(
        backbones=tuple(dict.fromkeys(chosen.backbones or backbones.available())),
        engines=tuple(dict.fromkeys(chosen.engines or usual)),
        batches=tuple(sorted(set(chosen.batches))),
        windows=tuple(sorted(set(chosen.windows))),
        steps=chosen.steps,
        rounds=chosen.rounds,
        threads=chosen.threads,
        rivals=rivals.available(),
    )


def _print(lines: list[list[str]]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print()
