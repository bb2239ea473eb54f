from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlseq.bench import rivals
from rlseq.cli import main
from tests.cli.commands import one_line

SMALL = ["--backbones", "hawk", "--engines", "eager", "--windows", "4", "--rounds", "1", "--steps", "40"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "available", lambda: False)


def test_figures_are_printed_written_drawn_and_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main(["bench", "acting", *SMALL, "--batches", "1", "3", "--out", "found"]) == 0
    printed = capsys.readouterr().out
    assert "Without Hugging Face's models" in printed
    assert "transformer window K=4" in printed
    file = Path("found/acting.json")
    assert {path.name for path in file.parent.iterdir()} == {
        "acting.json", "acting.md", "acting-latency.png", "acting-growth.png"
    }  # fmt: skip
    whole = json.loads(file.read_text())
    latency, growth = ([row for row in whole["rows"] if row["part"] == part] for part in ("latency", "growth"))
    assert [(row["label"], row["batch"]) for row in latency] == [
        (label, batch) for batch in (1, 3) for label in ("hawk recurrent", "transformer window K=4")
    ]
    assert [row["step"] for row in growth] == 2 * [10, 30, 40]
    assert growth[2]["drift"] < 1e-5
    assert whole["sittings"][0]["versions"]["torch"]

    half = whole | {"rows": latency[:2]}
    file.write_text(json.dumps(half))
    assert main(["bench", "acting", *SMALL, "--batches", "1", "3", "--out", "found", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"][:2] == latency[:2]
    assert [row["part"] for row in again["rows"]] == 4 * ["latency"] + 6 * ["growth"]
    assert [row["sitting"] for row in again["rows"]] == 2 * [0] + 8 * [1]

    before = file.read_text()
    assert "must have the settings" in one_line(capsys, ["bench", "acting", *SMALL, "--batches", "2", "--out", "found"])
    assert file.read_text() == before
    older = [one | {"commit": "another"} for one in whole["sittings"]]
    file.write_text(json.dumps(whole | {"sittings": older}))
    assert "must have the commit" in one_line(
        capsys, ["bench", "acting", *SMALL, "--batches", "1", "3", "--out", "found"]
    )
    for broken in ({}, {key: value for key, value in whole.items() if key != "rows"}, whole | {"rows": [1]}):
        file.write_text(json.dumps(broken))
        told = one_line(capsys, ["bench", "acting", *SMALL, "--batches", "1", "3", "--out", "found"])
        assert "of this command" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backbones", "hwak"], "hawk"),
        (["--batches", "0"], "--batches must be at least 1"),
        (["--windows", "-1"], "--windows must be at least 1"),
        (["--steps", "0"], "--steps must be in 1 to"),
        (["--rounds", "0"], "--rounds must be in 1 to"),
        (["--threads", "99999999999"], "--threads must be in 1 to 1024"),
        (["--parts"], "--parts must have a value"),
        (["--batches"], "--batches must have a value"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in one_line(capsys, ["bench", "acting", *options, "--out", "found"])
    assert not Path("found").exists()
