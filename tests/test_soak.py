"""The soak's short form: rows with random episode ends equal lone runs; and it says so where they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from rlseq import backbones
from rlseq.agents import Agent, Policy
from tests.scripts import load, refusal, run_script

soak, runs = load("soak"), load("soak_runs")

ROWS, STEPS = 64, 200
FEW, SHORT, BROKEN = 24, 100, 17
STATES = 1e-4
CASES = [
    *[(name, "recurrent", ("eager", "onnx")) for name in (*backbones.available(), soak.CLONING) if name != "hawk"],
    ("hawk", "recurrent", ("eager", "onnx", "compiled")),
    *[(name, "window", ("eager",)) for name in soak.WINDOWED],
]


@cache
def store() -> Any:
    return soak.store_of()


@cache
def run(rows: int = ROWS, steps: int = STEPS) -> Any:
    return soak.prepared(store(), rows, steps, seed=0)


def small(name: str) -> Agent:
    return soak.agent_of(name, store(), width=16, depth=1)


def results(name: str, agent: Agent, mode: str, policies: dict[str, Callable[[], Policy]], *size: int) -> list[Any]:
    return list(soak.compared(name, agent, mode, policies, run(*size), lambda share, note: None))


@pytest.mark.parametrize(("name", "mode", "engines"), CASES, ids=lambda part: part if isinstance(part, str) else "")
def test_every_row_equals_its_lone_runs(name: str, mode: str, engines: tuple[str, ...]) -> None:
    if "onnx" in engines:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    agent, window = small(name), soak.WINDOW if mode == "window" else None
    made = {engine: agent.policy(ROWS, mode=mode, window=window, engine=engine) for engine in engines}
    found = results(name, agent, mode, {engine: lambda policy=policy: policy for engine, policy in made.items()})
    assert [one.engine for one in found] == list(engines)
    assert not [one.told for one in found if not one.passed]
    first, *others = (policy.state_dict() for policy in made.values())
    for state in others:
        assert list(state) == list(first)
        for key, array in state.items():
            assert array.dtype == first[key].dtype
            np.testing.assert_allclose(array, first[key], atol=STATES, err_msg=key)


class Faulty:
    """An engine with a fault in one row."""

    def __init__(self, policy: Policy, fault: str) -> None:
        self.inner, self.fault, self.calls = policy.engine, fault, 0
        policy.engine = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, given: Any, state: Any, **options: Any) -> Any:
        self.calls += 1
        if self.fault == "a missed reset" and self.calls > 1:
            given = given._replace(episode_start=given.episode_start & (np.arange(FEW) != BROKEN))
        if self.fault == "a neighbour's memory":
            rows = torch.arange(FEW)
            rows[BROKEN] -= 1
            state = state._replace(memory=_pytree.tree_map(lambda leaf: leaf[rows], state.memory))
        action, following = self.inner(given, state, **options)
        if self.fault == "no number" and self.calls > SHORT:  # the calls before are timed, not compared
            action[BROKEN] = np.nan
        return action, following


@pytest.mark.parametrize("fault", ["a missed reset", "a neighbour's memory", "no number"])
def test_a_row_that_differs_is_named(fault: str) -> None:
    agent = small("hawk")

    def faulty() -> Policy:
        policy = agent.policy(FEW)
        Faulty(policy, fault)
        return policy

    policies = {"faulty": faulty, "eager": lambda: agent.policy(FEW)}
    wrong, right = results("hawk", agent, "recurrent", policies, FEW, SHORT)
    assert wrong.failed_rows == [BROKEN]
    assert not wrong.passed
    assert wrong.told.startswith(f"hawk, faulty, recurrent: row {BROKEN} is off by")
    assert wrong.told.endswith(f"rows that differ: {BROKEN}")
    assert right.passed


def test_an_agent_that_would_not_show_a_missed_reset_does_not_pass() -> None:
    agent = small("hawk")
    torch.nn.init.zeros_(agent.head.linear.weight)
    (found,) = results("hawk", agent, "recurrent", {"eager": lambda: agent.policy(FEW)}, FEW, SHORT)
    assert found.failed_rows == []
    assert not found.passed
    assert found.told == "hawk, eager, recurrent: a missed reset would not be seen"


def test_a_scenario_has_what_may_go_wrong() -> None:
    steps = runs.scenario(store(), ROWS, 4000, longest=soak.LONGEST, seed=1)
    start = np.stack([step.episode_start for step in steps])
    assert start[0].all()
    assert start[1000:1002].all()
    assert start[2000 + np.arange(ROWS), np.arange(ROWS)].all()
    assert start[3000 : 3000 + ROWS, 0].all()
    episodes = runs.episodes_of(steps)
    lengths = np.array([one.last - one.first for one in episodes])
    assert len(episodes) == start.sum()
    assert lengths.sum() == ROWS * 4000
    assert lengths.min() == 1
    assert 1000 < lengths.max() <= soak.LONGEST
    again, other = (runs.scenario(store(), ROWS, 100, longest=9, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again[50].obs, runs.scenario(store(), ROWS, 100, longest=9, seed=1)[50].obs)
    assert (again[50].obs != other[50].obs).any()


def scripted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    with pytest.raises(SystemExit) as end:
        run_script(monkeypatch, soak, *arguments)
    return end.value.code


@pytest.mark.parametrize(("same", "code", "equal"), [(1e-5, 0, "yes"), (0.0, 1, "NO")])
def test_the_script_writes_its_results_and_its_exit_code_tells(
    same: float,
    code: int,
    equal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(soak, "SAME", same)
    file = tmp_path / "soak.json"
    arguments = ("--backbones", "cloning", "hawk", "--engines", "eager", "--rows", 3, "--steps", 100, "--out", file)
    assert scripted(monkeypatch, *arguments) == code
    content, printed = json.loads(file.read_text()), capsys.readouterr()
    assert content["settings"] == {"rows": 3, "steps": 100, "seed": 0, "tolerance": same}
    assert content["sittings"][0]["command"].startswith("python benchmarks/soak.py --backbones cloning hawk")
    assert [(one["backbone"], one["mode"]) for one in content["rows"]] == [
        ("cloning", "recurrent"),
        ("hawk", "recurrent"),
        ("hawk", "window"),
    ]
    assert [one["passed"] for one in content["rows"]] == [code == 0] * 3
    rows = [line for line in printed.out.splitlines() if line.startswith("| ") and "eager" in line]
    assert [line.rstrip("| ").endswith(equal) for line in rows] == [True] * 3
    assert ("cloning, eager, recurrent: row" in printed.err) == (code == 1)


def test_the_same_command_goes_on_with_what_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, compared, asked = tmp_path / "soak.json", soak.compared, []

    def watched(name: str, agent: Agent, mode: str, policies: Any, *more: Any) -> Any:
        asked.append((name, mode, list(policies)))
        return compared(name, agent, mode, policies, *more)

    monkeypatch.setattr(soak, "compared", watched)
    arguments = ("--backbones", "cloning", "--modes", "recurrent", "--rows", 3, "--steps", 100, "--out", file)
    assert scripted(monkeypatch, *arguments, "--engines", "eager") == 0
    assert scripted(monkeypatch, *arguments, "--engines", "eager") == 0
    assert asked == [("cloning", "recurrent", ["eager"]), ("cloning", "recurrent", [])]
    content = json.loads(file.read_text())
    assert len(content["sittings"]) == 1
    content["rows"][0] |= {"failed_rows": [1], "passed": False}
    file.write_text(json.dumps(content))
    assert scripted(monkeypatch, *arguments, "--engines", "eager") == 0
    assert asked[2:] == [("cloning", "recurrent", ["eager"])]
    assert json.loads(file.read_text())["rows"][0]["passed"]


@pytest.mark.parametrize(("content", "message"), [("{}", "must be of this command"), ("[", "JSONDecodeError")])
def test_a_file_of_something_else_is_refused(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "soak.json"
    file.write_text(content)
    asked = ("--backbones", "cloning", "--out", file)
    assert message in refusal(capsys, lambda: run_script(monkeypatch, soak, *asked))
    other = {"settings": {"rows": 1}, "sittings": [], "rows": []}
    file.write_text(json.dumps(other))
    assert "must have the settings {'rows': 64" in refusal(capsys, lambda: run_script(monkeypatch, soak, *asked))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "hawl"], "unknown backbone 'hawl'"),
        (["--steps", 5], "--steps at least 100"),
        (["--rows", 0], "--rows must be at least 1"),
        (["--seed", -1], "--seed must be at least 0"),
        (["--modes", "window", "--backbones", "aaren"], "window mode is soaked for hawk and transformer"),
        (["--engines", "onxx"], "invalid choice: 'onxx'"),
        (["--out", "none/x.json"], "none is no folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[object], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, lambda: run_script(monkeypatch, soak, *arguments))
