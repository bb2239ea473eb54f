"""``rlseq data``: looks at datasets and records them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from rlseq.cli import collect
from rlseq.cli._print import facts


@dataclass(frozen=True)
class Inspect:
    """Reads a dataset whole and says what is in it."""

    dataset: tyro.conf.Positional[str]
    """minari:ID, d4rl:ID, d4rl:FILE.hdf5, bundled:NAME or a path."""

    json: bool = False
    """Print one JSON object and nothing else."""


def main(arguments: list[str]) -> None:
    """``rlseq data inspect``, ``rlseq data list`` and ``rlseq data collect``."""
    from rlseq import data

    parser = argparse.ArgumentParser(
        prog="rlseq data",
        description="Looks at datasets and records new ones.",
        epilog="Such as: rlseq data collect --env Pendulum-v1 --policy random --episodes 20 --out minari:mine/pend-v0, "
        "then rlseq data inspect minari:mine/pend-v0. rlseq data collect --help explains the policies.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    actions.add_parser("inspect", help="read a dataset and say what is in it", add_help=False)
    actions.add_parser("list", help="name every dataset that can be opened without a path", add_help=False)
    actions.add_parser("collect", help="play a policy in an environment and record a Minari dataset", add_help=False)
    action = parser.parse_args(arguments[:1]).action
    if action == "collect":
        collect.main(arguments[1:])
        return
    if action == "list":
        print("\n".join(data.known_datasets()))
        return
    chosen = tyro.cli(Inspect, prog="rlseq data inspect", args=arguments[1:])
    found = data.summary(data.open_dataset(chosen.dataset))
    if chosen.json:
        print(json.dumps(found))
        return
    console = Console()
    columns = {name: found.pop(name) for name in ("obs", "action")}
    console.print(facts({k: v for k, v in found.items() if v not in (None, {}, [])}))
    for name, rows in columns.items():
        table = Table(name, *rows[0], box=None, pad_edge=False, header_style="bold")
        for index, row in enumerate(rows):
            table.add_row(str(index), *(f"{value:.4g}" for value in row.values()))
        console.print(table)
