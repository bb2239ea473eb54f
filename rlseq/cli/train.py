"""``rlseq train``: its options are the fields of the experiment, its agent and its backbone."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import field, fields, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from rlseq.cli._print import print_scores
from rlseq.errors import ConfigError


def main(arguments: list[str]) -> None:
    """``rlseq train``."""
    from rlseq import backbones, config, run
    from rlseq.training import checkpoint

    first = argparse.ArgumentParser(
        prog="rlseq train", usage="%(prog)s [OPTIONS], all shown by %(prog)s --help", add_help=False, allow_abbrev=False
    )
    for name in ("--recipe", "--agent", "--backbone", "--out"):
        first.add_argument(name)
    first.add_argument("--resume", action="store_true")
    known, _ = first.parse_known_args(arguments)
    default = _starting_point(known)
    command = _train_command(default)
    with backbones.plug_in_errors(default.backbone or "", "take its options"):
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
