"""Trains every backbone on two datasets in three regimes, with controls beside them: the runs of docs/results.md.

MINARI_DATASETS_PATH=... python benchmarks/matrix.py --out runs/matrix [--jobs 2] [--seeds 0 1 2] [--dry-run]
python benchmarks/scores.py runs/matrix/*/

A run is 3,000 updates of about 1,280 environment steps (rows of 20: 1,268 on HalfCheetah and 1,184 on Hopper, where
more windows reach beyond an episode's end and are padded; rows of 200: 1,261 and 1,311; streams: 1,200), then ten
episodes for each of two target returns, one inside the data and one beyond it, in recurrent and in window mode, with
the last checkpoint. All read one `joint` token a step without timestep embeddings; beside them stand the published
Transformer, three tokens a step with timestep embeddings, Aaren with its paper's norm and MLP, Aaren on a stream where
it forgets its past at random, behaviour cloning of all and of the best tenth of the episodes, and an MLP that reads the
return-to-go. Each job has one thread. Runs that are finished are kept, unfinished ones go on from their last
checkpoint, so the command may be stopped and given again. --dry-run prints the commands.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlseq import backbones
from rlseq.progress import ProgressBar


class Dataset(NamedTuple):
    """What is trained on and asked for."""

    name: str
    targets: tuple[str, str]
    long_rows: int
    """Rows of 200 in a batch, for 1,280 steps: the rest of a row is padding beyond its episode's end."""


DATASETS = {
    "halfcheetah": Dataset("minari:rlseq/halfcheetah/medium-replay-v0", ("4200", "6000"), 7),  # 180 steps in a row
    "hopper": Dataset("minari:rlseq/hopper/medium-replay-v0", ("1000", "3000"), 15),  # 87, in the mean
}
REGIMES = {
    "k20": ["--window", "20"],
    "k200": ["--window", "200"],
    "stream": ["--regime", "stream", "--window", "200", "--carry-state"],
}
JOINT = ["--agent.tokens", "joint", "--agent.timestep-embedding", "False"]
PAPER = ["--recipe", "default", "--backbone", "aaren", *JOINT]
CLONING = ["--agent", "behaviour_cloning"]
CONTROLS = {
    "published": ["--recipe", "transformer"],
    "aaren-paper": [*PAPER, *REGIMES["k20"]],
    "aaren-forget": ["--backbone", "aaren", *JOINT, *REGIMES["stream"], "--agent.forget", "0.005"],
    "bc": CLONING,
    "bc-top": [*CLONING, "--top", "0.1"],
    "mlp": [*CLONING, "--agent.return-conditioned"],
}
EVERYTHING = [*backbones.available(), *CONTROLS]
OWN = {"transformer": ["--recipe", "default"]}
"""The Transformer's own recipe is the published one, with another learning rate and schedule."""
INTERRUPTED_EXIT = 130
THREADS = {"RLSEQ_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """One training with its evaluations."""

    folder: Path
    options: list[str]

    def command(self) -> list[str]:
        """Start it, or go on with it."""
        if any(self.folder.glob("checkpoints/*")):
            # the folder knows its options, and a recipe is refused beside --resume
            return ["rlseq", "train", "--out", str(self.folder), "--resume"]
        how = ["--overwrite"] if self.folder.exists() else []
        return ["rlseq", "train", *self.options, "--out", str(self.folder), *how]

    def finished(self) -> bool:
        """Whether it has been evaluated."""
        return (self.folder / "result.json").is_file()


def runs(out: Path, seeds: list[int], datasets: list[str], chosen: list[str], regimes: list[str]) -> list[Run]:
    """All runs, the first seed of everything first."""
    found = []
    for seed in seeds:
        for data in datasets:
            dataset = DATASETS[data]
            common = ["--dataset", dataset.name, "--updates", "3000", "--seed", str(seed), "--eval.during", "0"]
            common += ["--eval.target-return", *dataset.targets, "--eval.mode", "recurrent", "window"]
            for name in chosen:
                if name in CONTROLS:
                    found.append(Run(out / f"{data}-{name}-seed{seed}", [*common, *CONTROLS[name]]))
                    continue
                for regime in regimes:
                    options = [*common, *OWN.get(name, []), "--backbone", name, *JOINT, *REGIMES[regime]]
                    options += ["--batch-size", str(dataset.long_rows)] if regime == "k200" else []
                    found.append(Run(out / f"{data}-{name}-{regime}-seed{seed}", options))
    return found


class Trainings:
    """Trainings side by side, each a process; ``stop`` ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def train(self, run: Run) -> int:
        """Runs one; returns its exit code. What it prints goes into a file beside its folder."""
        with open(run.folder.with_suffix(".log"), "ab") as log:
            with self._lock:
                if self._stopped:
                    return INTERRUPTED_EXIT
                if run.finished():  # by the same command elsewhere
                    return 0
                command = [sys.executable, "-m", *run.command()]
                process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **THREADS})
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """Ends what runs and starts nothing more; checkpoints are whole or not there."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def main() -> None:
    """Runs what is not finished, and says what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the run folders are")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--agents", nargs="+", choices=EVERYTHING, default=EVERYTHING)
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.jobs < 1 or not 0 <= min(options.seeds) <= max(options.seeds) < 2**63:
        parser.error("--jobs must be at least 1 and --seeds at least 0 and less than 2^63.")
    todo = runs(options.out, options.seeds, options.datasets, options.agents, options.regimes)
    todo = [run for run in {run.folder: run for run in todo}.values() if not run.finished()]
    if options.dry_run:
        print("\n".join(shlex.join(run.command()) for run in todo))
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    failed, trainings = [], Trainings()
    with ProgressBar("runs", len(todo)) as bar, ThreadPoolExecutor(options.jobs) as pool:
        pending = {pool.submit(trainings.train, run): run for run in todo}
        try:
            for done, future in enumerate(as_completed(pending), 1):
                run = pending[future]
                if future.result():
                    failed.append(run)
                bar.update(done, run.folder.name)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            trainings.stop()
            print("matrix.py: stopped; the same command goes on.", file=sys.stderr)
            sys.exit(INTERRUPTED_EXIT)
    for run in failed:
        print(f"{run.folder.name} failed; see {run.folder.with_suffix('.log')}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
