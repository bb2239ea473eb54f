"""Makes ``rlseq/data/bundled/halfcheetah-medium-replay`` from the full Minari set that lies beside the project.

Leaves out every fifth episode (numbers 2, 7, 12, ...), keeps every value of the others as it is, and compresses them:
the phase of the rule is the one that moves the mean return least.

    python scripts/make_bundled_dataset.py --source ../shared/data/minari/rlseq/halfcheetah/medium-replay-v0/data
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

EVERY = 5
ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "rlseq/data/bundled/halfcheetah-medium-replay/data"
SOURCE = ROOT / "../shared/data/minari/rlseq/halfcheetah/medium-replay-v0/data"
MAX_BYTES = 6_000_000


def left_out(returns: np.ndarray) -> list[int]:
    """The episodes of the rule "every fifth" whose phase moves the mean return least."""
    phases = [np.arange(phase, len(returns), EVERY) for phase in range(EVERY)]
    shifts = [abs(np.delete(returns, phase).mean() - returns.mean()) for phase in phases]
    return [int(episode) for episode in phases[int(np.argmin(shifts))]]


def copy_episode(source: h5py.Group, target: h5py.File, number: int) -> None:
    """One episode under its new number, bit for bit, at gzip's highest level."""
    group = target.create_group(f"episode_{number}")
    group.attrs.update({**source.attrs, "id": number})
    group.create_group("infos")
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        values = source[key][()]
        group.create_dataset(
            key, data=values, chunks=values.shape, compression="gzip", compression_opts=9, shuffle=True
        )


def metadata(source: dict[str, Any], dropped: list[int], steps: int, size: float) -> dict[str, Any]:
    """The source's metadata, less what no longer holds, and an account of where the set comes from."""
    kept = source["total_episodes"] - len(dropped)
    return source | {
        "total_episodes": kept,
        "total_steps": steps,
        "dataset_id": "rlseq/halfcheetah/medium-replay-bundled-v0",
        "dataset_size": size,
        "code_permalink": "scripts/make_bundled_dataset.py",
        "licence": "MIT",
        "origin": f"{source['dataset_id']}: {source['description']} Gymnasium 1.4, MuJoCo 4.0, HalfCheetah-v5; SAC "
        "with two hidden layers of 128, seed 0. Made for the rlseq project, under the project's licence.",
        "how_made": f"Whole episodes left out: every {EVERY}th, from the phase that moves the mean return least; the "
        "others are kept bit for bit and renumbered; gzip level 9 with byte shuffle.",
        "left_out_episodes": dropped,
        "description": f"{kept} of the {source['total_episodes']} episodes of {source['dataset_id']}.",
    }


def make(source: Path, target: Path) -> None:
    """Reads the Minari data folder `source`, replaces the data folder `target` when the new one is complete."""
    facts = json.loads((source / "metadata.json").read_text())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        new = Path(scratch) / "data"
        new.mkdir()
        # Format v110 indexes a dataset of one chunk without a B-tree: 12 kB an episode less.
        form = ("v110", "v110")
        with h5py.File(source / "main_data.hdf5") as old, h5py.File(new / "main_data.hdf5", "w", libver=form) as file:
            returns = np.array([old[f"episode_{i}/rewards"][()].sum() for i in range(facts["total_episodes"])])
            dropped = left_out(returns)
            kept = [i for i in range(len(returns)) if i not in dropped]
            for number, episode in enumerate(kept):
                copy_episode(old[f"episode_{episode}"], file, number)
            steps = sum(len(file[f"episode_{i}/rewards"]) for i in range(len(kept)))
        size = (new / "main_data.hdf5").stat().st_size
        facts = metadata(facts, dropped, steps, round(size / 1e6, 1))
        (new / "metadata.json").write_text(json.dumps(facts, indent=1) + "\n")
        total = sum(path.stat().st_size for path in new.iterdir())
        if total > MAX_BYTES:
            raise SystemExit(f"make: the set must have at most {MAX_BYTES} bytes, got {total}. Leave more out.")
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    print(f"{target}: {len(kept)} episodes, {steps} steps, {total} bytes")
    print(f"mean return {returns[kept].mean():.1f}, of the full set {returns.mean():.1f}; left out {dropped}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="data folder of the full Minari set")
    parser.add_argument("--target", type=Path, default=TARGET, help="data folder to write")
    arguments = parser.parse_args()
    make(arguments.source, arguments.target)
