"""The loss by timestep with the state carried and dropped: it is that of steps, and bad input is one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rlseq
from rlseq import run
from rlseq.config import EvalConfig, Experiment
from rlseq.training import TrainingConfig
from rlseq.types import Batch
from tests.scripts import load, refusal, run_script
from tests.tolerances import LOSS
from tests.toys import toy_store

carried = load("carried")

WINDOW, LENGTHS = 5, (30, 23, 12, 8)


@pytest.fixture(autouse=True)
def toy_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda name: toy_store(LENGTHS))


def trained(out: Path, backbone: str = "hawk", dataset: str = "toy", **changes: object) -> Path:
    experiment = Experiment(
        dataset=dataset,
        backbone=backbone,
        backbone_options=rlseq.backbones.config_class(backbone)(width=16, depth=1),
        window=WINDOW,
        batch_size=4,
        training=TrainingConfig(updates=2),
        eval=EvalConfig(episodes=0),
    )
    run.train_experiment(replace(experiment, **changes), out, device="cpu", progress=False)
    return out


def test_the_columns_end_with_the_longest_episode() -> None:
    assert carried.edges(1000) == [0, 20, 50, 100, 200, 500, 1000]
    assert carried.edges(1001) == [0, 20, 50, 100, 200, 500, 1000, 1001]
    assert carried.edges(7) == [0, 7]


def test_carried_the_loss_is_that_of_steps(tmp_path: Path) -> None:
    agent = rlseq.load(trained(tmp_path / "run"))
    batch = carried.batch_of(toy_store(LENGTHS), 3)
    assert batch.obs.shape[:2] == (3, 30)
    got = carried.losses(agent, batch, WINDOW, [0, 5, 20, 30, 40])
    inputs, target, error = agent.window_inputs(batch), agent.scaled_action(batch.action), torch.empty(3, 30)
    with torch.no_grad():
        state = agent.init_state(3)
        for t in range(30):
            prediction, state = agent.step(type(inputs)(*[part[:, t : t + 1] for part in inputs]), state)
            error[:, t] = (prediction - target[:, t]).square().mean(-1)
    for value, first, end in zip(got.carried[:3], (0, 5, 20), (5, 20, 30), strict=True):
        seen = (batch.timestep >= first) & (batch.timestep < end)
        assert value == pytest.approx(float(error[seen].mean()), rel=LOSS)
    assert math.isnan(got.carried[3])
    assert math.isnan(got.dropped[3])


@pytest.mark.parametrize("window", [5, 7])
def test_dropped_the_loss_is_that_of_the_training(window: int, tmp_path: Path) -> None:
    options = rlseq.agents.load("decision_transformer").Config(previous_action=True, previous_reward=True)
    agent = rlseq.load(trained(tmp_path / "run", agent_options=options))
    batch = carried.batch_of(toy_store((30,)), 1)
    total = 0.0
    with torch.no_grad():
        for t in range(0, 30, window):
            part = Batch(**{name: value[:, t : t + window] for name, value in vars(batch).items()})
            total += float(agent.loss(part).value) * part.mask.shape[1]
    got = carried.losses(agent, batch, window, [0, 30])
    assert got.dropped == [pytest.approx(total / 30, rel=LOSS)]
    assert got.carried != got.dropped


def test_each_run_has_two_rows_and_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [trained(tmp_path / "a"), trained(tmp_path / "b", "aaren"), trained(tmp_path / "c", seed=3)]
    run_script(monkeypatch, carried, *folders, "--rows", 2, "--plot", tmp_path / "carried.png")
    where, header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert json.loads(where)["command"].startswith("python benchmarks/carried.py ")
    assert header == "| agent | state | 0 to 19 | 20 to 29 |"
    names = [f"| {agent}, K={WINDOW}, seed {seed}" for agent, seed in (("hawk, joint", 0), ("aaren, joint", 0))]
    names += [f"| hawk, joint, K={WINDOW}, seed 3"]
    assert [row.rsplit(" | ", 3)[0] for row in rows] == [name for name in names for _ in range(2)]
    assert [row.split(" | ")[1] for row in rows] == ["carried", "dropped"] * 3
    assert (tmp_path / "carried.png").stat().st_size > 1000


def test_an_agent_that_does_not_see_all_observations_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(monkeypatch, carried, trained(tmp_path / "run", drop_obs=(0,)))
    assert "| carried |" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b", dataset="toy-other")
    dropping = trained(tmp_path / "c", drop_obs=(0,))
    for arguments, message in (
        ((one, other), "runs must be of one dataset and --drop-obs, got ('toy', ()) and ('toy-other', ())"),
        ((one, dropping), "got ('toy', ()) and ('toy', (0,))"),
        ((one, one), "each run must be given once"),
        ((tmp_path / "none",), "none"),
        ((one, "--rows", 0), "--rows must be at least 1"),
        ((one, "--plot", tmp_path / "x.foo"), "--plot must end in one of"),
    ):
        assert message in refusal(capsys, lambda given=arguments: run_script(monkeypatch, carried, *given))
