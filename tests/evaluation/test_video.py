"""Videos show the very episodes that were scored, are whole or absent, and what prevents them is said first."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlseq import envs
from rlseq.errors import ConfigError, RunError
from rlseq.evaluation import Scores, evaluate, record_videos, rollout, video
from tests.toys import toy_agent, toy_store
from tests.vector_toys import DRAWING, HEIGHT, NEXT_STEP, RAGGED, WIDTH, WILD, Remembering


@pytest.fixture
def moviepy() -> None:
    pytest.importorskip("moviepy", reason='needs moviepy: pip install "rlseq[video]"')


def score(folder: Path | str, env_id: str = DRAWING, **options: Any) -> Scores:
    torch.manual_seed(0)
    asked = {"episodes": 7, "seed": 3, "target_return": 20.0, "num_envs": 3, **options}
    return evaluate(toy_agent("hawk-joint", toy_store()), env_id, video=folder, **asked)


def frames_of(path: str | Path) -> np.ndarray:
    import imageio_ffmpeg

    exe, raw = imageio_ffmpeg.get_ffmpeg_exe(), ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run([exe, "-v", "error", "-i", str(path), *raw], capture_output=True, check=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


@pytest.mark.usefixtures("moviepy")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_best_the_median_and_the_worst_episode_are_drawn(tmp_path: Path, vectorization: str) -> None:
    found = score(tmp_path / "new/videos", vectorization=vectorization)
    order = np.argsort(-np.array(found.returns)).tolist()
    expected = {rank: order[i] for rank, i in (("best", 0), ("worst", 6), ("median", 3))}
    names = {
        f"recurrent-20-{rank}-seed{found.seeds[i]}-return{found.returns[i]:.0f}.mp4" for rank, i in expected.items()
    }
    assert {path.name for path in (tmp_path / "new/videos").iterdir()} == names
    assert {Path(path).name for path in found.videos} == names
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    for path in found.videos:
        episode = expected[Path(path).name.split("-")[2]]
        frames = frames_of(path)
        steps = found.lengths[episode]
        # The last may stand for a frame or two: moviepy 2 rounds the frames of a clip down, moviepy 1 up.
        assert steps + 1 <= len(frames) <= steps + 3, "the start, then one a step"
        for i, frame in enumerate(frames):
            age = min(i, steps)
            # The bar is 6 pixels longer after every step; its ends are blurred by the compression.
            middle = frame[32].astype(int)
            assert (middle[: max(0, 6 * age - 4), 0] > 120).all()
            assert (middle[6 * age + 4 :, 2] > 120).all()
            assert (frame[4, :, 2] > 120).all()


@pytest.mark.usefixtures("moviepy")
@pytest.mark.parametrize(
    ("episodes", "ranks"), [(1, ["best"]), (2, ["best", "worst"]), (4, ["best", "worst", "median"])]
)
def test_an_episode_is_written_once(tmp_path: Path, episodes: int, ranks: list[str]) -> None:
    found = score(tmp_path, episodes=episodes)
    assert [Path(path).name.split("-")[2] for path in found.videos] == ranks
    assert found.returns == score(tmp_path, episodes=episodes).returns, "again, over the files that are there"
    assert len(list(tmp_path.iterdir())) == len(ranks)


@pytest.mark.usefixtures("moviepy")
def test_discrete_actions_are_replayed_as_they_were_given() -> None:
    class Choosing(Remembering):
        def act(self, *args: np.ndarray) -> np.ndarray:
            return (super().act(*args)[:, 0] > 0).astype(np.int64)

    env = envs.make("CartPole-v1", 2, autoreset_mode="Disabled")
    played = rollout(Choosing(2), env, [1, 2, 3], record_actions=True)
    lone = envs.make("CartPole-v1", 1).envs[0]
    lone.render = lambda: np.zeros((2, 2, 3), np.uint8)
    for i in range(3):
        assert len(list(video._replay(lone, played, i))) == played.lengths[i] + 1


@pytest.mark.usefixtures("moviepy")
def test_an_environment_that_is_not_deterministic_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"replay of seed \d .* must be the episode again.*Wild-v0 is not deterministic"):
        score(tmp_path / "videos", WILD)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("moviepy")
@pytest.mark.parametrize("changed", ["longer", "shorter"])
def test_a_replay_of_another_length_is_found_out(tmp_path: Path, changed: str) -> None:
    env = envs.make(DRAWING, 2)
    played = rollout(Remembering(2), env, [1], record_actions=True)
    (actions,) = played.actions
    actions = actions[:-1] if changed == "shorter" else np.concatenate([actions, actions[-1:]])
    broken = replace(played, actions=(actions,), lengths=np.array([len(actions)]))
    info = replace(toy_store().info, env_id=DRAWING)
    with pytest.raises(RunError, match="without an end" if changed == "shorter" else "must be the episode again"):
        record_videos(info, broken, tmp_path / "videos", "x")
    assert not list(tmp_path.iterdir())


def no_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the rollout ran first")

    monkeypatch.setattr("rlseq.evaluation.scores.rollout", fail)


def test_without_moviepy_the_extra_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("moviepy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    no_rollout(monkeypatch)
    monkeypatch.delitem(sys.modules, "gymnasium.utils.save_video", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "rlseq\[video\]"') as caught:
        score(tmp_path / "videos")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("moviepy")
def test_what_prevents_a_video_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_rollout(monkeypatch)
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/videos"):
        with pytest.raises(RunError, match="video must be a folder to write to, got .*file"):
            score(tmp_path / folder)
    with pytest.raises(ConfigError, match="must draw"):
        score(tmp_path / "videos", RAGGED)
    with pytest.raises(ConfigError, match="cannot be reset one by one. Give vectorization sync or async"):
        score(tmp_path / "videos", NEXT_STEP, vectorization="native")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("moviepy")
def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(frames: list[np.ndarray], folder: str, **_: Any) -> None:
        (Path(folder) / "worst-episode-0.mp4").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(video, "_load_save_video", lambda: half)
    with pytest.raises(OSError, match="disk full"):
        score(tmp_path / "videos")
    assert not list(tmp_path.iterdir())
