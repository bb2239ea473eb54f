from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlseq import agents
from rlseq.agents import DecisionTransformer
from rlseq.agents.decision_transformer import Config
from rlseq.data import SamplerConfig, make_sampler
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.types import Batch
from tests.tolerances import LOSS
from tests.toys import ACTION_SIZE, AGENTS, HIGH, LOW, toy_agent, toy_store


def batch_of(regime: str = "window", window: int = 8, rows: int = 16, seed: int = 0) -> Batch:
    return next(make_sampler(toy_store(), SamplerConfig(regime=regime, window=window, batch_size=rows), seed))


@pytest.mark.parametrize("kind", AGENTS)
def test_padded_positions_change_neither_the_loss_nor_its_gradient(kind: str) -> None:
    agent, batch = toy_agent(kind, toy_store()), batch_of()
    assert not batch.mask.all()
    parameters = list(agent.parameters())
    loss = agent.loss(batch).value
    gradient = torch.autograd.grad(loss, parameters)
    poisoned = {
        name: torch.where(batch.mask.reshape(batch.mask.shape + (1,) * (x.ndim - 2)), x, torch.full_like(x, 7))
        for name, x in vars(batch).items()
        if name in ("obs", "action", "reward", "return_to_go")
    }
    other = agent.loss(replace(batch, **poisoned)).value
    torch.testing.assert_close(other, loss, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(other, parameters), gradient, rtol=0, atol=LOSS)


@pytest.mark.parametrize("kind", AGENTS)
def test_the_masked_loss_equals_the_mean_over_the_unpadded_sequences(kind: str) -> None:
    agent, batch = toy_agent(kind, toy_store()), batch_of()
    total, steps = 0.0, 0
    for row in range(len(batch.obs)):
        length = int(batch.mask[row].sum())
        alone = Batch(**{name: x[row : row + 1, :length] for name, x in vars(batch).items()})
        total += agent.loss(alone).metrics["loss"].item() * length
        steps += length
    assert agent.loss(batch).metrics["loss"].item() == pytest.approx(total / steps, rel=LOSS)


@pytest.mark.parametrize("kind", [kind for kind in AGENTS if kind.startswith(("hawk", "transformer"))])
def test_actions_depend_on_the_past_of_their_own_row_only(kind: str) -> None:
    agent, batch = toy_agent(kind, toy_store()), batch_of(rows=4)
    t, row = 4, 1
    obs = batch.obs.clone()
    obs[row, t] += 1.0
    with torch.inference_mode():
        before = agent(agent.window_inputs(batch))[0]
        after = agent(agent.window_inputs(replace(batch, obs=obs)))[0]
    changed = (before != after).any(-1)
    assert changed[row, t:].any()
    assert not changed[row, :t].any()
    assert not changed[torch.arange(4) != row].any()


@pytest.mark.parametrize("kind", AGENTS)
def test_every_parameter_that_can_matter_gets_a_finite_gradient(kind: str) -> None:
    agent = toy_agent(kind, toy_store()).train()
    agent.loss(batch_of()).value.backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_actions_are_scaled_to_the_bounds_and_back() -> None:
    agent = toy_agent("cloning", toy_store())
    raw = torch.from_numpy(np.stack([LOW, HIGH, (LOW + HIGH) / 2]))
    scaled = agent.scaled_action(raw)
    torch.testing.assert_close(scaled, torch.tensor([[-1.0] * ACTION_SIZE, [1.0] * ACTION_SIZE, [0.0] * ACTION_SIZE]))
    torch.testing.assert_close(agent.to_bounds(scaled), raw)


def test_previous_action_and_reward_come_from_the_step_before_and_are_zero_where_unknown() -> None:
    agent, batch = toy_agent("hawk-joint-previous", toy_store()), batch_of("stream", window=6, rows=4)
    inputs = agent.window_inputs(batch)
    assert batch.reset[:, 1:].any()
    for row in range(4):
        for t in range(6):
            action, reward = inputs.previous_action[row, t], inputs.previous_reward_scaled[row, t]
            if t == 0 or batch.reset[row, t]:
                assert not action.any()
                assert not reward.any()
            else:
                assert torch.equal(action, agent.scaled_action(batch.action[row, t - 1]))
                assert torch.equal(reward[0], batch.reward[row, t - 1] / agent.return_scale)


def test_return_scale_and_target_default_to_the_dataset() -> None:
    store = toy_store()
    agent = toy_agent("hawk-joint", store)
    assert agent.return_scale == pytest.approx(store.return_to_go.std(dtype=np.float64))
    assert agent.target_return == store.returns.max()
    told = DecisionTransformer.for_data(store, "hawk", return_scale=7.0, target_return=3.0)
    assert (told.return_scale, told.target_return) == (7.0, 3.0)


def test_auto_tokens_are_joint_for_recurrent_backbones_and_interleaved_else() -> None:
    hawk, transformer = toy_agent("hawk-joint", toy_store()), toy_agent("transformer-interleaved", toy_store())
    auto = DecisionTransformer.for_data(toy_store(), "transformer", window=5)
    assert hawk.config == replace(
        Config(), tokens="joint", timestep_embedding=False, embedding_norm=False, token_dropout=0.0
    )
    assert auto.config == replace(transformer.config)
    assert auto.config.timestep_embedding


@pytest.mark.parametrize("option", ["return_noise", "obs_noise", "token_dropout"])
def test_noise_acts_in_training_only(option: str) -> None:
    store, batch = toy_store(), batch_of()
    agent = DecisionTransformer.for_data(
        store, "hawk", window=8, backbone_options={"width": 16, "depth": 1}, **{option: 0.5}
    )
    losses = {agent.train().loss(batch).value.item() for _ in range(3)}
    calm = {agent.eval().loss(batch).value.item() for _ in range(3)}
    assert (len(losses), len(calm)) == (3, 1)


def test_bad_options_are_refused() -> None:
    store = toy_store()
    with pytest.raises(ConfigError, match="token_dropout must be in"):
        Config(token_dropout=1.0)
    with pytest.raises(ConfigError, match="obs_noise must be at least 0"):
        Config(obs_noise=-1.0)
    with pytest.raises(ConfigError, match="belong to joint tokens"):
        Config(tokens="interleaved", previous_action=True)
    with pytest.raises(ConfigError, match="return_scale must be a positive number"):
        DecisionTransformer.for_data(store, "hawk", return_scale=0.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'decision_transformer'"):
        agents.load("decision_transformr")
    unbounded = replace(store.info, action_high=np.array([1.0, np.inf], np.float32))
    with pytest.raises(SpaceError, match="must be bounded"):
        agents.BehaviourCloning(
            unbounded, store.stats, window=5, config=agents.load("behaviour_cloning").Config(width=4)
        )


def test_a_state_carried_between_halves_equals_the_whole_for_streams() -> None:
    agent, batch = toy_agent("hawk-joint", toy_store()), batch_of("stream", window=12, rows=4)
    halves = [Batch(**{name: x[:, part] for name, x in vars(batch).items()}) for part in (slice(0, 6), slice(6, 12))]
    with torch.inference_mode():
        whole = agent(agent.window_inputs(batch))[0]
        first, state = agent(agent.window_inputs(halves[0]))
        second, _ = agent(agent.window_inputs(halves[1]), state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=LOSS)
