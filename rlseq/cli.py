"""The command line: parsing and printing only; `rlseq.run` does the work."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlseq.errors import ConfigError, RlseqError

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="rlseq",
        description="Offline-RL agents that read trajectories as sequences and act in constant time and memory.",
        epilog="rlseq COMMAND --help explains every option of a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (function, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(function=function)
    known = parser.parse_args(arguments[:1])
    try:
        known.function(arguments[1:])
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RlseqError, OSError, MemoryError) as error:
        print(f"rlseq: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        print("rlseq: stopped.", file=sys.stderr)
        return INTERRUPTED_EXIT
    return 0


# --- train ----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """``rlseq train``."""
    from rlseq import config, run
    from rlseq.training import checkpoint

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--agent", "--backbone", "--out"):
        first.add_argument(name)
    first.add_argument("--resume", action="store_true")
    known, _ = first.parse_known_args(arguments)
    default = _starting_point(known)
    command = _train_command(default)
    chosen = tyro.cli(type(command), prog="rlseq train", args=arguments, description=TRAIN_HELP, default=command)
    experiment = config.Experiment(**{f.name: getattr(chosen, f.name) for f in fields(config.Experiment)})
    out = chosen.out if chosen.out is not None else _new_folder(experiment)
    where = shlex.quote(str(out))
    try:
        result = run.train_experiment(
            experiment, out, device=chosen.device, resume=chosen.resume, overwrite=chosen.overwrite
        )
    except KeyboardInterrupt:
        if checkpoint.all_of(out):
            print(f"rlseq: go on with: rlseq train --out {where} --resume", file=sys.stderr)
        raise
    console = Console()
    lines = (
        f"{result['updates']} updates in {result['train_seconds']:.0f} s, "
        f"{result['env_steps_per_s']:,.0f} env-steps/s, {result['parameters']:,} parameters, "
        f"{result['state_bytes']:,} bytes of state, {result['step_flops']:,} FLOPs a token",
        f"Curves:  tensorboard --logdir {where}",
        f"Again:   rlseq eval {where}",
    )
    console.print(lines[0], highlight=False, markup=False, soft_wrap=True)
    if result["evaluations"]:
        print_scores(console, result["evaluations"])
    for line in lines[1:]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


TRAIN_HELP = """Trains an agent on a dataset, evaluates it in its environment, and writes a run folder.

Without options: a Hawk agent on the bundled HalfCheetah dataset. --recipe starts from a row of published or tested
hyper-parameters; --backbone and --agent choose what has options of its own (--backbone.width, --agent.tokens). A recipe
named like the backbone or the agent is taken by itself."""


def _starting_point(known: argparse.Namespace) -> Any:
    """The experiment whose values are the defaults of the options: the resumed run's, or a recipe's."""
    from rlseq import recipes
    from rlseq.run import read_experiment

    if known.resume:
        if known.out is None:
            raise ConfigError("train: --resume must know the run, got no --out. Give --out RUN.")
        if known.recipe is not None:
            raise ConfigError(
                f"train: --resume keeps the run's own options, got --recipe {known.recipe}. Leave it out."
            )
        return read_experiment(Path(known.out))
    backbone = None if known.backbone in (None, "None") else known.backbone
    return recipes.recipe(known.recipe, agent=known.agent, backbone=backbone)


def _train_command(default: Any) -> Any:
    """What tyro reads, a dataclass of the defaults: the experiment, its agent's and backbone's options, the folder."""
    from rlseq import agents, recipes
    from rlseq.backbones import available
    from rlseq.config import Experiment
    from rlseq.training import TrainingConfig

    named = Annotated[str, tyro.conf.arg(help=f"One of {', '.join(agents.AGENTS)}. Its options: --agent.OPTION.")]
    types: dict[str, Any] = {
        "agent": named,
        "agent_options": Annotated[agents.load(default.agent).Config, tyro.conf.arg(name="agent")],
        "training": Annotated[TrainingConfig, tyro.conf.arg(name="")],
    }
    values: dict[str, Any] = {f.name: getattr(default, f.name) for f in fields(Experiment)}
    if values["agent_options"] is None:
        values["agent_options"] = agents.load(default.agent).Config()
    if default.backbone is None:
        types |= dict.fromkeys(("backbone", "backbone_options"), Annotated[None, tyro.conf.Suppress])
    else:
        text = f"One of {', '.join(available())}, or a plug-in's dotted name. Its options: --backbone.OPTION."
        types |= {
            "backbone": Annotated[str, tyro.conf.arg(help=text)],
            "backbone_options": Annotated[type(default.backbone_options), tyro.conf.arg(name="backbone")],
        }
    rows = ", ".join(recipes.RECIPES)
    types |= {
        "recipe": Annotated[str | None, tyro.conf.arg(help=f"Where the defaults come from: {rows}.")],
        "out": Annotated[Path | None, tyro.conf.arg(help="Run folder. None: runs/DATASET-BACKBONE-seedN-TIME.")],
        "resume": Annotated[bool, tyro.conf.arg(help="Go on from the last checkpoint in --out.")],
        "overwrite": Annotated[bool, tyro.conf.arg(help="Replace the run in --out.")],
        "device": Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or cuda:N.")],
    }
    values |= {"recipe": None, "out": None, "resume": False, "overwrite": False, "device": "auto"}
    made = make_dataclass(
        "Train", [(k, v, field(default=None)) for k, v in types.items()], bases=(Experiment,), frozen=True, kw_only=True
    )
    return made(**values)


def _new_folder(experiment: Any) -> Path:
    name = experiment.dataset.split(":")[-1].rsplit("/", 1)[-1].removesuffix(".hdf5")
    model = (experiment.backbone or experiment.agent).rsplit(".", 1)[-1]
    return Path("runs") / f"{name}-{model}-seed{experiment.seed}-{datetime.now():%Y%m%d-%H%M%S}"


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


# --- eval -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eval:
    """Rolls a trained agent out in its environment and prints its scores."""

    run: tyro.conf.Positional[Path]
    """Run folder that `rlseq train` wrote, or one of its checkpoints."""

    episodes: int = 10
    """Episodes for every target return and mode."""

    target_return: tuple[float, ...] = ()
    """Raw returns to ask for. Empty: as after the training."""

    mode: tuple[Literal["recurrent", "window"], ...] = ()
    """recurrent carries the state, O(1) a step; window re-reads the last K steps. Empty: as after the training."""

    env: str | None = None
    """Gymnasium id. None: as after the training."""

    seed: int | None = None
    """Reset seed of the first episode; the next ones count up from it. None: as after the training."""

    num_envs: int | None = None
    """Environments side by side. None: one for every episode, at most 16."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    json: bool = False
    """Print one JSON object and nothing else."""


def evaluate(arguments: list[str]) -> None:
    """``rlseq eval``."""
    chosen = tyro.cli(Eval, prog="rlseq eval", args=arguments)
    from rlseq import evaluation, run
    from rlseq.provenance import provenance

    agent, experiment = run.load_with_experiment(chosen.run, chosen.device)
    given: dict[str, Any] = {
        "target_return": chosen.target_return,
        "mode": chosen.mode,
        "seed": chosen.seed,
        "env": chosen.env,
    }
    asked = replace(experiment.eval, **{k: v for k, v in given.items() if v not in (None, ())})
    rows = [
        evaluation.evaluate(
            agent,
            asked.env,
            episodes=chosen.episodes,
            target_return=target,
            seed=asked.seed,
            mode=mode,
            num_envs=chosen.num_envs,
            progress=not chosen.json,
        ).as_dict()
        for mode in asked.mode
        for target in asked.target_return or (agent.target_return,)
    ]
    if chosen.json:
        print(json.dumps({"run": str(chosen.run), "evaluations": rows, **provenance()}))
    else:
        print_scores(Console(), rows)


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspect:
    """Reads a dataset whole and says what is in it."""

    dataset: tyro.conf.Positional[str]
    """minari:ID, d4rl:ID, d4rl:FILE.hdf5, bundled:NAME or a path."""

    json: bool = False
    """Print one JSON object and nothing else."""


def datasets(arguments: list[str]) -> None:
    """``rlseq data inspect`` and ``rlseq data list``."""
    from rlseq import data

    parser = argparse.ArgumentParser(prog="rlseq data")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    actions.add_parser("inspect", help="read a dataset and say what is in it", add_help=False)
    actions.add_parser("list", help="name every dataset that can be opened without a path", add_help=False)
    if parser.parse_args(arguments[:1]).action == "list":
        print("\n".join(data.known_datasets()))
        return
    chosen = tyro.cli(Inspect, prog="rlseq data inspect", args=arguments[1:])
    facts = data.summary(data.open_dataset(chosen.dataset))
    if chosen.json:
        print(json.dumps(facts))
        return
    console = Console()
    columns = {name: facts.pop(name) for name in ("obs", "action")}
    console.print(_facts({k: v for k, v in facts.items() if v not in (None, {}, [])}))
    for name, rows in columns.items():
        table = Table(name, *rows[0], box=None, pad_edge=False, header_style="bold")
        for index, row in enumerate(rows):
            table.add_row(str(index), *(f"{value:.4g}" for value in row.values()))
        console.print(table)


def _facts(values: dict[str, Any]) -> Table:
    """Two columns, name and value."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, Text(f"{value:,.6g}" if isinstance(value, float) else str(value)))
    return table


# --- doctor ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doctor:
    """Says what this installation can do: versions, devices, the implementation of every kernel, the backbones."""

    json: bool = False
    """Print one JSON object and nothing else."""


def doctor(arguments: list[str]) -> None:
    """``rlseq doctor``."""
    chosen = tyro.cli(Doctor, prog="rlseq doctor", args=arguments)
    from rlseq.doctor import diagnose

    found = diagnose()
    if chosen.json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(_facts({**found["versions"], **found["machine"], **found["checks"]}))
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


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (train, "train an agent on a dataset and evaluate it"),
    "eval": (evaluate, "evaluate a trained agent in its environment"),
    "data": (datasets, "look at datasets"),
    "doctor": (doctor, "say what this installation can do"),
}
