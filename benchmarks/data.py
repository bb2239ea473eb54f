"""Env-steps/s of gathering batches, each regime beside a loop over samples; refuses to time wrong batches.

python benchmarks/data.py [--dataset NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from command_line import script_provenance

from rlseq.data import SamplerConfig, TrajectoryStore, make_sampler, open_dataset
from rlseq.types import Batch

CONFIGS = (
    SamplerConfig("window", 20, 64),
    SamplerConfig("window", 200, 6),
    SamplerConfig("stream", 20, 64),
    SamplerConfig("stream", 200, 6),
    SamplerConfig("pack", 1000, 2),
)


def looped(store: TrajectoryStore, config: SamplerConfig, seed: int) -> Callable[[], Batch]:
    """Windows cut one sample at a time, as most Decision Transformer code does; the same draws as regime window."""
    rng = np.random.default_rng(seed)
    returns_to_go = np.split(store.return_to_go, store.offsets[1:-1])

    def batch() -> Batch:
        rows: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Batch)}
        for start in rng.integers(store.steps, size=config.batch_size):
            episode = int(np.searchsorted(store.offsets, start, side="right")) - 1
            first = int(start - store.offsets[episode])
            cut = slice(first, first + config.window)
            trajectory = store[episode]
            steps = len(trajectory.reward[cut])
            row = {"obs": trajectory.obs[cut], "action": trajectory.action[cut]}
            row |= {"reward": trajectory.reward[cut].astype(np.float32), "return_to_go": returns_to_go[episode][cut]}
            row |= {"timestep": np.arange(first, first + steps), "mask": np.ones(steps, dtype=bool)}
            row["reset"] = row["timestep"] == 0
            for name, value in row.items():
                padding = np.zeros((config.window - steps, *value.shape[1:]), dtype=value.dtype)
                rows[name].append(np.concatenate([value, padding]))
        return Batch(**{name: torch.from_numpy(np.stack(values)) for name, values in rows.items()})

    return batch


def check(store: TrajectoryStore, config: SamplerConfig, batches: int = 20) -> None:
    """Every real step is a row of the store, in order within its episode; raises SystemExit where not."""
    rows_of = {row.tobytes(): number for number, row in enumerate(np.concatenate([store.obs, store.action], axis=1))}
    sampler = make_sampler(store, config, seed=0)
    for _ in range(batches):
        batch = next(sampler)
        mask = batch.mask.numpy()
        keys = np.concatenate([batch.obs.numpy(), batch.action.numpy()], axis=2)[mask]
        rows = np.array([rows_of[key.tobytes()] for key in keys])
        right = np.array_equal(batch.timestep.numpy()[mask], store.timestep[rows])
        right &= np.array_equal(batch.return_to_go.numpy()[mask], store.return_to_go[rows])
        right &= np.array_equal(batch.reward.numpy()[mask], store.reward[rows].astype(np.float32))
        if not right:
            raise SystemExit(f"check: batches of {config} must be the store's rows, got others. Not timing them.")


def check_loop(store: TrajectoryStore, config: SamplerConfig) -> None:
    """The loop and the sampler draw the same batches from the same seed; raises SystemExit where not."""
    loop, sampler = looped(store, config, 0), make_sampler(store, config, 0)
    for _ in range(20):
        left, right = loop(), next(sampler)
        for field in fields(Batch):
            if not torch.equal(getattr(left, field.name), getattr(right, field.name)):
                raise SystemExit(f"check_loop: {field.name} must be equal, got another. Not timing it.")


def rate(call: Callable[[], Batch], steps: int, repeats: int, seconds: float = 0.3) -> dict[str, float]:
    """Median, slowest and fastest million env-steps/s (real steps only) over `repeats` runs of `seconds`."""
    for _ in range(50):
        call()
    rates = []
    for _ in range(repeats):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            call()
            count += 1
        rates.append(count * steps / spent / 1e6)
    return {"median": statistics.median(rates), "slowest": min(rates), "fastest": max(rates)}


def main() -> None:
    """Checks, times and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bundled:halfcheetah-medium-replay", help="any name of open_dataset")
    parser.add_argument("--repeats", type=int, default=9, help="runs that the median is taken of")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = open_dataset(arguments.dataset)
    where = script_provenance()
    print(json.dumps(where))
    print(f"dataset: {arguments.dataset}")
    rows = []
    for config in CONFIGS:
        if config.regime == "pack" and store.stats.length_max > config.window:
            print(f"pack: skipped, the longest episode has {store.stats.length_max} steps")
            continue
        check(store, config)
        steps = int(next(make_sampler(store, config)).mask.sum())
        candidates: dict[str, Callable[[], Batch]] = {config.regime: make_sampler(store, config).__next__}
        if config.regime == "window":
            check_loop(store, config)
            candidates["loop over samples"] = looped(store, config, 0)
        for name, call in candidates.items():
            figures = rate(call, steps, arguments.repeats)
            rows.append({"name": name, "B": config.batch_size, "K": config.window} | figures)
            spread = f"({figures['slowest']:.2f} to {figures['fastest']:.2f})"
            sizes = f"B={config.batch_size:<3} K={config.window:<5}"
            print(f"{name:<18} {sizes} {figures['median']:7.2f} million env-steps/s {spread}")
    if arguments.json:
        arguments.json.write_text(json.dumps(where | {"dataset": arguments.dataset, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
