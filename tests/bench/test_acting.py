from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from rlseq.bench import acting, contenders, rivals, tables
from rlseq.bench.contenders import ACTION_SIZE, OBS_SIZE, Contender
from rlseq.errors import ConfigError


class Toy:
    """An actor whose state grows or not, and which says what it was asked."""

    def __init__(self, rows: int, *, grows: bool = False) -> None:
        self.rows, self.grows, self.steps, self.starts = rows, grows, 0, []

    @property
    def state_bytes(self) -> int:
        return 8 * self.steps if self.grows else 8

    def act(self, obs: np.ndarray, reward: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        assert obs.shape == (self.rows, OBS_SIZE)
        self.starts.append(bool(episode_start[0]))
        self.steps += 1
        return np.full((self.rows, ACTION_SIZE), self.steps, np.float32)


def toy(name: str = "toy", **options: Any) -> Contender:
    return Contender(name, "cache", None, "eager", lambda rows: Toy(rows, **options))


def test_latency_has_a_row_for_each_contender_and_the_figures_of_its_turns() -> None:
    rows = acting.latency([toy("a"), toy("b")], batch=4, rounds=3, quiet=True)
    assert [(row["name"], row["batch"]) for row in rows] == [("a", 4), ("b", 4)]
    for row in rows:
        assert 0 < row["least"] <= row["us"] <= row["most"]
        assert row["rows_per_s"] == pytest.approx(4e6 / row["us"])


def test_what_would_take_more_than_a_minute_a_step_is_left_out() -> None:
    slow, quick = toy("slow"), toy("quick")
    before = [one.facts() | {"batch": 16, "us": us} for one, us in ((slow, 16e6), (quick, 14e6))]
    assert [row["name"] for row in acting.latency([slow, quick], 64, 1, before=before, quiet=True)] == ["quick"]


def test_growth_has_the_marks_of_one_episode_and_its_actions() -> None:
    rows, actions = acting.growth(toy(grows=True), 150, 1, quiet=True)
    assert [row["step"] for row in rows] == [10, 30, 100, 150]
    assert [row["state_bytes"] for row in rows] == [80, 240, 800, 1200]
    assert all(earlier["seconds"] < later["seconds"] for earlier, later in itertools.pairwise(rows))
    assert (actions == np.arange(1, 151)[:, np.newaxis]).all()


def test_growth_stops_at_the_first_mark_after_its_seconds() -> None:
    rows, actions = acting.growth(toy(), 1000, 1, seconds=0.0, quiet=True)
    assert [row["step"] for row in rows] == [10]
    assert len(actions) == 10


@pytest.mark.parametrize("name", ["hawk", "transformer"])
def test_drift_is_small_and_sees_one_wrong_action(name: str) -> None:
    contender = contenders.recurrent(name, "eager")
    rows, actions = acting.growth(contender, 40, 1, quiet=True)
    assert {row["state_bytes"] for row in rows} == {contender.make(1).state_bytes}
    assert contender.agent is not None
    assert acting.drift(contender.agent, actions, quiet=True) < 1e-5
    assert next(contender.agent.parameters()).dtype == torch.float32
    wrong = actions.copy()
    wrong[-1, 1] += 0.01
    assert acting.drift(contender.agent, wrong, quiet=True) == pytest.approx(0.01, rel=0.01)
    wrong[-1, 1] = np.nan
    assert acting.drift(contender.agent, wrong, quiet=True) == 2.0


def test_a_backbone_of_several_tokens_a_step_is_timed_with_one_too() -> None:
    names = {name: [one.label for one in contenders.carried(name, "eager")] for name in ("hawk", "gau")}
    assert names == {"hawk": ["hawk recurrent"], "gau": ["gau recurrent", "gau joint recurrent"]}
    sizes = [one.make(2).state_bytes for one in contenders.carried("gau", "eager")]
    assert sizes[0] > 2 * sizes[1]


def test_an_engine_that_acts_otherwise_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slipping(engine: str, step: Any, rows: int) -> Any:
        real = contenders.Policy(build(engine, step, rows), rows, target_return=None).engine

        class Slips:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def __call__(self, *arguments: Any, **options: Any) -> Any:
                action, state = real(*arguments, **options)
                return action + 1e-3 * arguments[0].episode_start.any(), state

        return Slips()

    build = contenders.build
    monkeypatch.setattr(contenders, "build", slipping)
    with pytest.raises(ConfigError, match=r"hawk with engine eager must act as the parallel pass does"):
        contenders.recurrent("hawk", "eager").make(2)


def test_a_full_window_is_one_that_was_played() -> None:
    steps = 6
    made = contenders.window("transformer", steps).make(2)
    played = contenders.agent_of("transformer", steps).policy(2, mode="window")
    obs = np.tile(contenders.OBS[: steps + 1, np.newaxis], (1, 2, 1))
    for index in range(steps):
        played.act(obs[index], np.zeros(2), np.full(2, index == 0))
    history = made.state.memory._replace(action=played.state.memory.action)
    made.state = made.state._replace(memory=history, action=played.state.action)
    going = np.zeros(2), np.zeros(2, np.bool_)
    np.testing.assert_allclose(made.act(obs[steps], *going), played.act(obs[steps], *going), atol=1e-6)


def test_rivals_act_and_the_cache_alone_grows() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    for contender, growing in ((rivals.window(5), False), (rivals.cache(), True)):
        rows, actions = acting.growth(contender, 40, 1, quiet=True)
        assert np.isfinite(actions).all()
        assert (rows[0]["state_bytes"] < rows[-1]["state_bytes"]) is growing


def test_tables_have_a_line_for_each_contender() -> None:
    base = toy().facts()
    rows = [base | {"batch": batch, "engine": engine, "us": us} for batch, engine, us in
            ((1, "eager", 9.0), (1, "onnx", 4.0), (64, "eager", 20.0), (64, "onnx", 30.0))]  # fmt: skip
    assert tables.latency(rows) == [
        ["contender", "engine", "1 row", "64 rows"],
        ["toy cache", "eager", "9", "20"],
        ["toy cache", "onnx", "4", "30"],
    ]
    assert [row["engine"] for row in tables.fastest(rows)] == ["onnx", "onnx"]
    assert tables.best(rows) == {"toy": (None, "onnx")}
    joint = base | {"tokens": "joint", "batch": 1, "engine": "onnx", "us": 3.0}
    assert tables.best([*rows, joint, joint | {"batch": 64, "us": 1.0}]) == {"toy": ("joint", "onnx")}
    marks = [base | {"step": step, "us": us, "state_bytes": 8, "process_megabytes": 100.0}
             for step, us in ((10, 50.0), (30, 99.0), (1000, 55.0))]  # fmt: skip
    marks[-1]["drift"] = 2e-6
    line = ["toy cache", "50", "55", "10%", "8", "100 to 100", "2e-06"]
    assert tables.growth(marks)[1] == line
    assert tables.markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
