"""Do many rows act as lone runs do? Random episode ends across 64 rows, for every backbone, mode and engine.

python benchmarks/soak.py --out FILE.json
python benchmarks/soak.py --backbones hawk transformer --engines eager onnx --steps 2000

A small agent with fresh weights and HalfCheetah's scales plays N rows of random observations and rewards. Episodes are
1 to 2,000 steps long; all rows start at once, one after the other, and at every step for a while; each episode asks
for another return. Every action of every row is compared with lone runs, to 1e-5 of actions in [-1, 1]:

passes  each episode alone, as one sequence, through the agent's parallel pass in float64
steps   two of the rows, from first to last, with an eager policy of one row that is fresh at every episode's start

"missed reset" is how far off actions would be had a memory not been reset: the least over 16 episodes. A case whose
missed reset is not at least 10 times the tolerance is blind, and fails. hawk is shown its previous action and reward;
gau and transformer have three tokens a step and attend to 8 steps, flash has chunks of 16 steps, griffin and hybrid
attend to 16; cloning reads no past. Window mode reads 5 steps, of hawk and transformer.
"us a step" is the median of `Policy.act` for all rows, on whatever else the machine does.

FILE is written after every case; the same command, of the same code, goes on with the cases that have not passed.
Exit code 0: all equal; 1: a case failed, its row and step are named; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from command_line import check_file, script_provenance
from rich import box
from rich.console import Console
from rich.table import Table
from soak_runs import LonePasses, Step, episodes_of, lone_steps, microseconds, played, scenario, targets_for

from rlseq import backbones, data
from rlseq.agents import Agent, BehaviourCloning, DecisionTransformer, Policy
from rlseq.agents.behaviour_cloning import Config as CloningConfig
from rlseq.agents.engines import ENGINES
from rlseq.agents.policy import MODES
from rlseq.cli import INTERRUPTED_EXIT
from rlseq.errors import RlseqError
from rlseq.progress import ProgressBar
from rlseq.report import Report

SAME = 1e-5
LONGEST = 2000
CLONING = "cloning"
READ = 8
"""Steps of a training window: attention reads as many in recurrent mode."""
WINDOW = 5
"""Steps that window mode reads."""
WINDOWED = ("hawk", "transformer")
LONE_ROWS = 2
WIDE = 120
"""Columns that the table takes where the output is no terminal."""
DATASET = "bundled:halfcheetah-medium-replay"
OPTIONS: dict[str, dict[str, Any]] = {"hawk": {"previous_action": True, "previous_reward": True}}
SMALL: dict[str, dict[str, Any]] = {
    "flash": {"chunk": 16},
    "griffin": {"depth": 3, "window": 16},
    "hybrid": {"depth": None, "local": {"window": 16}},
}
"""At least one layer of every kind, and windows and chunks that most episodes are longer than."""


class Run(NamedTuple):
    """What all cases share: the steps, and the target return of every step and row."""

    steps: list[Step]
    targets: np.ndarray


@dataclass(frozen=True)
class Result:
    """One backbone, mode and engine."""

    backbone: str
    engine: str
    mode: str
    rows: int
    steps: int
    episodes: int
    difference: float | None
    """The largest from the lone passes; None for what is no number."""
    difference_steps: float | None
    """The largest from the lone steps, likewise."""
    missed_reset: float | None
    """None where the agent has no memory to reset."""
    failed_rows: list[int]
    worst: str
    """Where the largest difference is."""
    us: float

    @property
    def blind(self) -> bool:
        """A missed reset would not be seen."""
        return self.missed_reset is not None and not self.missed_reset >= 10 * SAME

    @property
    def passed(self) -> bool:
        """Every row equals its lone runs, and could have failed to."""
        return not self.failed_rows and not self.blind

    @property
    def told(self) -> str:
        """Why it failed."""
        rows = ", ".join(map(str, self.failed_rows))
        why = f"{self.worst}; rows that differ: {rows}" if rows else "a missed reset would not be seen"
        return f"{self.backbone}, {self.engine}, {self.mode}: {why}"


def store_of() -> data.TrajectoryStore:
    """Real scales, for episodes of up to 2,000 steps."""
    store = data.open_dataset(DATASET)
    store.info = replace(store.info, max_episode_steps=LONGEST)
    return store


def agent_of(name: str, store: data.TrajectoryStore, *, width: int = 32, depth: int = 2) -> Agent:
    """A small agent with fresh weights: of a backbone, or one that clones behaviour."""
    torch.manual_seed(0)
    if name == CLONING:
        config = CloningConfig(width=width, return_conditioned=True)
        return BehaviourCloning(store.info, store.stats, window=READ, config=config).eval()
    small = {"width": width, "depth": depth, **SMALL.get(name, {})}
    return DecisionTransformer.for_data(
        store, name, window=READ, backbone_options=small, **OPTIONS.get(name, {})
    ).eval()


def prepared(store: data.TrajectoryStore, rows: int, steps: int, seed: int) -> Run:
    """A scenario of the length that the timestep table allows."""
    made = scenario(store, rows, steps, longest=LONGEST, seed=seed)
    return Run(made, targets_for(store, made, seed))


def compared(
    name: str,
    agent: Agent,
    mode: str,
    policies: Mapping[str, Callable[[], Policy]],
    run: Run,
    show: Callable[[float, str], None],
) -> Iterator[Result]:
    """A result for each policy. The lone runs are made once: shown what the first policy did, they hold for all.

    Args:
        name: of the agent.
        agent: what acts alone.
        mode: see `Agent.policy`.
        policies: what makes the policy of an engine, of all rows.
        run: what is played.
        show: told the share of the work that is done, and what comes now.
    """
    window = WINDOW if mode == "window" else None
    steps, targets = run
    episodes = episodes_of(steps)
    rows = np.sort(np.random.default_rng(0).permutation(len(steps[0].reward))[:LONE_ROWS])
    lone: np.ndarray | None = None
    missed: float | None = None
    whole = len(policies) + 2
    if not policies:
        return

    def shower(part: int, what: str) -> Callable[[float], None]:
        return lambda share: show((part + share) / whole, f"{name}, {mode}, {what}")

    stepped = lone_steps(agent.policy(1, mode=mode, window=window), rows, steps, targets, shower(0, "lone steps"))
    for number, (engine, make) in enumerate(policies.items()):
        policy = make()
        us = microseconds(policy, steps[:100])  # which leaves a past that the first step must forget
        actions = played(policy, steps, targets, shower(1 + number + (number > 0), engine))
        if lone is None:
            passes = LonePasses(agent, window, steps, targets, actions)
            lone = passes.read_all(episodes, shower(2, "lone passes"))
            missed = passes.missed(episodes) if agent.reads_past else None
        found = judged(actions, lone, stepped, rows)
        yield Result(
            name,
            engine,
            mode,
            rows=actions.shape[1],
            steps=len(steps),
            episodes=len(episodes),
            missed_reset=missed,
            us=us,
            **found,
        )
        if found["failed_rows"]:
            lone = None  # it was shown wrong actions


def judged(actions: np.ndarray, lone: np.ndarray, stepped: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """What differs: the largest differences, the rows beyond the tolerance, and where the worst is.

    Args:
        actions: (T, N, A) of the rows together.
        lone: (T, N, A) of each episode alone.
        stepped: (T, len(rows), A) of those rows alone.
        rows: numbers of rows.
    """
    of_passes = np.abs(actions - lone).max(-1)
    of_steps = np.zeros_like(of_passes)
    of_steps[:, rows] = np.abs(actions[:, rows] - stepped).max(-1)
    either = np.maximum(of_passes, of_steps)
    # What is not a number is no small difference.
    far = np.flatnonzero(~(either <= SAME).all(0))
    wrong = np.nan_to_num(either, nan=np.inf)
    step, row = np.unravel_index(np.argmax(wrong), wrong.shape)
    return {
        "difference": number_or_none(of_passes.max()),
        "difference_steps": number_or_none(of_steps.max()),
        "failed_rows": far.tolist(),
        "worst": f"row {row} is off by {wrong[step, row]:.2g} at step {step}",
    }


def number_or_none(value: float) -> float | None:
    """JSON has no other numbers."""
    return float(value) if np.isfinite(value) else None


def table(results: Sequence[Result]) -> Table:
    """Markdown's lines, by rich."""
    made = Table(box=box.MARKDOWN)
    for column in ("backbone", "engine", "mode"):
        made.add_column(column, no_wrap=True)
    for column in ("episodes", "from passes", "from steps", "missed reset", "us a step", "equal"):
        made.add_column(column, no_wrap=True, justify="right")
    for one in results:
        made.add_row(
            one.backbone,
            one.engine,
            one.mode,
            f"{one.episodes:,}",
            *("" if x is None else f"{x:.1e}" for x in (one.difference, one.difference_steps, one.missed_reset)),
            f"{one.us:,.0f}",
            "yes" if one.passed else "NO",
        )
    return made


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line, checked."""
    everything = [*backbones.available(), CLONING]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--backbones", **names, default=everything, help=f"of {', '.join(everything)}, or dotted names")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="environments side by side (64)")
    parser.add_argument("--steps", type=int, default=10_000, metavar="T", help="calls of act (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of observations, rewards and episodes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of the results, written after every case")
    options = parser.parse_args()
    check_file(parser, options.out)
    if options.rows < 1 or options.steps < 100:
        parser.error("--rows must be at least 1 and --steps at least 100.")
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be at least 0 and less than 2^32.")
    return parser, options


def case_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row of a report is about."""
    return row["backbone"], row["mode"], row["engine"]


def result_of(row: Mapping[str, Any]) -> Result:
    """A row of a report as it was."""
    return Result(**{field.name: row[field.name] for field in fields(Result)})


def main() -> None:
    """Plays, compares, prints the table."""
    parser, options = parsed()
    torch.set_num_threads(1)
    where = script_provenance()
    settings = {"rows": options.rows, "steps": options.steps, "seed": options.seed, "tolerance": SAME}
    cases = [
        (name, mode) for mode in options.modes for name in options.backbones if mode == "recurrent" or name in WINDOWED
    ]
    if not cases:
        parser.error(f"window mode is soaked for {' and '.join(WINDOWED)}; add one of them to --backbones.")
    try:
        report, store = Report(options.out, settings, where), store_of()
        made = {name: agent_of(name, store) for name in options.backbones}
        run = prepared(store, options.rows, options.steps, options.seed)
        print(json.dumps(where), flush=True)
        with ProgressBar("soak", 1000 * len(cases)) as bar:
            for number, (name, mode) in enumerate(cases):
                window = WINDOW if mode == "window" else None
                make = partial(made[name].policy, options.rows, mode=mode, window=window)
                passed = {case_of(row) for row in report.rows if row["passed"]}
                todo = [engine for engine in options.engines if (name, mode, engine) not in passed]
                report.rows = [row for row in report.rows if case_of(row) not in {(name, mode, one) for one in todo}]
                policies = {engine: partial(make, engine=engine) for engine in todo}
                for result in compared(name, made[name], mode, policies, run, partial(shown, bar, number)):
                    report.add([asdict(result) | {"passed": result.passed}])
        chosen = {(*case, engine) for case in cases for engine in options.engines}
        results = [result_of(row) for row in report.rows if case_of(row) in chosen]
    except (RlseqError, OSError, MemoryError) as error:
        parser.error(" ".join(str(error).split()) or type(error).__name__)
    except KeyboardInterrupt:
        print("soak.py: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT)
    Console(width=max(WIDE, Console().width)).print(table(results))
    for failed in (one.told for one in results if not one.passed):
        print(failed, file=sys.stderr)
    sys.exit(0 if all(one.passed for one in results) else 1)


def shown(bar: ProgressBar, number: int, share: float, note: str) -> None:
    """Redraws for a share of a case."""
    bar.update(int(1000 * (number + share)), note)


if __name__ == "__main__":
    main()
