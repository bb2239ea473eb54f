"""All that ``rlseq bench acting`` measures, piece by piece, into a report that goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlseq.bench import acting, contenders, rivals, tables
from rlseq.report import Report

PATIENCE = 30.0
"""Seconds after which the episode ends, at the next mark, of what grows or reads a window again."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        backbones: names, or dotted names of plug-ins.
        engines: each backbone is timed with all of them.
        batches: numbers of rows.
        windows: environment steps that the window-mode Transformers read again at every step.
        steps: of the long episode.
        rounds: turns of each contender.
        threads: of PyTorch and the kernels.
        rivals: Hugging Face's agents beside them.
    """

    backbones: tuple[str, ...]
    engines: tuple[str, ...]
    batches: tuple[int, ...]
    windows: tuple[int, ...]
    steps: int
    rounds: int
    threads: int
    rivals: bool


def rows_of(report: Report, part: str) -> list[dict[str, Any]]:
    """The rows of ``latency`` or ``growth``."""
    return [row for row in report.rows if row["part"] == part]


def measure(plan: Plan, report: Report, parts: Sequence[str], *, quiet: bool = False) -> None:
    """Adds what the report has not: a piece is all contenders at one number of rows, or a contender's long episode.

    Args:
        plan: what is measured.
        report: of the same plan.
        parts: ``latency``, ``growth`` or both.
        quiet: show no progress.

    Raises:
        ConfigError: an engine does not act as it must.
    """
    carried = [one for name in plan.backbones for engine in plan.engines for one in contenders.carried(name, engine)]
    windows = [contenders.window("transformer", steps) for steps in plan.windows]
    theirs = [rivals.window(steps) for steps in plan.windows] if plan.rivals else []
    if "latency" in parts:
        for batch in plan.batches:
            before = rows_of(report, "latency")
            if not any(row["batch"] == batch for row in before):
                every = [*carried, *windows, *theirs]
                rows = acting.latency(every, batch, plan.rounds, before=before, quiet=quiet)
                report.add([{"part": "latency", **row} for row in rows])
    if "growth" not in parts:
        return
    best = tables.best(row for row in rows_of(report, "latency") if row["mode"] == "recurrent")
    carried = [one for one in carried if (one.tokens, one.engine) == best.get(one.name, (None, plan.engines[-1]))]
    done = {(row["label"], row["engine"]) for row in rows_of(report, "growth")}
    for one in (*carried, *windows[:1], *([rivals.cache()] if plan.rivals else [])):
        if (one.label, one.engine) in done:
            continue
        patience = math.inf if one.mode == "recurrent" else PATIENCE
        rows, actions = acting.growth(one, plan.steps, plan.rounds, seconds=patience, quiet=quiet)
        if one.agent is not None:
            rows[-1]["drift"] = acting.drift(one.agent, actions, quiet=quiet)
        report.add([{"part": "growth", **row} for row in rows])
