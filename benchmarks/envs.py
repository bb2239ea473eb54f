"""Environment steps per second of every vectorization, with random actions.

    python benchmarks/envs.py [--rows 1 4 16] [--calls 300]

Kinds of one environment are timed in turn, so that a machine's other work falls on all of them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from contextlib import closing

import gymnasium
import mujoco
import numpy as np

from rlseq import envs
from rlseq.errors import ConfigError

REPEATS = 5


def steps_per_second(env_id: str, vectorization: envs.Vectorization, rows: int, calls: int) -> float:
    with closing(envs.make(env_id, rows, seed=0, vectorization=vectorization)) as env:
        env.reset(seed=0)
        actions = [env.action_space.sample() for _ in range(64)]
        for action in actions:
            env.step(action)
        began = time.perf_counter()
        for i in range(calls):
            env.step(actions[i % 64])
        return rows * calls / (time.perf_counter() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, Gymnasium {gymnasium.__version__}, MuJoCo {mujoco.__version__}, ", end=""
    )
    print(f"NumPy {np.__version__}; medians of {REPEATS} (lowest to highest), env-steps/s\n")
    print("| environment | rows | sync | async | native |\n|---|---|---|---|---|")
    for env_id in ("HalfCheetah-v5", "CartPole-v1"):
        for rows in options.rows:
            found: dict[str, list[float]] = {kind: [] for kind in envs.VECTORIZATIONS}
            for _ in range(REPEATS):
                for kind in envs.VECTORIZATIONS:
                    try:
                        found[kind].append(steps_per_second(env_id, kind, rows, options.calls))
                    except ConfigError:
                        continue
            cells = [
                f"{statistics.median(v):,.0f} ({min(v):,.0f} to {max(v):,.0f})" if v else "none" for v in found.values()
            ]
            print(f"| {env_id} | {rows} | {' | '.join(cells)} |", flush=True)
