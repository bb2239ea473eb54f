from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlseq
from rlseq import config, run
from rlseq.config import EvalConfig, Experiment
from rlseq.errors import ConfigError, RunError, ShapeError
from rlseq.training import TrainingConfig, checkpoint
from tests.tolerances import POLICY_REPLAY
from tests.toys import OBS_SIZE, toy_store


@pytest.fixture(autouse=True)
def toy_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda name: toy_store())


def small(**changes: Any) -> Experiment:
    options = rlseq.backbones.config_class("hawk")(width=16, depth=1)
    base = Experiment(
        dataset="toy",
        backbone_options=options,
        window=20,
        batch_size=4,
        training=TrainingConfig(updates=6, checkpoint_every=3, log_every=2),
        eval=EvalConfig(episodes=3, during=2, mode=("recurrent", "window"), target_return=(2.0, 5.0)),
    )
    return replace(base, **changes)


def go(out: Path, experiment: Experiment | None = None, **options: Any) -> dict[str, Any]:
    return run.train_experiment(experiment or small(), out, device="cpu", progress=False, **options)


def test_a_run_folder_holds_everything_and_loads_into_the_same_policy(tmp_path: Path) -> None:
    result = go(tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    for key in ("command", "commit", "versions", "machine", "date", "parameters", "state_bytes"):
        assert key in result
    assert [(e["mode"], e["target_return"], e["episodes"]) for e in result["evaluations"]] == [
        ("recurrent", 2.0, 3),
        ("recurrent", 5.0, 3),
        ("window", 2.0, 3),
        ("window", 5.0, 3),
    ]
    newest = tmp_path / "run/checkpoints/00000006"
    assert sorted(p.name for p in newest.iterdir()) == [
        "config.json", "model.safetensors", "stats.safetensors", "trainer.pt",
    ]  # fmt: skip
    agent = rlseq.load(tmp_path / "run")
    again = rlseq.load(newest)
    again_scores = rlseq.evaluation.evaluate(agent, episodes=3, target_return=2.0, seed=1000)
    assert again_scores.returns == result["evaluations"][0]["returns"]
    obs = np.ones((1, OBS_SIZE))
    np.testing.assert_allclose(agent.policy(1).act(obs), again.policy(1).act(obs), atol=POLICY_REPLAY)


def test_the_curves_are_in_tensorboard_for_every_mode_and_target(tmp_path: Path) -> None:
    go(tmp_path, small(validation=0.3))
    events = EventAccumulator(str(tmp_path)).Reload()
    text = (Path(__file__).parent.parent / "docs/metrics.md").read_text()
    names = set(events.Tags()["scalars"])
    for name in ("train/loss", "train/grad_norm", "train/lr", "train/env_steps_per_s", "validation/loss"):
        assert name in names
        assert f"`{name}`" in text
    for mode in ("recurrent", "window"):
        for target in (2, 5):
            assert [e.step for e in events.Scalars(f"eval_{mode}_{target}/return_mean")] == [3, 6]
    for name in names:
        assert f"`{name}`" in text or f"`{name.split('/')[-1]}`" in text, name
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_resumed_run_ends_with_the_same_weights_and_one_unbroken_curve(tmp_path: Path) -> None:
    go(tmp_path / "whole")
    calls = 0
    original = run._Run.checkpoint

    def dies(self: Any, trainer: Any) -> None:
        nonlocal calls
        original(self, trainer)
        calls += 1
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run._Run, "checkpoint", dies)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut")
    assert not (tmp_path / "cut/result.json").exists()
    assert [p.name for p in checkpoint.all_of(tmp_path / "cut")] == ["00000003"]
    go(tmp_path / "cut", resume=True)
    one, two = (rlseq.load(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    events = EventAccumulator(str(tmp_path / "cut")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 3, 4, 6]
    assert len(json.loads((tmp_path / "cut/provenance.json").read_text())) == 2


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save

    def full_disk(value: Any, file: Any) -> None:
        if value["update"] == 6:
            raise OSError("No space left on device")
        original(value, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        go(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000003"]
    assert rlseq.load(tmp_path) is not None
    monkeypatch.setattr(torch, "save", original)
    (tmp_path / "checkpoints/.00000005.part").mkdir()
    go(tmp_path, resume=True)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000003", "00000006"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    go(tmp_path, small(training=TrainingConfig(updates=5, checkpoint_every=1), eval=EvalConfig(episodes=0, during=0)))
    assert [p.name for p in checkpoint.all_of(tmp_path)] == ["00000004", "00000005"]


def test_a_folder_that_exists_is_left_alone_unless_told(tmp_path: Path) -> None:
    quick = small(eval=EvalConfig(episodes=0, during=0))
    go(tmp_path / "run", quick)
    before = (tmp_path / "run/result.json").read_text()
    with pytest.raises(RunError, match="--resume, --overwrite or another --out"):
        go(tmp_path / "run", quick)
    assert (tmp_path / "run/result.json").read_text() == before
    with pytest.raises(ConfigError, match="exclude each other"):
        go(tmp_path / "run", quick, resume=True, overwrite=True)
    go(tmp_path / "run", quick, overwrite=True)
    assert (tmp_path / "run/result.json").read_text() != before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("meow")
    with pytest.raises(RunError, match="replaces run folders only"):
        go(tmp_path / "photos", quick, overwrite=True)
    assert (tmp_path / "photos/cat.png").exists()


def test_a_resume_with_other_options_is_refused_but_more_updates_are_not(tmp_path: Path) -> None:
    quick = small(eval=EvalConfig(episodes=0, during=0))
    go(tmp_path, quick)
    with pytest.raises(ConfigError, match=r"batch_size.*seed"):
        go(tmp_path, replace(quick, batch_size=5, seed=3), resume=True)
    longer = replace(quick, training=replace(quick.training, updates=8))
    assert go(tmp_path, longer, resume=True)["updates"] == 8


@pytest.mark.parametrize("file", ["model.safetensors", "stats.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_broken_checkpoint_is_one_clear_error(tmp_path: Path, file: str, damage: str) -> None:
    go(tmp_path, small(eval=EvalConfig(episodes=0, during=0)))
    path = tmp_path / "checkpoints/00000006" / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(RunError, match="must be"):
        rlseq.load(tmp_path)


def test_a_trainer_state_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    quick = small(eval=EvalConfig(episodes=0, during=0))
    go(tmp_path, quick)
    path = tmp_path / "checkpoints/00000006/trainer.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="trainer.pt must be whole"):
        go(tmp_path, replace(quick, training=replace(quick.training, updates=9)), resume=True)
    assert rlseq.load(tmp_path) is not None


def test_a_trainer_state_with_a_flipped_bit_is_whole_or_one_clear_error(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"optimizer": {"lr": 0.1, "m": torch.ones(3)}, "update": 6}, whole)
    refused = 0
    for at in range(0, len(whole.getvalue()), 3):
        content = bytearray(whole.getvalue())
        content[at] ^= 1 << at % 8
        (tmp_path / "trainer.pt").write_bytes(content)
        try:
            checkpoint.load_trainer(tmp_path)
        except RunError as error:
            assert "trainer.pt must be whole" in str(error)  # noqa: PT017 - a flip in padding changes nothing
            refused += 1
    assert refused > 20


def test_a_folder_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "web app"}')
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="replaces run folders only"):
        go(tmp_path, small(eval=EvalConfig(episodes=0, during=0)), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_overwriting_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    quick = small(eval=EvalConfig(episodes=0, during=0))
    go(tmp_path, quick)
    (tmp_path / "notes.txt").write_text("mine")
    go(tmp_path, replace(quick, training=TrainingConfig(updates=1)), overwrite=True)
    assert (tmp_path / "notes.txt").exists()
    assert [p.name for p in checkpoint.all_of(tmp_path)] == ["00000001"]


def test_a_checkpoint_is_no_run_to_resume_and_survives_the_try(tmp_path: Path) -> None:
    go(tmp_path, small(eval=EvalConfig(episodes=0, during=0)))
    one = tmp_path / "checkpoints/00000006"
    before = (one / "config.json").read_text()
    with pytest.raises(RunError, match="must be a run folder"):
        go(one, small(), resume=True)
    assert (one / "config.json").read_text() == before


def test_a_run_stopped_before_its_first_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(self: Any, trainer: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "checkpoint", stops)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path)
    with pytest.raises(RunError, match="stopped before its first"):
        go(tmp_path, resume=True)
    go(tmp_path, overwrite=True)


def test_a_finished_run_is_not_resumed_and_never_shortened(tmp_path: Path) -> None:
    quick = small(eval=EvalConfig(episodes=0, during=0))
    go(tmp_path, quick)
    for updates in (6, 2):
        with pytest.raises(ConfigError, match="updates left"):
            go(tmp_path, replace(quick, training=replace(quick.training, updates=updates)), resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["updates"] == 6


def test_random_states_stay_on_the_cpu_whatever_the_device(tmp_path: Path) -> None:
    go(tmp_path, small(eval=EvalConfig(episodes=0, during=0)))
    state = checkpoint.load_trainer(checkpoint.latest(tmp_path))
    assert state["rng"]["cpu"].device.type == "cpu"


def test_an_environment_of_the_users_choice_is_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy_store()
    store.info = replace(store.info, env_id=None)
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda name: store)
    with pytest.raises(ConfigError, match="--eval.env"):
        go(tmp_path / "none")
    go(tmp_path / "told", small(eval=EvalConfig(episodes=1, during=0, env="rlseq-tests/Toy-v0")))
    assert rlseq.load(tmp_path / "told").info.env_id == "rlseq-tests/Toy-v0"
    assert not (tmp_path / "none").exists()


def test_held_out_episodes_and_time_limits_are_held_against_the_timestep_table_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = rlseq.backbones.configure("transformer", width=16, depth=1)
    transformer = small(backbone="transformer", backbone_options=options)
    store = toy_store()
    store.info = replace(store.info, max_episode_steps=None)
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda name: store)
    with pytest.raises(ConfigError, match="at most 20 steps.*got 25.*--agent.timestep-embedding False"):
        go(tmp_path / "run", transformer)
    quiet = replace(transformer, eval=EvalConfig(episodes=0, during=0), validation=0.3)
    refused = 0
    for seed in range(8):
        try:
            go(tmp_path / str(seed), replace(quiet, seed=seed))
        except ConfigError:
            refused += 1
            assert not (tmp_path / str(seed)).exists()
    assert 0 < refused < 8


PLUGIN = """
from dataclasses import dataclass
from torch import nn
from rlseq.backbones import hawk

@dataclass(frozen=True)
class Config:
    width: int = 16
    depth: int = 1
    sizes: tuple[int, ...] = (1, 2)

def build(config):
    return hawk.build(hawk.Config(width=config.width + {extra}, depth=config.depth))
"""


def test_a_plug_in_with_width_and_depth_only_trains_resumes_and_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_backbones.py").write_text("")
    (tmp_path / "plugs").mkdir()
    (tmp_path / "plugs/good.py").write_text(PLUGIN.format(extra=0))
    (tmp_path / "plugs/wide.py").write_text(PLUGIN.format(extra=8))
    (tmp_path / "plugs/broken.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    quick = small(backbone="plugs.good", backbone_options=None, eval=EvalConfig(episodes=1, during=0))
    go(tmp_path / "run", quick)
    go(tmp_path / "run", replace(quick, training=replace(quick.training, updates=8)), resume=True)
    assert np.isfinite(rlseq.load(tmp_path / "run").policy(1).act(np.ones((1, OBS_SIZE)))).all()
    for name, message in (("plugs.wide", "D = 24"), ("plugs.broken", "no_such_module"), (".", "importable")):
        with pytest.raises((ConfigError, ShapeError), match=message):
            go(tmp_path / "bad", replace(quick, backbone=name))
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    "text", ["null", "[]", '"x"', "{}", '{"experiment": null, "data": null}', '{"data": {"info": null, "stats": {}}}']
)
def test_a_config_of_something_else_is_one_clear_error(tmp_path: Path, text: str) -> None:
    go(tmp_path, small(eval=EvalConfig(episodes=0, during=0)))
    (tmp_path / "checkpoints/00000006/config.json").write_text(text)
    with pytest.raises((RunError, ConfigError), match="must"):
        rlseq.load(tmp_path)


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunError, match="must be a run folder"):
            rlseq.load(path)


def test_an_experiment_survives_json() -> None:
    settled = config.settle(small(drop_obs=(1,), top=0.5))
    assert config.from_json(json.loads(json.dumps(config.to_json(settled)))) == settled
    assert config.settle(settled) == settled
    with pytest.raises(ConfigError, match="whole experiment"):
        config.from_json({"agent": "decision_transformer"})


def test_the_best_episodes_and_fewer_observations_reach_training(tmp_path: Path) -> None:
    experiment = small(top=0.5, drop_obs=(1,), eval=EvalConfig(episodes=2, during=0))
    go(tmp_path, experiment)
    agent = rlseq.load(tmp_path)
    assert agent.stats.episodes == 3
    assert agent.info.obs_size == OBS_SIZE - 1


def test_behaviour_cloning_runs_end_to_end_and_is_played_in_one_mode(tmp_path: Path) -> None:
    result = go(tmp_path, small(agent="behaviour_cloning", backbone=None, backbone_options=None, window=5))
    assert {e["mode"] for e in result["evaluations"]} == {"recurrent"}


def test_training_from_a_script_needs_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = toy_store()
    agent = rlseq.agents.DecisionTransformer.for_data(
        store, "hawk", window=20, backbone_options={"width": 16, "depth": 1}
    )
    trained = rlseq.train(agent, store, training=TrainingConfig(updates=3), progress=False)
    assert np.isfinite(trained.policy(1).act(np.ones((1, OBS_SIZE)))).all()
    assert not list(tmp_path.iterdir())
