"""What carrying the state costs: an agent's loss on data by timestep, with its state carried and dropped every K steps.

python benchmarks/carried.py RUN [RUN ...] [--rows 24] [--plot FILE.png]

A row of the table is the loss (mean squared error of scaled actions, or cross-entropy) over whole episodes of the run's
dataset, training and held-out ones alike, averaged over the timesteps in a column. Carried, the state comes all the way
from the episode's first step, as in recurrent mode; dropped, the same steps are read in rows of K, each from an empty
state, as a training on windows of K does. Where the first is above the second beyond the K-th step, what the state
holds there was never trained; a training on a stream with the state carried has never seen it dropped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from command_line import check_picture, script_provenance
from scores import names_of
from torch import Tensor

from rlseq import data, run
from rlseq.agents import Agent
from rlseq.config import to_json
from rlseq.data import SamplerConfig, TrajectoryStore, make_sampler
from rlseq.errors import RlseqError
from rlseq.progress import ProgressBar
from rlseq.types import Batch

EDGES = (0, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000)


class Losses(NamedTuple):
    """An agent's loss by timestep; nan where there is no step."""

    carried: list[float]
    dropped: list[float]


def edges(longest: int) -> list[int]:
    """Bounds of the columns for episodes of up to ``longest`` steps."""
    return [*itertools.takewhile(lambda edge: edge < longest, EDGES), longest]


def batch_of(store: TrajectoryStore, rows: int) -> Batch:
    """Episodes end to end in rows as long as the longest one, the same ones each time."""
    config = SamplerConfig(regime="stream", window=int(store.lengths.max()), batch_size=rows)
    return next(make_sampler(store, config, seed=0))


def in_rows_of(batch: Batch, window: int) -> Batch:
    """The same steps in rows of K, the last one of each row padded."""
    padding = -batch.mask.shape[1] % window

    def cut(value: Tensor) -> Tensor:
        padded = torch.cat([value, value.new_zeros(len(value), padding, *value.shape[2:])], dim=1)
        return padded.unflatten(1, (-1, window)).flatten(0, 1)

    return Batch(**{name: cut(value) for name, value in vars(batch).items()})


@torch.no_grad()
def losses(agent: Agent, batch: Batch, window: int, bounds: list[int]) -> Losses:
    """The loss in each of the columns; window is K."""
    found = []
    for rows in (batch, in_rows_of(batch, window)):
        prediction, _ = agent(agent.window_inputs(rows))
        target, columns = agent.scaled_action(rows.action), []
        for first, end in itertools.pairwise(bounds):
            mask = rows.mask & (rows.timestep >= first) & (rows.timestep < end)
            columns.append(float(agent.head.loss(prediction, target, mask)) if mask.any() else math.nan)
        found.append(columns)
    return Losses(*found)


def plot(losses_of: dict[str, Losses], bounds: list[int], file: Path) -> None:
    """A panel for every agent, a step for every column."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    across = min(3, len(losses_of))
    down = -(-len(losses_of) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.2 * across, 2.6 * down), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (name, loss) in itertools.zip_longest(axes.flat, losses_of.items(), fillvalue=(None, None)):
        if name is None or loss is None:
            axis.set_axis_off()
            continue
        for label, values, style in (("carried", loss.carried, "-"), ("dropped every K", loss.dropped, "--")):
            axis.stairs(values, [max(bounds[0], 1), *bounds[1:]], baseline=None, label=label, linestyle=style)
        axis.set_title(name, fontsize="small")
        axis.set(xscale="log", ylim=(0, None))
        axis.tick_params(labelbottom=True)
    figure.supxlabel("timestep")
    figure.supylabel("loss")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Reads the runs, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of trainings on one dataset")
    parser.add_argument("--rows", type=int, default=24, help="rows of as many steps as the longest episode has")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("--rows must be at least 1.")
    check_picture(parser, options.plot)
    torch.set_num_threads(1)
    found: dict[str, Losses] = {}
    try:
        loaded = [run.load_with_experiment(folder, "cpu") for folder in options.runs]
        read = {(experiment.dataset, experiment.drop_obs) for _, experiment in loaded}
        if len(read) > 1:
            parser.error(f"runs must be of one dataset and --drop-obs, got {' and '.join(map(str, sorted(read)))}.")
        names = names_of([to_json(experiment) for _, experiment in loaded])
        names = [f"{name}, seed {experiment.seed}" for name, (_, experiment) in zip(names, loaded, strict=True)]
        if len(set(names)) < len(names):
            parser.error(f"each run must be given once, got {', '.join(names)}.")
        dataset, drop = read.pop()
        store = data.open_dataset(dataset)
        batch = batch_of(store.drop_obs(drop) if drop else store, options.rows)
        bounds = edges(batch.mask.shape[1])
        for agent, _ in loaded:
            agent.check_timesteps(bounds[-1])
        with ProgressBar("agents", len(loaded)) as bar:
            for done, ((agent, experiment), name) in enumerate(zip(loaded, names, strict=True), 1):
                found[name] = losses(agent, batch, experiment.window, bounds)
                bar.update(done, name)
    except RlseqError as error:
        parser.error(str(error))
    print(json.dumps(script_provenance()))
    columns = " | ".join(f"{a} to {b - 1}" for a, b in itertools.pairwise(bounds))
    print(f"\n| agent | state | {columns} |\n" + "|---" * (len(bounds) + 1) + "|")
    for name, loss in found.items():
        for state, values in loss._asdict().items():
            print(f"| {name} | {state} | {' | '.join(f'{value:.4f}' for value in values)} |")
    sys.stdout.flush()
    if options.plot is not None:
        plot(found, bounds, options.plot)


if __name__ == "__main__":
    main()
