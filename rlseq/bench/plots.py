"""The pictures of ``rlseq bench acting``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlseq.bench.tables import fastest

STYLES = {"recurrent": "-", "joint": "-.", "window": "--", "cache": ":"}


def latency(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Time of a step and throughput against the batch, a line for the fastest engine of every contender."""
    _draw(
        fastest(rows),
        "batch",
        {"us": "us a step", "rows_per_s": "actions/s"},
        "Acting in the middle of an episode, against the number of rows",
        file,
    )


def growth(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Cumulative time, time of a step and state memory against steps."""
    panels = {"seconds": "cumulative seconds", "us": "us a step", "state_bytes": "bytes of state"}
    _draw(rows, "step", panels, "One episode, against its steps", file)


def _draw(rows: Sequence[dict[str, Any]], over: str, panels: dict[str, str], title: str, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(1.8 + 4.2 * len(panels), 4.4), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in rows))
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        colour, style = f"C{names.index(own[0]['name'])}", STYLES[own[0]["tokens"] or own[0]["mode"]]
        widths = sorted({row["window"] for row in rows if row["window"]})
        mark = "" if own[0]["window"] is None else "osv^D"[widths.index(own[0]["window"]) % 5]
        for panel, field in zip(axes, panels, strict=True):
            points = [(row[over], row[field]) for row in own]
            panel.plot(*zip(*points, strict=True), style, color=colour, marker=mark or ".", markersize=5, label=label)
    for panel, text in zip(axes, panels.values(), strict=True):
        panel.set(xscale="log", yscale="log", xlabel={"batch": "rows", "step": "steps"}[over], ylabel=text)
        panel.grid(alpha=0.3)
        if over == "batch":
            batches = sorted({row["batch"] for row in rows})
            panel.set_xticks(batches, [str(batch) for batch in batches], minor=False)
            panel.set_xticks([], minor=True)
    figure.suptitle(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
