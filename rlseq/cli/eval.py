"""``rlseq eval``: a trained agent in its environment."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from rlseq.cli._print import print_scores


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

    vectorization: Literal["sync", "async", "native"] = "sync"
    """sync: one environment after the other; async: a process each, for slow ones; native: Gymnasium's vector form of
    the environment, where it has one."""

    engine: Literal["eager", "compiled", "onnx"] = "eager"
    """What runs the agent's steps: eager: PyTorch; compiled: torch.compile, which takes a minute to begin; onnx:
    onnxruntime on the CPU (extra rlseq[onnx]), the fastest for few rows."""

    video: Path | None = None
    """Folder for mp4 files of the best, the median and the worst episode of every mode and target; needs rlseq[video],
    and MuJoCo without a display the environment variable MUJOCO_GL=egl."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    json: bool = False
    """Print one JSON object and nothing else."""


def main(arguments: list[str]) -> None:
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
            vectorization=chosen.vectorization,
            engine=chosen.engine,
            video=chosen.video,
            progress=not chosen.json,
        ).as_dict()
        for mode in asked.mode
        for target in asked.target_return or (agent.target_return,)
    ]
    if chosen.json:
        print(json.dumps({"run": str(chosen.run), "evaluations": rows, **provenance()}))
    else:
        console = Console()
        print_scores(console, rows)
        for file in (file for row in rows for file in row["videos"]):
            console.print(f"Video:  {file}", highlight=False, markup=False, soft_wrap=True)
