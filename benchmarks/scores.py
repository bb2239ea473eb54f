"""A Markdown table of the scores in run folders: mean over seeds, the worst seed, and what it took.

python benchmarks/scores.py RUN [RUN ...]

Rows are grouped by dataset, agent, backbone, mode and target return. Besides ``result.json``, files that
``rlseq eval RUN --json > RUN/eval-NAME.json`` wrote are read. The last checkpoint counts, never the best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


def name_of(config: dict[str, Any]) -> str:
    """The agent, as a reader calls it."""
    options = config["agent_options"]
    if config["backbone"] is not None:
        cut = f"K={config['window']}" if config["regime"] == "window" else f"{config['regime']}, K={config['window']}"
        return f"{config['backbone']}, {options['tokens']}, {cut}" + ", carried" * config["training"]["carry_state"]
    name = "BC" if not options["return_conditioned"] else "K=1 MLP on (return-to-go, obs)"
    return name if config["top"] == 1 else f"{name}, best {100 * config['top']:.0f} %"


def main() -> None:
    """Reads the folders and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    groups: dict[tuple[str, str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for run in parser.parse_args().runs:
        if not (run / "result.json").is_file():
            print(f"{run} is not finished: left out", file=sys.stderr)
            continue
        config, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
        more = [json.loads(path.read_text()) for path in sorted(run.glob("eval-*.json"))]
        for scores in [*result["evaluations"], *(row for file in more for row in file["evaluations"])]:
            row = scores | {k: result[k] for k in ("updates", "train_seconds", "env_steps_per_s", "parameters")}
            groups[config["dataset"], name_of(config), scores["mode"], scores["target_return"]].append(row)
    header = (
        "dataset | agent | mode | target | score x100 | worst seed | return | seeds x episodes | updates | train s "
        "| env-steps/s | us a call, rows | state bytes"
    )
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
    for (dataset, agent, mode, target), rows in sorted(groups.items()):
        score = 100 * np.array([row["normalized_score"] for row in rows])
        returns = np.array([row["return_mean"] for row in rows])
        print(
            f"| {dataset.split('/', 1)[-1]} | {agent} | {mode} | {target:.0f} | {score.mean():.1f} ± {score.std():.1f} "
            f"| {score.min():.1f} | {returns.mean():.0f} | {len(rows)} x {rows[0]['episodes']} | {rows[0]['updates']} "
            f"| {np.median([row['train_seconds'] for row in rows]):.0f} "
            f"| {np.median([row['env_steps_per_s'] for row in rows]):,.0f} "
            f"| {np.median([row['act_us'] for row in rows]):,.0f}, {rows[0]['num_envs']} | {rows[0]['state_bytes']:,} |"
        )


if __name__ == "__main__":
    main()
