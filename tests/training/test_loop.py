from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from rlseq.agents import Agent
from rlseq.data import SamplerConfig, make_sampler
from rlseq.errors import ConfigError, RlseqError
from rlseq.training import OptimConfig, Trainer, TrainingConfig
from rlseq.training.optim import build_optimizer
from rlseq.training.seeding import seed_everything
from tests.tolerances import LOSS
from tests.toys import toy_agent, toy_store


class Recorder:
    """Keeps the scalars that a trainer writes."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        self.rows[update] = dict(values)


def make_trainer(
    kind: str = "hawk-joint", *, regime: str = "window", updates: int = 8, rows: int = 4, seed: int = 0, **options: Any
) -> Trainer:
    """A trainer of a small agent; `options` are fields of TrainingConfig, OptimConfig or arguments of Trainer."""
    store = toy_store()
    seed_everything(seed)
    agent = toy_agent(kind, store)
    sampler = make_sampler(store, SamplerConfig(regime=regime, window=20, batch_size=rows), seed)
    training = {k: options.pop(k) for k in ("ema", "carry_state", "log_every", "checkpoint_every") if k in options}
    optim = {k: options.pop(k) for k in ("lr", "accumulate", "schedule", "clip", "warmup") if k in options}
    return Trainer(
        agent,
        sampler,
        TrainingConfig(updates=updates, **training),
        OptimConfig(**{"warmup": 2, **optim}),
        progress=False,
        **options,
    )


def weights(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.state_dict().items()}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What comes back from a file that is read with weights_only=True."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hawk-joint", {}),
        ("hawk-joint", {"regime": "stream", "carry_state": True}),
        ("hawk-interleaved", {"regime": "pack", "ema": 0.9}),
        ("transformer-interleaved", {"accumulate": 2}),
        ("transformer-joint", {"regime": "stream", "carry_state": True}),
        ("cloning", {}),
    ],
)
def test_a_resumed_training_makes_the_same_next_updates_to_the_bit(kind: str, options: dict[str, Any]) -> None:
    saved: list[dict[str, Any]] = []
    whole = make_trainer(
        kind,
        updates=6,
        checkpoint_every=3,
        on_checkpoint=lambda t: saved.append(through_a_file(t.state_dict())),
        **options,
    )
    whole.fit()
    resumed = make_trainer(kind, updates=6, seed=99, **options)
    resumed.load_state_dict(saved[0])
    assert resumed.update == 3
    resumed.fit()
    for name, value in weights(whole.result).items():
        assert torch.equal(value, weights(resumed.result)[name]), name


def test_without_the_optimiser_a_resume_would_differ() -> None:
    whole = make_trainer(updates=6)
    whole.fit()
    half = make_trainer(updates=6)
    for _ in range(3):
        half.step()
    fresh = make_trainer(updates=6)
    fresh.agent.load_state_dict(half.agent.state_dict())
    for _ in range(3):
        fresh.step()
    assert any(not torch.equal(v, weights(fresh.agent)[k]) for k, v in weights(whole.agent).items())


def test_accumulated_batches_equal_one_large_batch() -> None:
    store = toy_store((20, 20, 20, 20))
    updates = []
    for rows, accumulate in ((4, 1), (2, 2)):
        agent = toy_agent("cloning", store)
        seed_everything(0)
        for parameter in agent.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        sampler = make_sampler(store, SamplerConfig(regime="stream", window=20, batch_size=rows), 0)
        if rows == 4:
            whole = next(sampler)
            parts = [type(whole)(**{k: v[i : i + 2] for k, v in vars(whole).items()}) for i in (0, 2)]
        batches = iter([whole] if rows == 4 else parts)
        trainer = Trainer(agent, batches, TrainingConfig(updates=1), OptimConfig(accumulate=accumulate), progress=False)  # type: ignore[arg-type]
        trainer.step()
        updates.append(weights(agent))
    for name, value in updates[0].items():
        torch.testing.assert_close(updates[1][name], value, rtol=0, atol=LOSS)


def test_the_learning_rate_rises_linearly_and_then_falls_to_zero_or_stays() -> None:
    for schedule, last in (("cosine", 0.0), ("constant", 1e-2)):
        agent = toy_agent("cloning", toy_store())
        optimizer, scheduler = build_optimizer(agent, OptimConfig(lr=1e-2, warmup=4, schedule=schedule), 20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
        assert max(rates) == rates[4] == pytest.approx(1e-2)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(last, abs=1e-9)


def test_vectors_have_no_weight_decay_and_no_parameter_is_left_out() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    optimizer, _ = build_optimizer(agent, OptimConfig(weight_decay=0.5), 10)
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert {p.ndim for p in free} == {1}
    assert min(p.ndim for p in decayed) >= 2
    assert len(decayed) + len(free) == len(list(agent.parameters()))


@pytest.mark.parametrize(
    ("agent", "names"),
    [("hawk-joint", ("mixer.gate_bias", "mixer.conv_weight")), ("gau-joint", ("mixer.gamma", "mixer.beta"))],
)
def test_what_has_two_axes_decays_whatever_it_is_called(agent: str, names: tuple[str, ...]) -> None:
    model = toy_agent(agent, toy_store())
    optimizer, _ = build_optimizer(model, OptimConfig(weight_decay=0.5), 10)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name in names:
        assert all(id(p) in decayed for key, p in model.named_parameters() if key.endswith(name))
        assert any(key.endswith(name) for key, _ in model.named_parameters())


def test_gradients_are_clipped_and_their_norm_before_clipping_is_logged() -> None:
    recorder = Recorder()
    trainer = make_trainer("cloning", clip=1e-3, log_every=1, updates=2, writer=recorder)
    trainer.fit()
    norm = torch.linalg.vector_norm(
        torch.stack([p.grad.norm() for p in trainer.agent.parameters() if p.grad is not None])
    )
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert recorder.rows[2]["train/grad_norm"] > 1e-3


def test_every_logged_scalar_is_documented() -> None:
    from pathlib import Path

    recorder = Recorder()
    make_trainer(log_every=4, writer=recorder).fit()
    assert sorted(recorder.rows) == [4, 8]
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for name in recorder.rows[8]:
        assert f"`{name}`" in text, name


def test_the_result_is_the_exponential_average_of_the_weights() -> None:
    trainer = make_trainer("cloning", ema=0.5, updates=4)
    expected: dict[str, torch.Tensor] = {}
    for _ in range(4):
        trainer.step()
        now = weights(trainer.agent)
        expected = {k: 0.5 * expected[k] + 0.5 * v if expected else v for k, v in now.items()}
    assert trainer.result is not trainer.agent
    for name, value in weights(trainer.result).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=LOSS)
    assert any(not torch.equal(v, weights(trainer.agent)[k]) for k, v in weights(trainer.result).items())


def test_weights_that_are_not_finite_are_never_checkpointed() -> None:
    saved: list[int] = []
    trainer = make_trainer(
        "cloning", lr=1e30, warmup=0, log_every=100, checkpoint_every=1, on_checkpoint=lambda t: saved.append(t.update)
    )
    with pytest.raises(RlseqError, match="loss and weights must stay finite"):
        trainer.fit()
    assert len(saved) <= 1


def test_steps_of_padding_are_not_counted() -> None:
    trainer = make_trainer("cloning")
    sampler = make_sampler(toy_store(), SamplerConfig("window", 20, 4), 0)
    assert trainer.step()[1] == int(next(sampler).mask.sum()) < 80


def test_a_longer_training_goes_on_at_its_own_learning_rate() -> None:
    short = make_trainer("cloning", updates=8, lr=1e-2)
    short.fit()
    longer = make_trainer("cloning", updates=16, lr=1e-2)
    longer.load_state_dict(through_a_file(short.state_dict()))
    whole = make_trainer("cloning", updates=16, lr=1e-2)
    for _ in range(8):
        whole.step()
    rates = [t.optimizer.param_groups[0]["lr"] for t in (longer, whole)]
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0] > 1e-3


def test_a_carried_state_needs_an_agent_that_has_one() -> None:
    with pytest.raises(ConfigError, match="carry_state needs an agent that has a state"):
        make_trainer("cloning", carry_state=True)


def test_checkpoints_come_at_their_multiples_and_at_the_end() -> None:
    updates: list[int] = []
    make_trainer(updates=7, checkpoint_every=3, on_checkpoint=lambda t: updates.append(t.update)).fit()
    assert updates == [3, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_training_before_a_checkpoint() -> None:
    saved: list[int] = []
    trainer = make_trainer("cloning", log_every=1, checkpoint_every=1, on_checkpoint=lambda t: saved.append(t.update))
    trainer.agent.head.linear.bias.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(RlseqError, match="loss and weights must stay finite"):
        trainer.fit()
    assert saved == []


def test_training_learns_the_data_by_heart() -> None:
    recorder = Recorder()
    make_trainer("hawk-joint", regime="pack", updates=150, rows=8, lr=1e-2, log_every=10, writer=recorder).fit()
    assert recorder.rows[150]["train/loss"] < 0.2 * recorder.rows[10]["train/loss"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrainingConfig(updates=0), "updates must be at least 1"),
        (lambda: TrainingConfig(ema=1.0), "ema must be in"),
        (lambda: OptimConfig(lr=float("nan")), "lr must be a positive number"),
        (lambda: OptimConfig(clip=0.0), "clip must be a positive number"),
        (lambda: OptimConfig(weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: OptimConfig(accumulate=0), "accumulate >= 1"),
        (lambda: OptimConfig(schedule="cosin"), "Did you mean 'cosine'"),
    ],
)
def test_bad_options_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
