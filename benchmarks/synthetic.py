"""Selective copying and induction heads, the synthetic tasks of the Mamba and Griffin papers, for every backbone.

python benchmarks/synthetic.py --out FOLDER [--task induction copying] [--length 128 1024] [--backbones hawk griffin]
python benchmarks/synthetic.py --out FOLDER --quick

Trains one model after the other (embedding, backbone, linear head; D = 64 and 5 layers, gau and flash 10), prints two
Markdown tables, and writes into FOLDER a JSON file a run, learning curve included, and plots. After a kill the same
command skips the runs that are whole and goes on with the half-done one from its last check.

induction   trained up to 256 tokens, 4,000 updates at most; then asked at 64, 128, .. 8,192 tokens, and up to 65,536
            where the state does not grow with the sequence. The Transformer's window is as long as the sequence.
copying     16 data tokens in 128 and in 1,024, 6,000 updates at most.

The recipe is the same for all: AdamW without weight decay, batches of 16 sequences of one length, drawn
log-uniformly between 16 (copying: 32) and the task's; gradients are clipped to norm 1. The rate rises to 1e-3 in 100
updates, stays, and falls to 0 in the last 1,000 (copying: 1,500). Accuracy is checked every 100 updates on 256 held-out
sequences. A task is solved where two checks in a row reach 99.5 %; where the rate does not fall yet, it falls then, and
the run ends sooner: what is learned of induction meanwhile is to hold on to the answer for longer than the training
length. The papers train at one length; so does --one-length. Griffin's window is half of the task's length, as in its
paper.

--quick: induction at 16 tokens, copying of 3 data tokens (6 values) in 12; D = 32, 2 layers (griffin, hybrid 3; gau,
flash 4); batches of 32, all of one length; rate 3e-3 (copying: 6e-3), falling in the last 50 updates of 1,500 at most;
solved at 98.5 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from command_line import script_provenance, threads
from synthetic_tasks import (
    TASKS,
    Model,
    Recipe,
    Task,
    accuracy,
    build,
    configure,
    stream,
    train,
    variant,
    widened,
)

from rlseq import backbones
from rlseq.errors import RlseqError, RunError
from rlseq.progress import ProgressBar
from rlseq.report import write_json
from rlseq.training import OptimConfig

LENGTHS = {"induction": (256,), "copying": (128, 1024)}
Result = dict[str, Any]
RESULT = ("settings", "parameters", "solved_at", "updates", "seconds", "curve", "lengths")


@dataclass(frozen=True)
class Setting:
    """A task, the model's size and the recipe."""

    task: Task
    width: int
    layers: int
    recipe: Recipe
    beyond: int = 32
    """Longest evaluation of induction in training lengths."""
    far_beyond: int = 256
    """The same where the state does not grow with the sequence."""
    rows: int = 512
    """Most sequences of an evaluation; of long ones there are fewer, 32 at least (16 where the state grows)."""


def published(name: str, length: int) -> Setting:
    """The sizes of the Griffin paper."""
    recipe = Recipe(4000, cooldown=1000) if name == "induction" else Recipe(6000, shortest=32, cooldown=1500)
    return Setting(Task(name, length), 64, 5, recipe)


def quick(name: str) -> Setting:
    """A small instance, for a test: seconds on one core."""
    task = Task("induction", 16) if name == "induction" else Task("copying", 12, vocabulary=8, data=3)
    optim = OptimConfig(
        lr=3e-3 if name == "induction" else 6e-3, warmup=50, schedule="constant", weight_decay=0.0, clip=1.0
    )
    recipe = Recipe(1500, 32, shortest=task.length, optim=optim, solved=0.985, cooldown=50, every=50, rows=128)
    return Setting(task, 32, 2, recipe, 4, 8, 128)


def lengths(setting: Setting, recurrent: bool) -> list[int]:
    """Evaluation lengths: from a quarter of the training length, doubling."""
    task = setting.task
    if task.name != "induction":
        return [task.length]
    longest = task.length * (setting.far_beyond if recurrent else setting.beyond)
    shorter = {max(task.least, task.length // part) for part in (4, 2)}
    return sorted(shorter | {task.length * 2**i for i in range(12) if task.length * 2**i <= longest})


def is_recurrent(name: str, setting: Setting) -> bool:
    """Whether the state does not grow with the sequence."""
    return backbones.is_recurrent(configure(name, setting.task, setting.width, setting.layers))


def evaluate(name: str, model: Model, setting: Setting, seed: int, show: ProgressBar) -> dict[str, dict[str, float]]:
    """Accuracy and rows by length, on sequences that no check has seen; fewer rows of longer ones."""
    task, found = setting.task, {}
    recurrent = is_recurrent(name, setting)
    for done, length in enumerate(lengths(setting, recurrent)):
        asked = model
        if not recurrent and length > task.length:
            asked = widened(model, build(name, task, setting.width, setting.layers, length))
        least, tokens = (32, 2**19) if recurrent else (16, 2**17)  # attention over 8,192 tokens: 40 s a sequence
        rows = min(setting.rows, max(least, tokens // length))
        right = accuracy(asked, task, rows, stream(seed + 1_000_000, held_out=True), length=length)
        found[str(length)] = {"accuracy": right, "rows": rows}
        show.update(done + 1, f"{length} tokens: {right:.3f}")
    return found


@dataclass(frozen=True)
class Run:
    """A setting with a backbone and a seed, and its files."""

    name: str
    setting: Setting
    seed: int
    out: Path

    @property
    def label(self) -> str:
        """What it is called in its folder."""
        name = re.sub(r"[^\w.,=-]+", "_", self.name)  # no file system forbids these
        return f"{self.setting.task.name}-{self.setting.task.length}-{name}-{self.seed}"

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The result; and while it is made, the last check and the settings."""
        result, checkpoint, begun = (self.out / f"{self.label}{end}" for end in (".json", ".pt", ".begun"))
        return result, checkpoint, begun

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON gives it back."""
        one = self.setting
        config = asdict(configure(self.name, one.task, one.width, one.layers))
        return json.loads(json.dumps({"backbone": self.name, "config": config, "seed": self.seed, **asdict(one)}))

    def check(self) -> None:
        """Raise RunError where the folder has this run with other settings, or a file of it is damaged."""
        result, _, begun = self.files
        for earlier, needed in ((result, RESULT), (begun, ("settings",))):
            if not earlier.exists():
                continue
            try:
                found = json.loads(earlier.read_text())
                settings, *_ = [found[key] for key in needed]
                if earlier == result:
                    _ = learned(found), drawn(found, "update"), drawn(found, "seconds"), asked(found)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                told = f"{type(error).__name__}: {error}"
                raise RunError(f"run: {earlier} must be whole, got {told}. Remove it.") from error
            if settings != self.settings:
                raise RunError(f"run: {earlier} must have this run's settings, got others. Give another --out.")

    def try_one(self) -> None:
        """Raise ConfigError where the model cannot be made or cannot read a sequence; a finished run has."""
        if self.files[0].exists():
            return
        task, backbone = self.setting.task, variant(self.name)[0]
        model = build(self.name, task, self.setting.width, self.setting.layers)
        with (
            backbones.memory_errors(f"run: a state of {backbone}", self.name),
            backbones.plug_in_errors(backbone, "read a sequence"),
        ):
            accuracy(model, task, 1, stream(0), length=task.least)


def result_of(run: Run) -> Result:
    """One run's result: read where it is whole, else trained, evaluated and written."""
    name, setting, seed, label = run.name, run.setting, run.seed, run.label
    task, settings, (file, checkpoint, begun) = setting.task, run.settings, run.files
    if file.exists():
        return json.loads(file.read_text())
    write_json(begun, {"settings": settings})
    torch.manual_seed(seed)
    model = build(name, task, setting.width, setting.layers)
    with ProgressBar(label, setting.recipe.updates) as bar:
        log = train(model, task, setting.recipe, seed, checkpoint=checkpoint, show=bar.update)
    recurrent = is_recurrent(name, setting)
    with ProgressBar(f"{label}, asked", len(lengths(setting, recurrent))) as bar:
        found = evaluate(name, model, setting, seed, bar)
    result = {"settings": settings, "parameters": backbones.parameter_count(model), **log, "lengths": found}
    write_json(file, {**result, "provenance": script_provenance()})
    for leftover in (checkpoint, begun):
        leftover.unlink(missing_ok=True)
    return json.loads(file.read_text())


def learned(one: Result) -> str:
    """A result's row of the first table."""
    task, solved = one["settings"]["task"], one["solved_at"]
    return (
        f"| {task['name']} | {task['length']} | {one['settings']['backbone']} | {one['settings']['seed']} |"
        f" {one['parameters']:,} | {one['lengths'][str(task['length'])]['accuracy']:.3f} |"
        f" {'not' if solved is None else f'{solved:,}'} | {one['updates']:,} | {one['seconds'] / 60:.1f} |"
    )


def asked(one: Result) -> list[tuple[int, float]]:
    """A result's accuracy by length."""
    return [(int(length), float(found["accuracy"])) for length, found in one["lengths"].items()]


def drawn(one: Result, key: str) -> tuple[list[float], list[float]]:
    """A result's learning curve against ``key``."""
    return tuple([float(point[name]) for point in one["curve"]] for name in (key, "accuracy"))


def print_tables(results: Sequence[Result]) -> None:
    """What was learned and when; and the accuracy of induction by length."""
    print("\n| task | L | backbone | seed | parameters | accuracy | updates to solve | updates | minutes |")
    print("|---" * 9 + "|")
    for one in results:
        print(learned(one))
    inductions = [one for one in results if one["settings"]["task"]["name"] == "induction"]
    columns = sorted({length for one in inductions for length, _ in asked(one)})
    if columns:
        print(f"\n| accuracy of induction at | {' | '.join(f'{length:,}' for length in columns)} |")
        print("|---" * (len(columns) + 1) + "|")
    for one in inductions:
        found = dict(asked(one))
        cells = [f"{found[length]:.3f}" if length in found else "" for length in columns]
        print(f"| {one['settings']['backbone']}, seed {one['settings']['seed']} | {' | '.join(cells)} |")
    sys.stdout.flush()


def by_task(results: Sequence[Result]) -> Iterator[tuple[str, int, list[Result]]]:
    """The results of each task and length."""
    of = {id(one): (one["settings"]["task"]["name"], one["settings"]["task"]["length"]) for one in results}
    for name, length in dict.fromkeys(of.values()):
        yield name, length, [one for one in results if of[id(one)] == (name, length)]


def plot(results: Sequence[Result], out: Path) -> None:
    """Learning curves against updates and seconds; for induction, accuracy against evaluation length."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(one["settings"]["backbone"] for one in results))
    for name, length, of in by_task(results):
        figure, axes = plt.subplots(1, 2, figsize=(10.8, 4.2), sharey=True, layout="constrained")
        lines: dict[str, Any] = {}
        for one in of:
            color = f"C{names.index(one['settings']['backbone'])}"
            for axis, key in zip(axes, ("update", "seconds"), strict=True):
                (lines[one["settings"]["backbone"]],) = axis.plot(*drawn(one, key), color=color)
        axes[0].set(xlabel="updates", ylabel="accuracy on held-out sequences", ylim=(0, 1.02))
        axes[1].set(xlabel="seconds of training", xscale="log")
        figure.suptitle(f"{name}, {length} tokens")
        figure.legend(lines.values(), lines, loc="outside right upper")
        figure.savefig(out / f"{name}-{length}.png", dpi=120)
        plt.close(figure)
        if name != "induction":
            continue
        figure, axis = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
        lines = {}
        for one in of:
            backbone, points = one["settings"]["backbone"], zip(*asked(one), strict=True)
            (lines[backbone],) = axis.plot(*points, marker="o", color=f"C{names.index(backbone)}")
        axis.axvline(length, color="0.4", linestyle="--")
        axis.annotate("training", (length, 0.02), (4, 0), textcoords="offset points", color="0.4")
        axis.set(xscale="log", xlabel="tokens of a sequence", ylabel="accuracy", ylim=(0, 1.02))
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        axis.set_title(f"induction, trained up to {length} tokens")
        figure.legend(lines.values(), lines, loc="outside right upper")
        figure.savefig(out / f"{name}-{length}-lengths.png", dpi=120)
        plt.close(figure)


def chosen(options: argparse.Namespace) -> list[Setting]:
    """The settings that the command line asks for, in order."""
    tasks = dict.fromkeys(options.task)
    if options.quick:
        settings = [quick(name) for name in tasks]
    else:
        settings = [
            published(name, length) for name in tasks for length in dict.fromkeys(options.length or LENGTHS[name])
        ]
    if options.updates is not None:
        settings = [replace(one, recipe=replace(one.recipe, updates=options.updates)) for one in settings]
    if options.one_length:
        settings = [replace(one, recipe=replace(one.recipe, shortest=one.task.length)) for one in settings]
    return settings


def main() -> None:
    """Trains what is missing, prints the tables, draws the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results; made if need be")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["induction", "copying"], help="in this order")
    parser.add_argument("--length", type=int, nargs="+", metavar="L", help="tokens, of every task (256; 128 1024)")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=backbones.available(),
        help='names or dotted plug-ins, also with options: griffin:window=16,heads=2 \'hybrid:pattern=["rec","gau"]\'',
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of weights and sequences; one run each")
    parser.add_argument("--updates", type=int, metavar="N", help="most updates of a run")
    parser.add_argument("--one-length", action="store_true", help="every batch has the task's length, as published")
    parser.add_argument("--quick", action="store_true", help="small instances instead, seconds each")
    parser.add_argument("--threads", type=threads, default=1, help="of torch; RLSEQ_NUM_THREADS has the kernels'")
    options = parser.parse_args()
    if options.quick and options.length:
        parser.error("--quick has lengths of its own; leave --length out.")
    if options.updates is not None and options.updates < 1:
        parser.error("--updates must be at least 1.")
    if not 0 <= min(options.seed) <= max(options.seed) < 2**32:
        parser.error("--seed must be at least 0 and less than 2^32.")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the plots need matplotlib: pip install rlseq[plot].")
    torch.set_num_threads(options.threads)
    try:
        names, seeds = dict.fromkeys(options.backbones), dict.fromkeys(options.seed)
        runs = [Run(name, one, seed, options.out) for one in chosen(options) for name in names for seed in seeds]
        for one in runs:
            one.check()
            one.try_one()
        options.out.mkdir(parents=True, exist_ok=True)
    except (RlseqError, OSError) as error:
        parser.error(str(error))
    print(json.dumps(script_provenance()), flush=True)
    try:
        results = [result_of(one) for one in runs]
    except RunError as error:
        parser.error(str(error))
    print_tables(results)
    plot(results, options.out)


if __name__ == "__main__":
    main()
