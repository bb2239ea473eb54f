"""Env-steps/s of training for every backbone, beside each other and Hugging Face's Decision Transformer, in one run.

python benchmarks/train.py [--tables joint-20 ...] [--backbones hawk aaren ...] [--rounds 7] [--json FILE]
python benchmarks/train.py --tables sweep --plot FILE.png

Tables: joint-20 (64 windows of 20 environment steps an update, one token a step; the few windows that reach beyond an
episode's end are padded), interleaved-20 (three tokens a step), interleaved-1000 (one whole episode of 1,000 steps,
3,000 tokens, attention over all of them), sweep (joint, 4,096 steps an update, whole episodes end to end in rows of K
= 20 to 4,096). `rlseq bench acting` times acting.
Whole optimiser updates: batch, forward, backward, clip, AdamW; no dropout; every backbone is as wide as it must be to
have the parameters of the Transformer of width 128 and depth 3. The contenders take turns, so that noise of the machine
hits all. An agent whose steps do not equal its window is not timed. Memory is what the process's resident set rose by.
The extra `benchmark` brings the rival (transformers); without it, its row is left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from command_line import check_file, check_picture, script_provenance, set_threads, threads
from train_contenders import (
    Contender,
    names,
    ours,
    parameters,
    peak_megabytes,
    rival,
    width_for,
)

from rlseq import data
from rlseq.bench import rivals
from rlseq.errors import RlseqError
from rlseq.progress import ProgressBar

Row = dict[str, Any]
TABLES = {
    "joint-20": ("joint", data.SamplerConfig("window", 20, 64)),
    "interleaved-20": ("interleaved", data.SamplerConfig("window", 20, 64)),
    "interleaved-1000": ("interleaved", data.SamplerConfig("pack", 1000, 1)),
}
SWEEP = (20, 64, 200, 512, 1024, 2048, 4096)
SWEEP_STEPS = 4096
WIDTH = 128


def timed(contenders: Sequence[Contender], rounds: int, bar: Callable[[str], None]) -> list[list[float]]:
    """Seconds of an update of each contender, measured in turns; the two updates that measured memory warmed up."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        for contender, own in zip(contenders, seconds, strict=True):
            began = time.perf_counter()
            contender.update()
            own.append(time.perf_counter() - began)
            bar(f"{contender.name} {turn + 1}/{rounds}")
    return seconds


def rows_of(contenders: Sequence[tuple[Contender, float]], rounds: int) -> list[Row]:
    """Figures of contenders that were timed side by side."""
    with ProgressBar("updates", rounds * len(contenders)) as bar:
        done = iter(range(1, rounds * len(contenders) + 1))
        seconds = timed([one for one, _ in contenders], rounds, lambda text: bar.update(next(done), text))
    rows = []
    for (one, memory), own in zip(contenders, seconds, strict=True):
        speed = sorted(one.steps / s for s in own)
        rows.append(
            {
                "contender": one.name,
                "tokens": one.tokens,
                "window": one.window,
                "width": one.width,
                "parameters": one.parameters,
                "env_steps_per_s": statistics.median(speed),
                "least": speed[0],
                "most": speed[-1],
                "peak_megabytes": memory,
            }
        )
    return rows


def compare(
    chosen: Sequence[str], store: data.TrajectoryStore, tokens: str, cut: data.SamplerConfig, rounds: int
) -> list[Row]:
    """Figures of every contender, with the same batches."""
    wanted = parameters("transformer", WIDTH)
    makers = [
        functools.partial(rival, store, cut, WIDTH)
        if name == rivals.NAME
        else functools.partial(ours, name, store, cut, tokens, width_for(name, wanted))
        for name in chosen
    ]
    makers[0]().update()  # the first one in a process loads code, which is no memory of its own
    return rows_of([peak_megabytes(make) for make in makers], rounds)


def print_table(table: str, rows: Sequence[Row]) -> None:
    """Markdown: a row for each contender, and how often it is as fast as Hugging Face's and as the Transformer."""
    tokens, cut = TABLES[table]
    speed = {row["contender"]: row["env_steps_per_s"] for row in rows}
    against = [name for name in (rivals.NAME, "transformer") if name in speed]
    header = ["backbone", "width", "parameters", "env-steps/s", "least .. most", "peak MB"]
    header += [f"/ {name}" for name in against]
    print(f"\n{tokens}, K = {cut.window}, {cut.batch_size} x {cut.window:,} environment steps an update\n")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for row in rows:
        cells = [row["contender"], str(row["width"]), f"{row['parameters']:,}", f"{row['env_steps_per_s']:,.0f}"]
        cells += [f"{row['least']:,.0f} .. {row['most']:,.0f}", f"{row['peak_megabytes']:,.0f}"]
        cells += [f"{row['env_steps_per_s'] / speed[name]:.2f}" for name in against]
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


def sweep(chosen: Sequence[str], store: data.TrajectoryStore, rounds: int) -> list[Row]:
    """Figures of every backbone at every K, joint tokens, whole episodes end to end in rows of K."""
    wanted = parameters("transformer", WIDTH)
    rows: list[Row] = []
    for name in chosen:
        if name == rivals.NAME:
            continue
        width = width_for(name, wanted)
        cuts = [data.SamplerConfig("stream", window, SWEEP_STEPS // window) for window in SWEEP]
        made = [peak_megabytes(functools.partial(ours, name, store, cut, "joint", width)) for cut in cuts]
        rows += rows_of(made, rounds)
    return rows


def print_sweep(rows: Sequence[Row]) -> None:
    """Markdown: microseconds of an environment step, a row for each backbone and a column for each K."""
    print(f"\njoint, {SWEEP_STEPS:,} environment steps an update: us of a step by K\n")
    print("| backbone | " + " | ".join(map(str, SWEEP)) + " |\n" + "|---" * (len(SWEEP) + 1) + "|")
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [f"{1e6 / row['env_steps_per_s']:.0f}" for row in rows if row["contender"] == name]
        print(f"| {name} | {' | '.join(own)} |")
    sys.stdout.flush()


def plot(rows: Sequence[Row], file: Path) -> None:
    """Time of an environment step over K, both logarithmic: a line that does not rise is linear time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = [(row["window"], 1e6 / row["env_steps_per_s"]) for row in rows if row["contender"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="K, environment steps in a row", ylabel="us of training a step")
    axes.set_title("Time of training an environment step against K (flat = linear in K)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Prints the tables and where they were measured."""
    everything = [*names(), *([rivals.NAME] if rivals.available() else [])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tables", nargs="+", choices=[*TABLES, "sweep"], default=[*TABLES], help="default: the first three"
    )
    parser.add_argument("--backbones", nargs="+", default=everything, metavar="NAME", help=", ".join(everything))
    parser.add_argument("--dataset", default="bundled:halfcheetah-medium-replay")
    parser.add_argument("--threads", type=threads, default=1, help="of torch and of the kernels")
    parser.add_argument("--rounds", type=int, default=7, help="updates of each contender that are timed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with the table sweep: draw it (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    options.backbones = list(dict.fromkeys(options.backbones))
    unknown = [name for name in options.backbones if name not in everything]
    if unknown:
        parser.error(f"--backbones must be of {', '.join(everything)}, got {' '.join(unknown)}.")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    if options.plot and "sweep" not in options.tables:
        parser.error("--plot draws the table sweep; add --tables sweep.")
    if "sweep" in options.tables and set(options.backbones) == {rivals.NAME}:
        parser.error(f"--tables sweep must have a backbone of rlseq, got {rivals.NAME} alone. Add one.")
    check_picture(parser, options.plot)
    check_file(parser, options.json)
    set_threads(options.threads)
    try:
        store = data.open_dataset(options.dataset)
    except (RlseqError, OSError) as error:
        parser.error(str(error))
    where = script_provenance()
    print(json.dumps(where))
    figures: dict[str, list[Row]] = {}
    for table in options.tables:
        if table == "sweep":
            figures[table] = sweep(options.backbones, store, options.rounds)
            print_sweep(figures[table])
            if options.plot:
                plot(figures[table], options.plot)
        else:
            figures[table] = compare(options.backbones, store, *TABLES[table], options.rounds)
            print_table(table, figures[table])
    if options.json is not None:
        options.json.write_text(json.dumps({**where, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
