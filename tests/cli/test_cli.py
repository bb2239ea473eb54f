from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

import rlseq
from rlseq.cli import main
from tests.cli.commands import QUICK, one_line
from tests.interrupts import MAY_BE_INTERRUPTED, interrupt
from tests.vector_toys import DRAWING


@pytest.mark.usefixtures("toy")
def test_train_then_eval_then_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dataset", "toy", "--out", "run", *QUICK]) == 0
    printed = capsys.readouterr()
    for word in ("recurrent", "return", "normalized", "us a", "bytes", "tensorboard --logdir run"):
        assert word in printed.out
    assert "training" in printed.err
    assert "left" in printed.err
    result = json.loads(Path("run/result.json").read_text())
    assert (result["updates"], len(result["evaluations"])) == (4, 1)

    assert main(["eval", "run", "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evaluations"][0]["returns"] == result["evaluations"][0]["returns"]
    arguments = ["eval", "run", "--episodes", "1", "--target-return", "1", "5", "--mode", "recurrent", "window"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("window") == 2

    assert main(["train", "--out", "run", "--resume", "--updates", "6"]) == 0
    assert json.loads(Path("run/result.json").read_text())["updates"] == 6


@pytest.mark.usefixtures("toy")
def test_without_out_a_run_folder_of_its_own_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("halfcheetah-medium-replay-hawk-seed0-")
    assert str(folder) in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_the_options_of_the_chosen_backbone_and_agent_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--updates", "2", "--eval.episodes", "0", "--eval.during", "0", "--batch-size", "4"]
    transformer = [
        "--backbone",
        "transformer",
        "--backbone.width",
        "16",
        "--backbone.heads",
        "2",
        "--agent.tokens",
        "joint",
    ]
    assert main(["train", "--out", "a", *arguments, *transformer]) == 0
    config = json.loads(Path("a/config.json").read_text())
    assert config["backbone_options"]["heads"] == 2
    assert config["optim"]["lr"] == 1e-4
    assert config["agent_options"]["tokens"] == "joint"
    assert main(["train", "--out", "b", *arguments, "--agent", "behaviour_cloning", "--agent.width", "8"]) == 0
    config = json.loads(Path("b/config.json").read_text())
    assert (config["agent"], config["agent_options"]["width"], config["backbone"]) == ("behaviour_cloning", 8, None)
    capsys.readouterr()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def d4rl_file(path: Path, **changes: Callable[[np.ndarray], np.ndarray | None]) -> str:
    """A small D4RL file in which some keys are changed, or left out where the change gives None."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(30, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(30, 2)).astype(np.float32),
        "rewards": rng.normal(size=30).astype(np.float32),
        "terminals": np.zeros(30, bool),
        "timeouts": np.arange(30) % 10 == 9,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            value = changes[name](array) if name in changes else array
            if value is not None:
                file[name] = value
    return f"d4rl:{path}"


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3] = np.nan
    return array


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": lambda a: None}, ["actions", "Add it"]),
        ({"observations": with_nan}, ["observations", "finite"]),
        ({"rewards": lambda a: a[:-5]}, ["rewards", "25", "30"]),
        ({"observations": lambda a: a[:, 0]}, ["observations"]),
    ],
)
def test_a_broken_hdf5_file_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Callable[..., np.ndarray]], words: list[str]
) -> None:
    name = d4rl_file(tmp_path / "bad.hdf5", **changes)
    line = one_line(capsys, ["train", "--dataset", name, "--out", "run"])
    assert "bad.hdf5" in line
    for word in words:
        assert word in line
    assert one_line(capsys, ["data", "inspect", name]) == line
    assert not Path("run").exists()


def test_a_truncated_hdf5_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = d4rl_file(tmp_path / "cut.hdf5")
    cut(tmp_path / "cut.hdf5")
    assert "cut.hdf5" in one_line(capsys, ["train", "--dataset", name, "--out", "run"])
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbone", "hawkk"], ["Did you mean 'hawk'"]),
        (["--backbone", "my.plugin"], ["my.plugin"]),
        (["--agent", "decision_transform"], ["Did you mean 'decision_transformer'"]),
        (["--recipe", "decision-transformer-hoper"], ["Did you mean 'decision-transformer-hopper'"]),
        (["--dataset", "bundled:halfcheeta-medium-replay"], ["Did you mean 'halfcheetah-medium-replay'"]),
        (["--dataset", "d4rl:hoper-medium-v2"], ["Did you mean 'hopper-medium-v2'"]),
        (["--dataset", "nothing.hdf5"], ["nothing.hdf5"]),
        (["--eval.env", "Hopper-v5"], ["observations", "11"]),
        (["--eval.env", "HalfCheeta-v5"], ["Did you mean 'HalfCheetah-v5'"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "toaster"], ["toaster"]),
        (["--updates", "0"], ["updates must be at least 1"]),
        (["--optim.lr", "nan"], ["lr must be a positive number"]),
        (["--top", "0"], ["top must be in (0, 1]"]),
        (["--validation", "1"], ["validation must be in [0, 1)"]),
        (["--carry-state"], ["carry_state goes with regime stream"]),
        (["--window", "0"], ["window must be at least 1"]),
        (["--seed", "-1"], ["seed"]),
        (["--regime", "pack"], ["1000"]),
        (["--eval.target-return", "nan"], ["target_return must be finite"]),
        (["--seed", "18446744073709551616"], ["seed must be in"]),
        (["--agent", "behaviour_cloning", "--carry-state", "--regime", "stream"], ["carry_state needs an agent"]),
        (["--resume", "--recipe", "transformer"], ["--recipe"]),
        (["--backbone", "."], ["importable"]),
        (["--batch-size", "100000000000"], [""]),
        (["--backbone.width", "0"], ["width"]),
        (["--drop-obs", "99"], ["99"]),
        (["--resume"], ["--resume"]),
    ],
)
def test_bad_training_input_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    line = one_line(capsys, ["train", *(["--out", "run"] if arguments != ["--resume"] else []), *arguments])
    assert len(line) > len("rlseq: ")
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "must be a run folder" in one_line(capsys, ["eval", str(tmp_path)])
    assert "must be a run folder" in one_line(capsys, ["train", "--out", "missing", "--resume"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    assert "--overwrite" in one_line(capsys, ["train", "--out", "full"])
    assert "run folders only" in one_line(capsys, ["train", "--out", "full", "--overwrite"])


def test_a_place_that_cannot_be_written_to_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("file").write_text("mine")
    assert "got a file" in one_line(capsys, ["train", "--out", "file"])
    assert "file" in one_line(capsys, ["train", "--out", "file/run"])
    one_line(capsys, ["train", "--out", "x" * 300])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("toy")
def test_a_path_with_marks_and_spaces_is_printed_as_a_shell_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dataset", "toy", "--out", "m [/] y", *QUICK]) == 0
    assert "tensorboard --logdir 'm [/] y'" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_eval_asks_for_what_the_training_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--eval.mode", "window", "--eval.target-return", "3", "--eval.seed", "5"]
    main(["train", "--dataset", "toy", "--out", "run", *QUICK, *asked])
    capsys.readouterr()
    assert main(["eval", "run", "--episodes", "2", "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["evaluations"]
    (first,) = json.loads(Path("run/result.json").read_text())["evaluations"]
    assert [again[k] for k in ("mode", "target_return", "seeds", "returns")] == [
        first[k] for k in ("mode", "target_return", "seeds", "returns")
    ]
    Path("file").write_text("mine")
    before = sorted(Path().rglob("*"))
    for bad, word in (
        (["--target-return", "1", "nan"], "finite"),
        (["--episodes", "0"], "episodes"),
        (["--num-envs", "0"], "num_envs must be >= 1"),
        (["--device", "meta"], "device"),
        (["--vectorization", "native"], "vector_entry_point"),
        (["--vectorization", "native", "--env", "HalfCheetah-v5"], "vector_entry_point"),
        (["--video", "file"], "video"),
        (["--video", "videos"], "video" if find_spec("moviepy") is None else "must draw"),
    ):
        assert word in one_line(capsys, ["eval", "run", *bad])
    with pytest.raises(SystemExit) as caught:
        main(["eval", "run", "--vectorization", "asink"])
    assert caught.value.code == 2
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("toy")
def test_eval_draws_and_lists_the_videos(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("moviepy", reason='needs moviepy: pip install "rlseq[video]"')
    main(["train", "--dataset", "toy", "--out", "run", *QUICK])
    capsys.readouterr()
    asked = ["eval", "run", "--env", DRAWING, "--episodes", "3", "--mode", "recurrent", "window", "--video", "videos"]
    assert main([*asked, "--vectorization", "async", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]
    assert [row["vectorization"] for row in found] == ["async", "async"]
    assert sorted(file for row in found for file in row["videos"]) == sorted(map(str, Path("videos").iterdir()))
    assert len(list(Path("videos").glob("window-*.mp4"))) == 3
    assert main(asked) == 0
    printed = capsys.readouterr()
    assert printed.out.count("Video:  videos/") == 6
    assert "videos" in printed.err, "a progress bar"


INTERRUPTED = (
    MAY_BE_INTERRUPTED
    + """
import multiprocessing
from rlseq import cli, config, run
from tests.toys import toy_agent, toy_store
from tests.vector_toys import SLOW

run.load_with_experiment = lambda *_: (toy_agent("hawk-joint", toy_store()), config.Experiment())
code = cli.main(["eval", "run", "--env", SLOW, "--episodes", "40", "--vectorization", "async", "--num-envs", "2"])
print(code, multiprocessing.active_children())
"""
)


def test_ctrl_c_ends_the_workers_quietly() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as command:
        while not Path("stepping").exists() and command.poll() is None:
            time.sleep(0.05)
        out, err = interrupt(command, group=True)  # the workers get it as well
    assert out == "130 []\n"
    assert err.splitlines()[-1] == "rlseq: stopped."
    assert "Traceback" not in err
    assert "Warning" not in err


@pytest.mark.usefixtures("toy")
def test_a_checkpoint_cut_short_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--dataset", "toy", "--out", "run", *QUICK])
    capsys.readouterr()
    cut(Path("run/checkpoints/00000004/model.safetensors"))
    assert "model.safetensors must be whole" in one_line(capsys, ["eval", "run"])
    assert "model.safetensors must be whole" in one_line(
        capsys, ["train", "--out", "run", "--resume", "--updates", "9"]
    )


@pytest.mark.parametrize(
    "arguments", [["train", "--no-such-option"], ["eval"], ["no-such-command"], [], ["data", "burn"]]
)
def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "eval", "export", "data", "doctor"]),
        (["train", "--help"], ["--dataset", "--backbone", "--backbone.width", "--updates", "--checkpoint-every",
                               "--seed", "--out", "--resume", "--overwrite", "--device", "--optim.lr",
                               "--eval.target-return"]),
        (["eval", "--help"], ["--episodes", "--target-return", "--mode", "--json", "--num-envs", "--vectorization",
                              "{sync,async,native}", "--engine", "--video", "rlseq[video]", "MUJOCO_GL=egl"]),
        (["export", "--help"], ["--mode", "--window", "--overwrite", "onnxruntime", "--json"]),
        (["data", "--help"], ["collect", "rlseq data collect --env"]),
        (["data", "collect", "--help"], ["sb3:FILE.zip", "module:function", "VecNormalize", "--ref-episodes", "--noise",
                                         "--env-kwargs", "--target-return", "--expert", "MINARI_DATASETS_PATH"]),
        (["data", "inspect", "--help"], ["--json"]),
        (["doctor", "--help"], ["--json"]),
    ],
)  # fmt: skip
def test_help_names_every_option(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_every_option_of_train_has_a_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    rows = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    bare = [
        row
        for i, row in enumerate(rows)
        if row.startswith("--") and "(default" in row and row.split("(default")[0].count(" ") < 4
    ]
    assert not bare


def test_doctor_and_data_print_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found["backbones"]} == set(rlseq.backbones.available())
    assert all(
        any(r["chosen"] for r in found["kernels"] if r["op"] == op) for op in ("rg_lru", "linear_scan", "causal_conv")
    )
    assert main(["doctor"]) == 0
    assert "hawk" in capsys.readouterr().out
    assert main(["data", "inspect", "bundled:halfcheetah-medium-replay", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["env_id"], facts["obs_size"]) == ("HalfCheetah-v5", 17)
    assert main(["data", "inspect", "bundled:halfcheetah-medium-replay"]) == 0
    assert "HalfCheetah-v5" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    assert "bundled:halfcheetah-medium-replay" in capsys.readouterr().out
