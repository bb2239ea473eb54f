"""Learning, end to end and in seconds: agents trained on good and bad controllers act as they are asked to."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import rlseq
from rlseq import backbones
from rlseq.agents import Agent, BehaviourCloning, DecisionTransformer
from rlseq.agents.behaviour_cloning import Config as CloningConfig
from rlseq.data import SamplerConfig, TrajectoryStore
from rlseq.training import OptimConfig, TrainingConfig
from rlseq.training.seeding import seed_everything
from rlseq.types import DatasetInfo, Trajectory

STEPS = 40
ENV = "rlseq-tests/Cart-v0"


class CartEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A cart on a line, pushed towards the origin: obs (position, velocity), reward 1 - |position| a step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = np.array([self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.5, 1.0), 0.0])
        return self._state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        position, velocity = self._state
        velocity = 0.9 * velocity + 0.1 * float(action[0])
        self._state = np.array([np.clip(position + velocity, -2.0, 2.0), velocity])
        return self._state.astype(np.float32), 1.0 - abs(self._state[0]), False, False, {}


gymnasium.register(ENV, entry_point=CartEnv, max_episode_steps=STEPS)


def controller(gain: float, obs: np.ndarray) -> float:
    """A damped push towards the origin; a negative gain pushes away."""
    return float(np.clip(-gain * obs[0] - 2.0 * obs[1], -1.0, 1.0))


@pytest.fixture(scope="module")
def store() -> TrajectoryStore:
    """120 episodes of controllers from the worst (return about -34) to the best (about 32)."""
    rng, env, trajectories = np.random.default_rng(0), gymnasium.make(ENV), []
    for episode in range(120):
        gain = rng.uniform(-1.0, 1.5)
        obs, _ = env.reset(seed=episode)
        rows, done = [], False
        while not done:
            action = np.clip(np.array([controller(gain, obs) + 0.1 * rng.normal()], np.float32), -1.0, 1.0)
            following, reward, _, done, _ = env.step(action)
            rows.append((obs, action, reward))
            obs = following
        columns = [np.stack(column) for column in zip(*rows, strict=True)]
        trajectories.append(Trajectory(*columns, terminated=False, truncated=True))
    low, high = env.action_space.low, env.action_space.high
    return TrajectoryStore.from_trajectories(trajectories, DatasetInfo("cart", ENV, 2, low, high, STEPS, None, None))


def trained(agent: Agent, store: TrajectoryStore, updates: int) -> Agent:
    return rlseq.train(
        agent,
        store,
        SamplerConfig("window", STEPS, 32),
        training=TrainingConfig(updates=updates),
        optim=OptimConfig(lr=3e-3, warmup=20),
        progress=False,
    )


def reached(agent: Agent, target: float, mode: str) -> float:
    scores = rlseq.evaluation.evaluate(agent, episodes=16, target_return=target, mode=mode, seed=10_000)
    return float(np.mean(scores.returns))


@pytest.mark.parametrize("backbone", backbones.available())
def test_a_sequence_agent_gets_the_return_that_it_is_asked_for(store: TrajectoryStore, backbone: str) -> None:
    seed_everything(0)
    # two gated attention units stand for one layer with an MLP
    options = {"width": 32, "depth": 4 if backbone in ("gau", "flash") else 2, "dropout": 0.0}
    agent = DecisionTransformer.for_data(store, backbone, window=STEPS, backbone_options=options, tokens="joint")
    agent = trained(agent, store, 200)
    for mode in ("recurrent", "window"):
        best, middle, worst = (reached(agent, t, mode) for t in (store.stats.return_max, 5.0, -30.0))
        assert best > 31
        assert 0 < middle < best - 8
        assert worst < -20


def test_behaviour_cloning_imitates_the_mean_and_its_best_episodes_the_best(store: TrajectoryStore) -> None:
    returns = {}
    for fraction in (1.0, 0.1):
        seed_everything(0)
        data = store if fraction == 1 else store.top(fraction)
        agent = BehaviourCloning(data.info, data.stats, window=STEPS, config=CloningConfig(width=64))
        returns[fraction] = reached(trained(agent, data, 200), 0.0, "recurrent")
    assert returns[0.1] > 28
    assert returns[1.0] < returns[0.1] - 2


def test_a_return_beyond_the_data_asks_for_the_best_of_it(store: TrajectoryStore) -> None:
    torch.manual_seed(0)
    agent = DecisionTransformer.for_data(store, "hawk", window=STEPS, backbone_options={"width": 16, "depth": 1})
    best = store.stats.return_to_go_max
    obs = np.array([[0.5, 0.1]], np.float32)
    actions = [agent.eval().policy(1, target_return=target).act(obs) for target in (best, 2 * best, 1000 * best)]
    np.testing.assert_array_equal(actions[1], actions[0])
    np.testing.assert_array_equal(actions[2], actions[0])
