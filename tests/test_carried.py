"""The loss by timestep with the state carried and dropped: it is that of steps, and bad input is one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rlseq
from rlseq import run
from rlseq.config import EvalConfig, Experiment
from rlseq.training import TrainingConfig
from tests.scripts import load, refusal
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


def script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["carried.py", *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        carried.main()
    finally:
        torch.set_num_threads(threads)


def test_the_columns_end_with_the_longest_episode() -> None:
    assert carried.edges(1000) == [0, 20, 50, 100, 200, 500, 1000]
    assert carried.edges(1001) == [0, 20, 50, 100, 200, 500, 1000, 1001]
    assert carried.edges(7) == [0, 7]


def test_the_loss_is_that_of_steps_and_of_rows_of_the_window(tmp_path: Path) -> None:
    agent = rlseq.load(trained(tmp_path / "run"))
    store = toy_store(LENGTHS)
    batch = carried.batch_of(store, 3)
    assert batch.obs.shape[:2] == (3, 30)
    got = carried.losses(agent, batch, WINDOW, [0, 5, 20, 30, 40])
    inputs, target = agent.window_inputs(batch), agent.scaled_action(batch.action)
    errors = {"carried": torch.empty(3, 30), "dropped": torch.empty(3, 30)}
    with torch.no_grad():
        for name, error in errors.items():
            state = agent.init_state(3)
            for t in range(30):
                one = type(inputs)(*[part[:, t : t + 1] for part in inputs])
                if name == "dropped":
                    one = one._replace(reset=one.reset | (one.timestep % WINDOW == 0))
                prediction, state = agent.step(one, state)
                error[:, t] = (prediction - target[:, t]).square().mean(-1)
    for name, error in errors.items():
        values = getattr(got, name)
        for value, first, end in zip(values[:3], (0, 5, 20), (5, 20, 30), strict=True):
            seen = (batch.timestep >= first) & (batch.timestep < end)
            assert value == pytest.approx(float(error[seen].mean()), rel=LOSS)
        assert values[3] != values[3]  # no episode is so long
    assert got.carried[0] == got.dropped[0]
    assert got.carried[1] != got.dropped[1]


def test_each_run_has_two_rows_and_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [trained(tmp_path / "a"), trained(tmp_path / "b", "aaren"), trained(tmp_path / "c", seed=3)]
    script(monkeypatch, *folders, "--rows", 2, "--plot", tmp_path / "carried.png")
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert header == "| agent | state | 0 to 19 | 20 to 29 |"
    names = [f"| {agent}, K={WINDOW}, seed {seed}" for agent, seed in (("hawk, joint", 0), ("aaren, joint", 0))]
    names += [f"| hawk, joint, K={WINDOW}, seed 3"]
    assert [row.rsplit(" | ", 3)[0] for row in rows] == [name for name in names for _ in range(2)]
    assert [row.split(" | ")[1] for row in rows] == ["carried", "dropped"] * 3
    assert (tmp_path / "carried.png").stat().st_size > 1000


def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b", dataset="toy-other")
    for arguments, message in (
        ((one, other), "runs must be of one dataset, got toy, toy-other"),
        ((tmp_path / "none",), "none"),
        ((one, "--rows", 0), "--rows must be at least 1"),
        ((one, "--plot", tmp_path / "x.foo"), "--plot must end in one of"),
    ):
        assert message in refusal(capsys, lambda given=arguments: script(monkeypatch, *given))
