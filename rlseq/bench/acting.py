"""How long an acting step takes, what it remembers, and whether either grows with time.

- `latency`: microseconds a step for contenders and a number of rows; the contenders take turns, so that the noise of
  the machine hits all alike
- `growth`: one episode of up to a million steps: cumulative time, state and process memory at marks; then the time of
  a step at every mark, from the states kept there, again in turns
- `drift`: that episode's last action beside the one of a run in float64, which reads the episode in pieces, each in
  parallel over time

The papers make their case with the same figures: state memory and cumulative time against tokens (Aaren, Feng et al.
2024, arXiv 2405.13956, figure 5), latency and throughput against steps and batch (Griffin, De et al. 2024, arXiv
2402.19427, figures 1b and 4).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rlseq.agents import Agent, Policy
from rlseq.bench.contenders import ACTION_SIZE, OBS, POOL, TARGET_RETURN, Actor, Contender
from rlseq.progress import ProgressBar

Row = dict[str, Any]
TURN_SECONDS = 0.05
CONTENDER_SECONDS = 10.0
LONGEST_STEP = 60.0
"""Seconds."""
BLOCK, WARM_UP, BLOCKS = 25, 5, 10
"""Steps of a block at a mark, those that are not counted, and blocks a round: short and many, so that a slow second of
the machine falls on all marks."""
PIECE = 1000


class Episode(NamedTuple):
    """What `growth` found.

    Attributes:
        rows: a row of figures for each mark.
        actions: (T, A) of all steps.
    """

    rows: list[Row]
    actions: np.ndarray


def latency(
    contenders: Sequence[Contender], batch: int, rounds: int, *, before: Sequence[Row] = (), quiet: bool = False
) -> list[Row]:
    """Microseconds a step in the middle of an episode: median, least and most of a contender's turns.

    Args:
        contenders: what to time.
        batch: rows that act at once.
        rounds: turns of each contender, of 50 ms or one step; fewer for what takes more than ten seconds in all.
        before: figures of smaller batches; what by them would take more than a minute a step is left out.
        quiet: show no progress.

    Raises:
        ConfigError: a contender does not act as it must, by the parallel pass.
    """
    chosen = [one for one in contenders if _expected_seconds(one, batch, before) <= LONGEST_STEP]
    actors: list[Actor] = []
    with ProgressBar(f"latency, {batch} rows", len(chosen) * (rounds + 1), quiet=quiet) as bar:
        steps: list[int] = []
        for contender in chosen:
            bar.update(len(actors), f"preparing {contender.label} {contender.engine}")
            actors.append(contender.make(batch))
            one = _seconds(actors[-1], batch, 1)  # the first one may prepare: only what is far longer is believed
            steps.append(math.ceil(TURN_SECONDS / (one if one > 1.0 else _seconds(actors[-1], batch, 3))))
        found: list[list[float]] = [[] for _ in chosen]
        for turn in range(rounds):
            for index, (contender, actor) in enumerate(zip(chosen, actors, strict=True)):
                bar.update((turn + 1) * len(chosen) + index, f"{contender.label} {contender.engine}")
                if sum(found[index]) * steps[index] < 1e6 * CONTENDER_SECONDS:
                    found[index].append(1e6 * _seconds(actor, batch, steps[index]))
    return [
        contender.facts()
        | {"batch": batch, "us": statistics.median(us), "least": min(us), "most": max(us)}
        | {"rows_per_s": 1e6 * batch / statistics.median(us), "state_bytes": actor.state_bytes}
        for contender, actor, us in zip(chosen, actors, found, strict=True)
    ]


def growth(contender: Contender, steps: int, rounds: int, *, seconds: float = math.inf, quiet: bool = False) -> Episode:
    """One episode of one row: what it costs by the time each mark is reached, and a step at each mark.

    Args:
        contender: what acts.
        steps: length of the episode; the marks are 10, 30, 100, 300, ... and this.
        rounds: a step is timed again at every mark in ten times as many turns.
        seconds: the episode ends at the first mark after so long.
        quiet: show no progress.
    """
    actor = contender.make(1)
    each, kept, rows = np.full(steps + BLOCK, 0.0), [], []  # filled: memory that is only reserved would come in later
    actions = np.full((steps + BLOCK, ACTION_SIZE), 0.0, np.float32)
    done = 0
    with ProgressBar(f"growth, {contender.label}", steps, quiet=quiet) as bar:
        for mark in _marks(steps):
            while done < mark:
                until = min(mark, done + 10_000)
                _play(actor, done, until, each, actions)
                done = until
                bar.update(done, f"{1e6 * each[done - 1]:.0f} us a step")
            rows.append(
                contender.facts()
                | {
                    "step": mark,
                    "seconds": float(each[:mark].sum()),
                    "us": 1e6 * float(np.median(each[max(0, mark - BLOCK) : mark])),
                }
                | {"state_bytes": actor.state_bytes, "process_megabytes": _process_megabytes()}
            )
            if isinstance(actor, Policy):
                kept.append(actor.state)
            if rows[-1]["seconds"] > seconds:
                break
    played = actions[:done].copy()
    if isinstance(actor, Policy):
        again: list[list[float]] = [[] for _ in rows]
        for _ in range(BLOCKS * rounds):
            for found, row, state in zip(again, rows, kept, strict=True):
                actor.state = state
                _play(actor, row["step"], row["step"] + BLOCK, each, actions)
                found += (1e6 * each[row["step"] + WARM_UP : row["step"] + BLOCK]).tolist()
        for row, us in zip(rows, again, strict=True):
            row["us"] = statistics.median(us)
    return Episode(rows, played)


def drift(agent: Agent, actions: np.ndarray, *, quiet: bool = False) -> float:
    """How far an episode's last action is from the one of a run in float64.

    Args:
        agent: whose it is.
        actions: (T, A) of an episode of `growth`.
        quiet: show no progress.

    Returns:
        The largest difference of the last action's numbers; 2, as large as there is, where one is not finite.
    """
    steps, size = actions.shape
    pool, given = torch.from_numpy(OBS).double(), torch.from_numpy(actions).double()
    before = torch.cat([torch.zeros(1, size, dtype=torch.float64), given[:-1]])
    exact = agent.double()
    try:
        state, last = exact.init_state(1), torch.full((size,), math.nan)
        with torch.inference_mode(), ProgressBar(f"float64, {steps} steps", steps, quiet=quiet) as bar:
            for first in range(0, steps, PIECE):
                index = torch.arange(first, min(steps, first + PIECE))
                numbers = torch.zeros(1, len(index), dtype=torch.float64)
                inputs = exact.inputs(
                    obs=pool[index % POOL][None],
                    action=given[index][None],
                    return_to_go=numbers + TARGET_RETURN,
                    timestep=index[None],
                    reset=(index == 0)[None],
                    previous_action=before[index][None],
                    previous_reward=numbers,
                    known=(index > 0)[None],
                )
                prediction, state = exact(inputs, state)
                last = exact.to_bounds(prediction)[0, -1]
                bar.update(first + len(index), "")
    finally:
        agent.float()
    difference = float(np.abs(last.numpy() - actions[-1]).max())
    return difference if math.isfinite(difference) else 2.0


def _marks(steps: int) -> list[int]:
    """10, 30, 100, 300, ... up to and with steps."""
    marks = [times * 10**power for power in range(1, 12) for times in (1, 3)]
    return [*(mark for mark in marks if mark < steps), steps]


def _expected_seconds(contender: Contender, batch: int, before: Sequence[Row]) -> float:
    facts = contender.facts().items()
    known = [row for row in before if facts <= row.items()]
    return max((1e-6 * row["us"] * batch / row["batch"] for row in known), default=0.0)


def _seconds(actor: Actor, batch: int, count: int) -> float:
    """Seconds a step, of `count` steps."""
    obs, reward, start = [np.tile(OBS[i], (batch, 1)) for i in range(8)], np.zeros(batch), np.zeros(batch, np.bool_)
    act: Callable[..., np.ndarray] = actor.act
    began = time.perf_counter()
    for step in range(count):
        act(obs[step % 8], reward, start)
    return (time.perf_counter() - began) / count


def _play(actor: Actor, first: int, until: int, seconds: np.ndarray, actions: np.ndarray) -> None:
    """Steps of the one row; puts the seconds and the action of each into its place."""
    reward, start, going = np.zeros(1), np.ones(1, np.bool_), np.zeros(1, np.bool_)
    act: Callable[..., np.ndarray] = actor.act
    for step in range(first, until):
        obs = OBS[step % POOL][None]
        began = time.perf_counter()
        action = act(obs, reward, going if step else start)
        seconds[step] = time.perf_counter() - began
        actions[step] = action[0]


def _process_megabytes() -> float:
    """Resident memory of this process; 0 where the system has no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0
