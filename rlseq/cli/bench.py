"""``rlseq bench``: measures on the user's machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from rlseq.errors import ConfigError, RunError


@dataclass(frozen=True)
class Acting:
    """Times an acting step: untrained agents of 3 layers of width 128, Hopper's sizes.

    latency: microseconds a step for numbers of rows, beside a Transformer that reads a window again at every step and
    Hugging Face's (pip install transformers). growth: one long episode: time, state and memory at its marks, and how
    far the last action is from a run in float64. Some minutes; with --steps 1000000 about an hour.
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
    from rlseq.provenance import provenance

    _check(chosen)
    torch.set_num_threads(chosen.threads)  # after the kernels were loaded: they set what RLSEQ_NUM_THREADS says
    report = _Report(chosen, provenance())
    for _ in _measured(chosen, report):
        report.save()
    printed = {part: getattr(tables, part)(rows) for part in ("latency", "growth") if (rows := report.rows(part))}
    if chosen.json:
        print(json.dumps(report.content))
    else:
        for table in printed.values():
            _print(table)
    if chosen.out is not None:
        text = "\n\n".join(tables.markdown(table) for table in printed.values())
        (chosen.out / "acting.md").write_text(f"{text}\n")
        for part in printed:
            getattr(plots, part)(report.rows(part), chosen.out / f"acting-{part}.png")
        if not chosen.json:
            print(f"Written to {chosen.out}: acting.json, acting.md and the pictures.")


class _Report:
    """Everything that was measured, kept in a file so that a run can go on."""

    def __init__(self, chosen: Acting, where: dict[str, Any]) -> None:
        settings = {key: value for key, value in asdict(chosen).items() if key not in ("out", "json", "parts")}
        settings = json.loads(json.dumps(settings))
        self.content: dict[str, Any] = {"settings": settings, **where, "latency": [], "growth": []}
        self._file = None if chosen.out is None else chosen.out / "acting.json"
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not self._file.exists():
            return
        try:
            before = json.loads(self._file.read_text())
            same = before["settings"] == settings and before["versions"] == where["versions"]
            rows = {part: [dict(row) for row in before[part]] for part in ("latency", "growth")}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"bench acting: {self._file} must be of this command, got {error!r}. Remove it.") from error
        if not same:
            raise RunError(
                f"bench acting: {self._file} must be of the same options and versions, got others. Remove it or give "
                "another --out."
            )
        self.content |= rows

    def rows(self, part: str) -> list[dict[str, Any]]:
        """What was measured."""
        rows: list[dict[str, Any]] = self.content[part]
        return rows

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        if self._file is not None:
            half = self._file.with_suffix(".part")
            half.write_text(json.dumps(self.content, indent=1) + "\n")
            half.replace(self._file)


def _check(chosen: Acting) -> None:
    from rlseq import backbones

    for name in chosen.backbones:
        backbones.load(name)  # one clear error before the first minute of work
    if chosen.out is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('bench acting: --out needs matplotlib, got none. Install it: pip install "rlseq[plot]".')


def _measured(chosen: Acting, report: _Report) -> Iterator[None]:
    """Adds to the report; yields after every piece."""
    from rlseq import backbones
    from rlseq.bench import acting, contenders, rivals, tables

    names = dict.fromkeys(chosen.backbones or backbones.available())
    with_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    usual = ("eager", "onnx") if with_onnx else ("eager",)
    engines = list(dict.fromkeys(chosen.engines or usual))
    quiet = chosen.json
    if not rivals.available() and not quiet:
        print("Without Hugging Face's models: pip install transformers brings them.")
    carried = [contenders.recurrent(name, engine) for name in names for engine in engines]
    lengths = sorted(set(chosen.windows))
    windows = [contenders.window("transformer", steps) for steps in lengths]
    theirs = [rivals.window(steps) for steps in lengths] if rivals.available() else []
    latency, growth = report.rows("latency"), report.rows("growth")
    if "latency" in chosen.parts:
        for batch in sorted(set(chosen.batches)):
            if not any(row["batch"] == batch for row in latency):
                every = [*carried, *windows, *theirs]
                latency += acting.latency(every, batch, chosen.rounds, before=latency, quiet=quiet)
                yield
    if "growth" not in chosen.parts:
        return
    best = {row["name"]: row["engine"] for row in tables.fastest(latency) if row["mode"] == "recurrent"}
    for one in (*carried, *windows[:1], *([rivals.cache()] if rivals.available() else [])):
        steady = one.mode == "recurrent"
        if (steady and one.engine != best.get(one.name, engines[-1])) or any(r["label"] == one.label for r in growth):
            continue
        rows, actions = acting.growth(
            one, chosen.steps, chosen.rounds, seconds=float("inf") if steady else 30.0, quiet=quiet
        )
        if one.agent is not None:
            rows[-1]["drift"] = acting.drift(one.agent, actions, quiet=quiet)
        growth += rows
        yield


def _print(lines: list[list[str]]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print()
