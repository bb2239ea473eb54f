"""The tables of ``rlseq bench acting``: the terminal's and the one for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Table = list[list[str]]


def fastest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the engine that is the fastest with the fewest rows, for every contender."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(row["label"])
        if known is None or (row["batch"], row["us"]) < (known["batch"], known["us"]):
            best[row["label"]] = row
    return [row for row in rows if row["engine"] == best[row["label"]]["engine"]]


def best(rows: Iterable[Row]) -> dict[str, tuple[str | None, str]]:
    """Tokens and engine of the fastest way to act one by one, or with the fewest rows there are, of every name."""
    order = sorted(rows, key=lambda row: (row["batch"], row["us"]), reverse=True)
    return {row["name"]: (row["tokens"], row["engine"]) for row in order}


def latency(rows: Sequence[Row]) -> Table:
    """A line for every contender and engine, microseconds a step for every number of rows; a head first."""
    batches = sorted({row["batch"] for row in rows})
    table = [["contender", "engine", *(f"{batch} rows" if batch > 1 else "1 row" for batch in batches)]]
    for label, engine in dict.fromkeys((row["label"], row["engine"]) for row in rows):
        us = {row["batch"]: row["us"] for row in rows if (row["label"], row["engine"]) == (label, engine)}
        table.append([label, engine, *(f"{us[batch]:,.0f}" if batch in us else "-" for batch in batches)])
    return table


def growth(rows: Sequence[Row]) -> Table:
    """A line for every contender: microseconds a step at some marks, and what the last mark has; a head first.

    spread: the largest over the least of those microseconds, less one. drift: of the last action from float64's.
    """
    longest = max(row["step"] for row in rows)
    marks = [mark for mark in (10, 1_000, 100_000, 10_000_000) if mark < longest] + [longest]
    table = [["contender", *(f"step {mark:,}" for mark in marks), "spread", "state bytes", "process MB", "drift"]]
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        last = own[-1]
        us = {row["step"]: row["us"] for row in own if row["step"] in marks}
        memory = [row["process_megabytes"] for row in own]
        table.append(
            [
                label,
                *(f"{us[mark]:,.0f}" if mark in us else "-" for mark in marks),
                f"{max(us.values()) / min(us.values()) - 1:.0%}",
                f"{last['state_bytes']:,}",
                f"{memory[0]:,.0f} to {memory[-1]:,.0f}",
                f"{last['drift']:.0e}" if "drift" in last else "-",
            ]
        )
    return table


def markdown(table: Table) -> str:
    """As a page of documentation has it."""
    head, *rows = (f"| {' | '.join(line)} |" for line in table)
    return "\n".join([head, "|---" * len(table[0]) + "|", *rows])
