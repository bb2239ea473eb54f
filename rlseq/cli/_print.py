"""Tables that several commands print; none is folded in a window of 60 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_scores(console: Console, rows: list[dict[str, Any]]) -> None:
    """A table of evaluations, a row each."""
    # As wide as 60 columns allow: nothing is folded in a narrow window.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("mode", no_wrap=True)
    for name in ("target", "return", "normalized\nx100", "epi-\nsodes", "us a\nstep", "state\nbytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        score = row["normalized_score"]
        table.add_row(
            row["mode"],
            f"{row['target_return']:.0f}",
            f"{row['return_mean']:.0f} ± {row['return_std']:.0f}",
            "-" if score is None else f"{100 * score:.1f}",
            str(row["episodes"]),
            f"{row['act_us']:.0f}",
            f"{row['state_bytes']:,}",
        )
    console.print(table)


def facts(values: dict[str, Any]) -> Table:
    """Two columns, name and value."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, Text(f"{value:,.6g}" if isinstance(value, float) else str(value)))
    return table
