"""The benchmark of training: what is wrong is not timed, and what it cannot time or write is said before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlseq import data
from rlseq.backbones import _attention, _gated_attention
from tests.scripts import load, refusal, run_script

train, contenders = load("train"), load("train_contenders")


def without_earlier_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    project = _gated_attention.GatedAttention.project

    def wrong(self: Any, x: torch.Tensor, position: torch.Tensor) -> Any:
        u, v, (q_quad, k_quad, q_lin, k_lin) = project(self, x, position)
        return u, v, (q_quad, k_quad, q_lin * (x.ndim < 3), k_lin)  # right step by step

    monkeypatch.setattr(_gated_attention.GatedAttention, "project", wrong)


def without_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = _attention.local_attention
    monkeypatch.setattr(
        _attention, "local_attention", lambda q, k, v, window, **rest: attention(q, k, v, len(q[0]), **rest)
    )


@pytest.mark.parametrize(
    ("name", "spoil"), [("flash", without_earlier_chunks), ("griffin", without_eviction)], ids=("flash", "griffin")
)
def test_what_is_wrong_beyond_the_first_chunk_or_window_is_not_timed(
    name: str, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = data.open_dataset("bundled:halfcheetah-medium-replay")
    agent = contenders.agent_of(name, store, 20, "joint", 64)
    contenders.check(agent, store)
    spoil(monkeypatch)
    with pytest.raises(SystemExit, match="refused to time"):
        contenders.check(agent, store)


def test_the_tables_and_the_file_have_every_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(contenders, "WIDTHS", (64,))
    monkeypatch.setattr(train, "SWEEP", (4, 16))
    monkeypatch.setattr(train, "SWEEP_STEPS", 32)
    monkeypatch.setitem(train.TABLES, "joint-20", ("joint", data.SamplerConfig("window", 20, 2)))
    asked = ("--tables", "joint-20", "sweep", "--backbones", "hawk", "transformer", "--rounds", 1, "--json", file)
    run_script(monkeypatch, train, *asked)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    figures = json.loads(file.read_text())
    assert [row["contender"] for row in figures["joint-20"]] == ["hawk", "transformer"]
    assert [(row["contender"], row["window"]) for row in figures["sweep"]] == [
        ("hawk", 4),
        ("hawk", 16),
        ("transformer", 4),
        ("transformer", 16),
    ]
    assert figures["commit"]
    assert printed[3].endswith("| 1.00 |")
    for row in figures["joint-20"]:
        assert f"| {row['env_steps_per_s']:,.0f} |" in "".join(printed[2:4])
    assert (
        printed[6] == "| hawk | " + " | ".join(f"{1e6 / r['env_steps_per_s']:.0f}" for r in figures["sweep"][:2]) + " |"
    )


def test_the_tables_of_the_docs_are_those_of_the_run_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1]
    figures = json.loads((root / "docs" / "results" / "train.json").read_text())
    for table in train.TABLES:
        train.print_table(table, figures[table])
    train.print_sweep(figures["sweep"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "\n".join(printed) in "\n".join(
        line for line in (root / "docs" / "results.md").read_text().splitlines() if line.startswith("|")
    )
    readme = (root / "README.md").read_text()
    for name in ("aaren", "hawk", "flash", "transformer"):
        speed = [row["env_steps_per_s"] for table in train.TABLES for row in figures[table] if row["contender"] == name]
        assert f" | {' | '.join(f'{one:,.0f}' for one in speed)} |" in readme


def test_memory_is_what_was_held_at_once_beyond_what_was_there_before() -> None:
    def make() -> Any:
        return contenders.Contender("one", "joint", 1, 1, 1, 1, lambda: torch.ones(50, 1024, 1024).sum())

    _, megabytes = contenders.peak_megabytes(make)
    if megabytes == megabytes:  # not a number but on Linux
        assert 190 < megabytes < 260


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tables", "sweep", "--backbones", "hugging-face"],
            "must have a backbone of rlseq, got hugging-face alone",
        ),
        (["--tables", "joint-20", "sweep", "--backbones", "hugging-face"], "--tables sweep must have a backbone"),
        (["--dataset", "nope"], "'nope'"),
        (["--dataset", "bundled:nope"], "nope"),
        (["--backbones", "hawkk"], "got hawkk"),
        (["--threads", "99999999"], "must be 1 to 1024, got 99999999"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--json", "."], "must be a file, got a folder"),
        (["--json", "none/x.json"], "is no folder"),
        (["--tables", "sweep", "--plot", "x.foo"], "--plot must end in one of"),
        (["--plot", "x.png"], "add --tables sweep"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train.rivals, "available", lambda: True)  # an extra
    monkeypatch.chdir(tmp_path)
    last = refusal(capsys, lambda: run_script(monkeypatch, train, *arguments))
    assert last.startswith("train.py: error: ")
    assert message in last
