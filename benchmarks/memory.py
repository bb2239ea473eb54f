"""How long agents remember: trained on T-Maze corridors of at most 900 steps, asked in ones of up to 1,000,000.

python benchmarks/memory.py --out FOLDER [--backbones hawk aaren] [--lengths 100 900 9600 100000 1000000] [--plot FILE]
python benchmarks/memory.py --out FOLDER --corridor 30 --lengths 30 300

The task is the passive T-Maze (docs/envs.md): a cue in the first step, a corridor of T steps in which nothing happens,
and a turn that has to match the cue; a success rate of 50 % is chance. For every agent the script runs one ``rlseq
train`` command, which it prints, on 1,000 episodes of the optimal policy whose lengths are log-uniform in [1, 900], and
then plays --episodes episodes side by side in each length, shortest first. An agent is asked until it fails once: the
first length in which an episode is lost is its last. The published agent, a Transformer that re-reads the last 128
steps, is asked at 127 and 128 too: there the cue leaves its window. The agents are

NAMES

FOLDER gets a run folder and a JSON file a run. After a kill the same command goes on: with a training from its last
checkpoint, with a corridor from its first step. More --lengths, --seed or --backbones may be given later.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import check_picture, script_provenance, threads

import rlseq
from rlseq.agents import Policy
from rlseq.agents.engines import ENGINES
from rlseq.cli import INTERRUPTED_EXIT, USAGE_EXIT
from rlseq.cli import main as rlseq_command
from rlseq.envs.t_maze import TMazeVectorEnv
from rlseq.errors import RlseqError, RunError
from rlseq.evaluation import rollout
from rlseq.progress import ProgressBar
from rlseq.report import write_json
from rlseq.t_maze_data import write_minari
from rlseq.training.checkpoint import all_of

LENGTHS = (100, 900, 9_600, 100_000, 1_000_000)
EPISODES, FIRST_EVALUATION_SEED = 1000, 1_000_000  # of the data; its own episodes have the seeds from 0
STEPS_PER_UPDATE, WINDOW = 3600, 128
DATASET = "t-maze/passive-{}-v0"
COMMON = shlex.split(
    "--recipe default --agent.tokens joint --agent.timestep-embedding False --backbone.width 32 --optim.lr 3e-3"
    " --optim.weight-decay 0 --optim.warmup 50 --optim.clip 1 --eval.during 0 --eval.episodes 0"
)


@dataclass(frozen=True)
class Recipe:
    """What one agent is, how long it trains, how it acts."""

    what: str
    backbone: str
    options: str
    updates: int = 600
    window: int | None = None
    """Steps that the agent re-reads in window mode, and trains on; None: recurrent, trained on whole episodes."""

    def within(self, corridor: int) -> int | None:
        """The window where the longest episode of the training has corridor + 1 steps."""
        return None if self.window is None else min(self.window, corridor + 1)


HOLD = "--backbone.decay-init hold"
FULL = "--backbone.preset modern --backbone.dropout 0 --backbone.heads 4 --backbone.depth 2"
RECIPES = {
    "aaren": Recipe("norm and MLP as Hawk's", "aaren", "--backbone.norm rms --backbone.mlp gated --backbone.depth 2"),
    "flash": Recipe("four layers, chunks of 64 steps", "flash", "--backbone.depth 4", 2000),
    "gau": Recipe("four layers, a window of the longest corridor", "gau", "--backbone.depth 4"),
    "griffin": Recipe("three layers, decay_init hold, window 64", "griffin", f"{HOLD} --backbone.depth 3", 400),
    "hawk": Recipe("two layers, decay_init hold", "hawk", f"{HOLD} --backbone.depth 2", 400),
    "hybrid": Recipe("rec, aaren, local; decay_init hold", "hybrid", "--backbone.rec.decay-init hold", 400),
    "transformer": Recipe("two layers, rotary positions, a window of the longest corridor", "transformer", FULL),
    "transformer-window": Recipe(f"the same in window mode, {WINDOW} steps", "transformer", FULL, window=WINDOW),
    "hawk-paper": Recipe("decay_init paper", "hawk", "--backbone.decay-init paper --backbone.depth 2", 400),
}
Result = dict[str, Any]


def command(recipe: Recipe, corridor: int, seed: int, updates: int | None) -> list[str]:
    """The arguments of ``rlseq``, without what does not decide the result."""
    regime, window = "pack" if recipe.window is None else "window", recipe.within(corridor) or corridor + 1
    cut = ["--regime", regime, "--window", str(window)]
    length = ["--batch-size", str(max(1, STEPS_PER_UPDATE // window)), "--updates", str(updates or recipe.updates)]
    backbone = ["--backbone", recipe.backbone, *shlex.split(recipe.options)]
    dataset = ["--dataset", f"minari:{DATASET.format(corridor)}"]
    return ["train", *dataset, *COMMON, *backbone, *cut, *length, "--seed", str(seed)]


def write_data(out: Path, corridor: int) -> None:
    """Writes the dataset if it is not there. It is the same for every seed of a training."""
    os.environ["MINARI_DATASETS_PATH"] = str(out.resolve() / "datasets")
    name = DATASET.format(corridor)
    if not (out / "datasets" / name).exists():
        lengths = (1, corridor)
        write_minari(name, kind="passive", length=lengths, episodes=EPISODES, seed=0, distribution="log-uniform")


def train(arguments: list[str], folder: Path) -> None:
    """Runs the command, or goes on with it; what it prints, but for the progress, goes into a file beside the folder.

    Raises:
        SystemExit: it failed, and has said why.
        KeyboardInterrupt: it was stopped.
    """
    place = ["--out", str(folder), "--device", "cpu"]
    if all_of(folder):
        given = ["train", *place, "--resume"]  # the folder knows its options, and a recipe is refused beside --resume
    else:
        given = [*arguments, "--checkpoint-every", "100", *place, *(["--overwrite"] if folder.exists() else [])]
    with open(folder.with_suffix(".log"), "a") as log, contextlib.redirect_stdout(log):
        code = rlseq_command(given)
    if code == INTERRUPTED_EXIT:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def ask(policy: Policy, length: int, label: str) -> dict[str, Any]:
    """Plays an episode in every row of the policy, all in corridors of one length."""
    episodes = policy.num_envs
    mazes = TMazeVectorEnv(episodes, "passive", length)
    with ProgressBar(f"{label}, {length:,} steps", length + 1) as bar:

        def show(finished: int, calls: int) -> None:
            if calls % 1000 == 0 or calls == length + 1:
                bar.update(calls, f"{finished} episodes done")

        played = rollout(policy, mazes, range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes), on_step=show)
    return {
        "episodes": episodes,
        "success": float(np.mean(played.returns)),
        "walked": int(played.terminated.sum()),
        "seconds": played.act_seconds + played.env_seconds,
    }


@dataclass(frozen=True)
class Run:
    """An agent and a seed with the options of the command line, and its files."""

    name: str
    seed: int
    options: argparse.Namespace

    @property
    def label(self) -> str:
        """What it is called in its folder."""
        return f"{self.name}-{self.seed}"

    @property
    def file(self) -> Path:
        """The result, as far as it is known."""
        return self.options.out / f"{self.label}.json"

    @property
    def folder(self) -> Path:
        """The training's."""
        return self.options.out / self.label

    @property
    def arguments(self) -> list[str]:
        """The training's, for ``rlseq``."""
        return command(RECIPES[self.name], self.options.corridor, self.seed, self.options.updates)

    def kept(self) -> Result:
        """What the folder has of this run.

        Raises:
            RunError: it has the run with other settings, or a file that is not whole.
        """
        settings = {"agent": self.name, "seed": self.seed, "command": shlex.join(["rlseq", *self.arguments])}
        if not self.file.exists():
            if self.folder.exists():
                raise RunError(f"run: {self.folder} must have {self.file.name} beside it, got none. Remove the folder.")
            return {"settings": settings, "lengths": {}}
        try:
            result: Result = json.loads(self.file.read_text())
            same = result["settings"] == settings
            rows = {int(found["episodes"]) for found in result["lengths"].values()}
            lost = {int(length) for length, found in result["lengths"].items() if not 0 <= found["success"] <= 1}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise RunError(f"run: {self.file} must hold a result, got {told}. Remove it and {self.folder}.") from error
        if not same:
            raise RunError(f"run: {self.file} must have this run's settings, got others. Give another --out.")
        if lost:
            raise RunError(f"run: {self.file} must have rates in [0, 1], got others at {lost}. Remove the file.")
        if rows - {self.options.episodes}:
            raise RunError(
                f"run: {self.file} must have {self.options.episodes} episodes a length, got "
                f"{', '.join(map(str, sorted(rows)))}. Give --episodes, or another --out."
            )
        return result

    def result(self) -> Result:
        """Read as far as it is there, else the agent is trained and asked.

        Raises:
            SystemExit: the training failed, and has said why.
        """
        result, engine = self.kept(), self.options.engine
        write_json(self.file, result)
        if "parameters" not in result:
            print(result["settings"]["command"], flush=True)
            write_data(self.options.out, self.options.corridor)
            if not (self.folder / "result.json").exists():
                train(self.arguments, self.folder)
            try:
                trained = json.loads((self.folder / "result.json").read_text())
                result |= {key: trained[key] for key in ("updates", "train_seconds", "parameters", "state_bytes")}
            except (ValueError, LookupError, TypeError) as error:
                raise RunError(f"run: {self.folder} must hold a result, got {error!r}. Remove it.") from error
            result["provenance"] = script_provenance()
            write_json(self.file, result)
        policy, window, found = None, RECIPES[self.name].within(self.options.corridor), result["lengths"]
        edges = [] if window is None else [window - 1, window]
        for length in sorted({*self.options.lengths, *edges, *map(int, found)}):
            if str(length) not in found:
                if policy is None:
                    mode = "recurrent" if window is None else "window"
                    agent = rlseq.load(self.folder, device="cpu")
                    policy = agent.policy(self.options.episodes, mode=mode, window=window, engine=engine)
                when = {key: value for key, value in script_provenance().items() if key in ("date", "commit")}
                found[str(length)] = {**ask(policy, length, self.label), "engine": engine, **when}
                write_json(self.file, result)
            if found[str(length)]["success"] < 1:
                break
        return result


def curve(result: Result) -> list[tuple[int, float]]:
    """(length, success rate), shortest first."""
    return sorted((int(length), found["success"]) for length, found in result["lengths"].items())


def solved(result: Result) -> int:
    """The longest corridor of those before the first that was not solved in every episode; 0 if there is none."""
    longest = 0
    for length, success in curve(result):
        if success < 1:
            break
        longest = length
    return longest


def print_table(results: Sequence[Result]) -> None:
    """A row an agent and seed."""
    lengths = sorted({int(length) for one in results for length in one["lengths"]})
    heads = ["agent", "seed", "updates", "train s", "parameters", "state bytes", "longest solved"]
    print(f"\n| {' | '.join([*heads, *(f'{length:,}' for length in lengths)])} |")
    print("|---" * (len(heads) + len(lengths)) + "|")
    for one in results:
        rates = dict(curve(one))
        cells = [
            one["settings"]["agent"],
            one["settings"]["seed"],
            f"{one['updates']:,}",
            f"{one['train_seconds']:.0f}",
        ]
        cells += [f"{one['parameters']:,}", f"{one['state_bytes']:,}", f"{solved(one):,}" if solved(one) else "none"]
        cells += [f"{100 * rates[length]:.0f} %" if length in rates else "" for length in lengths]
        print(f"| {' | '.join(map(str, cells))} |")
    sys.stdout.flush()


def plot(results: Sequence[Result], corridor: int, file: Path) -> None:
    """Success rate against the corridor's length; the first seed of each agent, a line each, shifted a little apart."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    first = {one["settings"]["agent"]: one for one in reversed(results)}
    names = [name for name in RECIPES if name in first]
    figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
    for number, name in enumerate(names):
        points = curve(first[name])
        lift = 0.6 * (number - (len(names) - 1) / 2)
        style = "--" if RECIPES[name].window else "-"
        rates = [100 * success + lift for _, success in points]
        axis.plot([length for length, _ in points], rates, style, marker="o", label=name, color=f"C{number}")
        if points[-1][1] < 1:
            axis.plot(points[-1][0], rates[-1], "x", color=f"C{number}", markersize=11)
    axis.axvspan(axis.get_xlim()[0], corridor, color="0.5", alpha=0.12, linewidth=0)
    axis.axhline(50, color="0.4", linestyle=":")
    axis.annotate(
        "chance", (1, 50), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )
    axis.annotate("training lengths", (corridor, 5), (-4, 0), textcoords="offset points", ha="right", color="0.4")
    axis.set(
        xscale="log", xlabel="steps of the corridor", ylabel="episodes solved in %, lines shifted apart", ylim=(0, 105)
    )
    axis.grid(alpha=0.3)
    axis.set_title(
        f"T-Maze, trained on corridors of at most {corridor:,} steps; x: asked no further", fontsize="medium"
    )
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def parsed() -> tuple[argparse.Namespace, list[Run]]:
    """The command line and the runs that it asks for; one line and exit code 2 where it cannot be."""
    names = "\n".join(f"{name:20}{recipe.what}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        description=str(__doc__).replace("NAMES", names), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results; made if need be")
    parser.add_argument("--backbones", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="NAME")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="T", help="corridors to ask in")
    parser.add_argument("--episodes", type=int, default=100, help="side by side, in each length")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of weights and batches; one run each")
    parser.add_argument("--corridor", type=int, default=900, metavar="T", help="longest in training")
    parser.add_argument("--updates", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--engine", choices=list(ENGINES), default="onnx", help="what runs a step of the policy")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw success against length")
    parser.add_argument("--threads", type=threads, default=1, help="of torch; RLSEQ_NUM_THREADS has the kernels'")
    options = parser.parse_args()
    numbers: Iterable[int] = (*options.lengths, options.episodes, options.corridor)
    if min(numbers) < 1 or (options.updates is not None and options.updates < 1):
        parser.error("--lengths, --episodes, --corridor and --updates must be at least 1.")
    if max(options.lengths) > 2**31 - 1 or options.corridor > 10_000:
        parser.error("--lengths must be below 2^31 and --corridor at most 10,000.")
    if not 0 <= min(options.seed) <= max(options.seed) < 2**32:
        parser.error("--seed must be at least 0 and less than 2^32.")
    check_picture(parser, options.plot)
    if options.engine == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        parser.error("--engine onnx needs the extra onnx: pip install rlseq[onnx], or give --engine compiled.")
    runs = [
        Run(name, seed, options) for seed in dict.fromkeys(options.seed) for name in dict.fromkeys(options.backbones)
    ]
    try:
        for one in runs:
            one.kept()
        options.out.mkdir(parents=True, exist_ok=True)
    except (RlseqError, OSError) as error:
        parser.error(str(error))
    return options, runs


def main() -> None:
    """Trains and asks what is missing, prints the table, draws the plot."""
    options, runs = parsed()
    torch.set_num_threads(options.threads)
    print(json.dumps(script_provenance()), flush=True)
    try:
        results = [one.result() for one in runs]
    except (RlseqError, OSError, MemoryError) as error:
        print(f"memory.py: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        print("memory.py: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT)
    print_table(results)
    if options.plot is not None:
        plot(results, options.corridor, options.plot)


if __name__ == "__main__":
    main()
