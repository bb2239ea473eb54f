"""Markdown tables of the scores in run folders: mean ± deviation over seeds (worst seed), seeds x episodes.

python benchmarks/scores.py RUN [RUN ...] [--plot FILE.png]

There is a table for each dataset, with a row for each agent and a column for each mode and target return; an option in
which the runs of one name differ stands in the name, and each seed counts once. Besides ``result.json``, files that
``rlseq eval RUN --json > RUN/eval-NAME.json`` wrote are read. The last checkpoint counts, never the best. The picture
has a panel for every dataset and target, a line for every agent, a dot for every seed and a bar at their mean.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command_line import check_picture

from rlseq.errors import RunError

SCORES = (
    "mode",
    "target_return",
    "normalized_score",
    "return_mean",
    "episodes",
    "act_us",
    "num_envs",
    "state_bytes",
)
COLOURS = {"recurrent": "tab:blue", "window": "tab:orange"}


class Group(NamedTuple):
    """What a row of the table is about."""

    dataset: str
    agent: str
    mode: str
    target: float


Rows = Sequence[dict[str, Any]]
Groups = Mapping[Group, Rows]


class Run(NamedTuple):
    """What a finished folder says."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """Evaluations, each with the file that has it and what the training took."""


def name_of(config: dict[str, Any]) -> str:
    """The agent, as a reader calls it."""
    options = config["agent_options"]
    if config["backbone"] is not None:
        cut = f"K={config['window']}" if config["regime"] == "window" else f"{config['regime']}, K={config['window']}"
        more = ", carried" * config["training"]["carry_state"] + ", previous action" * options["previous_action"]
        return f"{config['backbone']}, {options['tokens']}, {cut}{more}"
    name = "BC" if not options["return_conditioned"] else "K=1 MLP on (return-to-go, obs)"
    return name if config["top"] == 1 else f"{name}, best {100 * config['top']:.0f} %"


def dataset_of(config: dict[str, Any]) -> str:
    """The dataset without its source."""
    return config["dataset"].split("/", 1)[-1]


def names_of(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each run, with the options in which it differs from others that ``name_of`` calls the same."""
    names, options = [name_of(config) for config in configs], [dict(flat(config)) for config in configs]
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, own in zip(names, options, strict=True):
        alike[name].append(own)
    found = []
    for name, own in zip(names, options, strict=True):
        known = dict.fromkeys(option for one in alike[name] for option in one)
        differing = [option for option in known if any(one.get(option) != own.get(option) for one in alike[name])]
        told = [f"{option.split('.', 1)[-1]}={own[option]}" for option in differing if option in own]
        found.append(", ".join([name, *told]))
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What decides a training, but for its seed and its dataset, by dotted names."""
    for key, value in config.items():
        name = prefix + key
        if isinstance(value, dict):
            yield from () if name == "eval" else flat(value, f"{name}.")
        elif name not in ("seed", "dataset"):
            yield name, value


def fits(key: str, value: object) -> bool:
    """Whether a row of evaluations may have it; a dataset without reference scores has no normalized score."""
    if key == "mode":
        return isinstance(value, str) and value in COLOURS
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number or (key == "normalized_score" and value is None)


def load(run: Path) -> Run:
    """A finished folder.

    Raises:
        RunError: a file of it is not whole.
    """
    try:
        config, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
        name_of(config)
        dataset_of(config)
        took = {key: result[key] for key in ("updates", "train_seconds", "env_steps_per_s", "parameters")}
        rows = []
        for file in (run / "result.json", *sorted(run.glob("eval-*.json"))):
            for scores in json.loads(file.read_text())["evaluations"]:
                row = {key: scores[key] for key in SCORES} | took
                for key, value in row.items():
                    if not fits(key, value):
                        raise TypeError(f"{key} is {value!r}")
                row |= {"file": file, "seed": config["seed"]}
                if row["normalized_score"] is None:  # the dataset has no reference scores
                    row["normalized_score"] = math.nan
                rows.append(row)
        if not rows:
            raise ValueError("no evaluation")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise RunError(f"scores: {run} must hold a whole run, got {told}. Train it again, or leave it out.") from error
    return Run(config, rows)


def read(folders: Sequence[Path]) -> Groups:
    """The evaluations of all seeds by group; a folder without a result is named and left out.

    Raises:
        RunError: a folder is not whole, or a group has one seed twice.
    """
    finished = []
    for folder in folders:
        if (folder / "result.json").is_file():
            finished.append(load(folder))
        else:
            what = "is not finished" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
            print(f"{folder} {what}: left out", file=sys.stderr)
    groups: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    for run, name in zip(finished, names_of([run.config for run in finished]), strict=True):
        dataset = dataset_of(run.config)
        for row in run.rows:
            group = groups[Group(dataset, name, row["mode"], row["target_return"])]
            for other in group:
                if other["seed"] == row["seed"]:
                    what = f"{dataset}, {name}, {row['mode']}, {row['target_return']:.0f}"
                    raise RunError(
                        f"scores: a row must have each seed once, got seed {row['seed']} of {what} "
                        f"in {other['file']} and {row['file']}. Leave one out."
                    )
            group.append(row)
    return dict(sorted(groups.items()))


def print_tables(groups: Groups) -> None:
    """Markdown: a table for each dataset, with a row for each agent and a column for each mode and target."""
    for dataset in dict.fromkeys(group.dataset for group in groups):
        own = {group: rows for group, rows in groups.items() if group.dataset == dataset}
        asked = sorted({(group.mode, group.target) for group in own})
        modes = sorted({mode for mode, _ in asked})
        header = ["agent", *(f"{mode}, {target:g}" for mode, target in asked), "train s", "env-steps/s"]
        header += [f"{what}, {mode}" for what in ("us a call (rows)", "state bytes") for mode in modes]
        print(f"\n{dataset}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for agent in dict.fromkeys(group.agent for group in own):
            found = {(group.mode, group.target): rows for group, rows in own.items() if group.agent == agent}
            print(f"| {agent} | {' | '.join(cells(found, asked, modes))} |")


def cells(found: Mapping[tuple[str, float], Rows], asked: Sequence[tuple[str, float]], modes: list[str]) -> list[str]:
    """An agent's row after its name: scores, then medians over seeds of what training and acting took."""
    first = next(iter(found.values()))
    of_mode = {mode: rows for (mode, _), rows in found.items()}
    calls = {
        mode: f"{np.median([row['act_us'] for row in rows]):,.0f} ({rows[0]['num_envs']})"
        for mode, rows in of_mode.items()
    }
    return [
        *(score(found.get(each, ())) for each in asked),
        f"{np.median([row['train_seconds'] for row in first]):.0f}",
        f"{np.median([row['env_steps_per_s'] for row in first]):,.0f}",
        *(calls.get(mode, "") for mode in modes),
        *(f"{of_mode[mode][0]['state_bytes']:,}" if mode in of_mode else "" for mode in modes),
    ]


def score(rows: Rows) -> str:
    """Mean x100, deviation over seeds, worst seed, seeds x episodes; the return where there are no reference scores."""
    if not rows:
        return ""
    normalized = 100 * np.array([row["normalized_score"] for row in rows])
    many = f"{len(rows)} x {rows[0]['episodes']}"
    if np.isnan(normalized).any():
        return f"return {np.mean([row['return_mean'] for row in rows]):.0f}, {many}"
    return f"{normalized.mean():.1f} ± {normalized.std():.1f} ({normalized.min():.1f}), {many}"


def plot(groups: Groups, file: Path) -> None:
    """A panel for every dataset and target."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    panels = sorted({(group.dataset, group.target) for group in groups})
    agents = sorted({group.agent for group in groups}, reverse=True)
    size = (2.4 + 3.2 * len(panels), 1.2 + 0.28 * len(agents))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for (dataset, target), panel in zip(panels, axes[0], strict=True):
        for group, rows in groups.items():
            if (group.dataset, group.target) != (dataset, target):
                continue
            score = 100 * np.array([row["normalized_score"] for row in rows])
            height = agents.index(group.agent) + (0.15 if group.mode == "recurrent" else -0.15)
            colour = COLOURS[group.mode]
            panel.scatter(score, [height] * len(score), s=14, color=colour, alpha=0.6)
            panel.plot([score.mean()] * 2, [height - 0.15, height + 0.15], color=colour, linewidth=2)
        panel.set_yticks(range(len(agents)), agents, fontsize=8)
        panel.set_title(f"{dataset}\ntarget {target:.0f}", fontsize=9)
        panel.set_xlabel("score x100")
        panel.grid(axis="x", alpha=0.3)
    marks = [plt.Line2D([], [], color=colour, marker="o", label=mode) for mode, colour in COLOURS.items()]
    figure.legend(handles=marks, loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Reads the folders, prints the tables and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that `rlseq train` wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it (needs matplotlib)")
    options = parser.parse_args()
    check_picture(parser, options.plot)
    try:
        groups = read(options.runs)
    except RunError as error:
        parser.error(str(error))
    if not groups:
        parser.error("no finished run among the folders.")
    print_tables(groups)
    if options.plot is not None:
        plot(groups, options.plot)


if __name__ == "__main__":
    main()
