"""``rlseq data collect``: plays a policy and records a Minari dataset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tyro
from rich.console import Console

from rlseq.cli._print import facts
from rlseq.errors import ConfigError

HELP = """Plays a policy in an environment and records a Minari dataset with reference scores, ready to train on.

Policies (--policy, --expert):

  random             actions drawn from the action space
  sb3:FILE.zip       a model saved by Stable-Baselines3 (A2C, DDPG, DQN, PPO, SAC, TD3), its most likely actions; a
                     VecNormalize beside it is not read. Loading runs code of the file: open only what you trust.
  RUN                a run folder of rlseq train; --target-return asks for a return
  module:function    called as function(env, seed) at the start of every episode; returns a function that is called
                     with an observation and returns an action. The module lies in this folder or on PYTHONPATH.

Reference scores: 0 is the mean return of the random policy, 1 that of --expert, or else of the policy itself
without noise; --ref-min and --ref-max win over both.

Such as:

  rlseq data collect --env Pendulum-v1 --policy random --episodes 20 --out minari:mine/pendulum-random-v0
  rlseq data collect --env Pendulum-v1 --policy sb3:sac.zip --noise 0.2 --episodes 50 --out minari:mine/pendulum-v0

The dataset is written under $MINARI_DATASETS_PATH (else ~/.minari/datasets) when the last episode has ended, and not
at all if anything fails before."""


@dataclass(frozen=True)
class Collect:
    """The options."""

    env: str
    """Gymnasium id, or module:id for one that a module registers."""

    policy: str
    """random, sb3:FILE.zip, a run folder, or module:function."""

    episodes: int
    """Whole episodes to record; episode i is reset with seed + i."""

    out: str
    """minari:NAMESPACE/NAME-vN, the dataset's name."""

    env_kwargs: tuple[str, ...] = ()
    """KEY=VALUE, arguments of the environment; values are JSON: max_episode_steps=200 'mode="easy"'."""

    seed: int = 0
    """Reset seed of the first episode."""

    noise: float = 0.0
    """Probability, at every step, of a random action instead of the policy's."""

    target_return: float | None = None
    """Raw return to ask a run's agent for. None: its default."""

    expert: str | None = None
    """Policy whose mean return is score 1. None: --policy itself, without noise."""

    ref_min: float | None = None
    """Return that is score 0. None: the random policy's mean."""

    ref_max: float | None = None
    """Return that is score 1. None: see --expert."""

    ref_episodes: int = 20
    """Episodes that a reference policy plays."""

    author: str | None = None
    """Who made the dataset, for its metadata."""

    description: str | None = None
    """What it is, for its metadata."""

    overwrite: bool = False
    """Replace the dataset of this name."""

    json: bool = False
    """Print one JSON object and nothing else."""


def main(arguments: list[str]) -> None:
    """``rlseq data collect``."""
    chosen = tyro.cli(Collect, prog="rlseq data collect", description=HELP, args=arguments)
    from rlseq.collect import collect

    given = {k: v for k, v in vars(chosen).items() if k not in ("env", "policy", "env_kwargs", "json")}
    found = collect(
        chosen.env, chosen.policy, env_kwargs=_env_kwargs(chosen.env_kwargs), progress=not chosen.json, **given
    )
    if chosen.json:
        print(json.dumps(found.as_dict()))
        return
    rows = found.as_dict()
    if rows.pop("no_scores") is None:
        rows["ref_scores"] = f"{rows.pop('ref_min_score'):,.6g} to {rows.pop('ref_max_score'):,.6g}"
    else:
        rows["ref_scores"] = f"none: {found.no_scores}"
        del rows["ref_min_score"], rows["ref_max_score"]
    console = Console()
    console.print(facts(rows))
    lines = (f"Look:    rlseq data inspect {found.dataset}", f"Train:   rlseq train --dataset {found.dataset}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _env_kwargs(pairs: tuple[str, ...]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier() or key in kwargs:
            raise ConfigError(f"collect: --env-kwargs must be KEY=VALUE, each key once, got {pair!r}.")
        try:
            kwargs[key] = json.loads(text)
        except ValueError as error:
            raise ConfigError(
                f"collect: --env-kwargs {key} must be JSON, got {text!r}. A text needs its quotes: '{key}=\"{text}\"'."
            ) from error
    return kwargs
