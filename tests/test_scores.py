"""The table of scores: what counts as one row, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlseq import recipes
from rlseq.config import settle, to_json
from tests.scripts import load, refusal, run_script

matrix = load("matrix")
scores = load("scores")


def folder(at: Path, score: float | None = 0.25, **changes: Any) -> Path:
    """A run folder of the recipe ``aaren`` with some fields of its config changed."""
    at.mkdir()
    config = to_json(settle(recipes.recipe("aaren")))
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        config[outer] = {**config[outer], inner: value} if inner else value
    row = {"mode": "recurrent", "target_return": 4200.0, "normalized_score": score, "return_mean": 2000.0}
    row |= {"episodes": 10, "act_us": 300.0, "num_envs": 10, "state_bytes": 904}
    result = {"updates": 3000, "train_seconds": 9.0, "env_steps_per_s": 5.0, "parameters": 7, "evaluations": [row]}
    (at / "config.json").write_text(json.dumps(config))
    (at / "result.json").write_text(json.dumps(result))
    return at


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refusal(capsys, lambda: run_script(monkeypatch, scores, *arguments))


def test_what_is_no_finished_run_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder(tmp_path / "run")
    (tmp_path / "begun").mkdir()
    run_script(monkeypatch, scores, run, tmp_path / "begun", tmp_path / "none", run / "result.json")
    told = capsys.readouterr().err.splitlines()
    wanted = [("begun", "is not finished"), ("none", "does not exist"), ("run/result.json", "is no folder")]
    assert told == [f"{tmp_path / name} {what}: left out" for name, what in wanted]


def test_runs_that_differ_in_an_option_have_a_row_each_named_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = {"backbone_options__norm": "layer", "backbone_options__mlp": "relu"}
    folders = [folder(tmp_path / f"own{seed}", 0.2 + 0.1 * seed, seed=seed) for seed in (0, 1)]
    folders += [folder(tmp_path / f"paper{seed}", 0.1, seed=seed, **paper) for seed in (0, 1)]
    run_script(monkeypatch, scores, *folders)
    header, _, layer, rms = capsys.readouterr().out.splitlines()[3:]
    assert "| agent | recurrent, 4200 | train s |" in header
    assert "| aaren, joint, K=20, norm=layer, mlp=relu | 10.0 ± 0.0 (10.0), 2 x 10 | 9 | 5 | 300 (10)" in layer
    assert "| aaren, joint, K=20, norm=rms, mlp=gated | 25.0 ± 5.0 (20.0), 2 x 10 | 9 | 5 | 300 (10)" in rms


def test_an_agent_has_a_row_with_a_column_for_each_mode_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = folder(tmp_path / "run")
    result = json.loads((run_folder / "result.json").read_text())
    (row,) = result["evaluations"]
    result["evaluations"] += [{**row, "target_return": 6000.0, "normalized_score": 0.5}]
    result["evaluations"] += [{**row, "mode": "window", "normalized_score": 0.4, "act_us": 7000.0, "state_bytes": 80}]
    result["evaluations"][-1] |= {"num_envs": 1, "episodes": 99}
    (run_folder / "result.json").write_text(json.dumps(result))
    run_script(monkeypatch, scores, run_folder)
    header, _, line = capsys.readouterr().out.splitlines()[3:]
    assert "| recurrent, 4200 | recurrent, 6000 | window, 4200 | train s |" in header
    assert header.endswith("us a call (rows), window | state bytes, recurrent | state bytes, window |")
    cells = "| 25.0 ± 0.0 (25.0), 1 x 10 | 50.0 ± 0.0 (50.0), 1 x 10 | 40.0 ± 0.0 (40.0), 1 x 99 |"
    assert f"{cells} 9 | 5 | 300 (10) | 7,000 (1) | 904 | 80 |" in line


def test_seeds_datasets_and_evaluations_do_not_change_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [{"seed": 1}, {"dataset": "minari:rlseq/hopper/medium-v0"}, {"seed": 2, "eval__episodes": 3}]
    run_script(monkeypatch, scores, *[folder(tmp_path / str(index), **each) for index, each in enumerate(changes)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| aaren")]
    assert len(rows) == 2
    assert all("| aaren, joint, K=20 |" in row for row in rows)


def test_a_seed_that_would_count_twice_is_refused_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    assert f"got seed 0 of bundled:halfcheetah-medium-replay, aaren, joint, K=20, recurrent, 4200 in {one}" in refused(
        monkeypatch, capsys, one, other
    )
    again = one / "eval-again.json"
    again.write_text((one / "result.json").read_text())
    assert f"in {one / 'result.json'} and {again}" in refused(monkeypatch, capsys, one)


@pytest.mark.parametrize("content", ["{}", "{", "[]", '{"evaluations": [{}]}', "null"])
def test_a_folder_that_is_not_whole_is_named(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder(tmp_path / "broken")
    (broken / "result.json").write_text(content)
    line = refused(monkeypatch, capsys, folder(tmp_path / "whole", seed=1), broken)
    assert f"{broken} must hold a whole run" in line


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "dataset", None),
        ("config.json", "dataset", []),
        ("result.json", "evaluations", []),
        ("result.json", "train_seconds", None),
        ("evaluations", "return_mean", "2000"),
        ("evaluations", "target_return", None),
        ("evaluations", "episodes", True),
        ("evaluations", "mode", "eager"),
        ("evaluations", "mode", []),
    ],
)
def test_a_value_that_cannot_be_is_named(
    file: str,
    key: str,
    value: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = folder(tmp_path / "broken")
    path = broken / (file if file != "evaluations" else "result.json")
    content = json.loads(path.read_text())
    (content if file != "evaluations" else content[file][0])[key] = value
    path.write_text(json.dumps(content))
    line = refused(monkeypatch, capsys, folder(tmp_path / "whole", seed=1), broken)
    assert f"{broken} must hold a whole run" in line


def test_a_dataset_without_reference_scores_has_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(monkeypatch, scores, folder(tmp_path / "run", None))
    assert "| return 2000, 1 x 10 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.foo", "--plot must end in one of"), ("none/x.png", "is no folder"), ("", "must be a file, got a folder")],
)
def test_a_picture_that_cannot_be_written_is_found_before_the_work(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(monkeypatch, capsys, folder(tmp_path / "run"), "--plot", tmp_path / name)


def test_the_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(monkeypatch, scores, folder(tmp_path / "run"), "--plot", tmp_path / "scores.PNG")
    assert (tmp_path / "scores.PNG").stat().st_size > 1000


def test_the_tables_of_the_docs_are_those_of_the_runs_beside_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = Path(__file__).parents[1] / "docs"
    runs = sorted((docs / "results" / "matrix").iterdir())
    run_script(monkeypatch, scores, *runs)
    printed = capsys.readouterr().out.strip()
    text = (docs / "results.md").read_text()
    _, heading, rest = text.partition(f"\n{printed.partition(chr(10))[0]}\n")
    assert f"{heading}{rest}".startswith(f"\n{printed}\n\n![")
    asked = len(matrix.runs(docs, [0, 1, 2], list(matrix.DATASETS), matrix.EVERYTHING, list(matrix.REGIMES)))
    assert f"So far: {len(runs)} of {asked} runs" in text or len(runs) == asked
