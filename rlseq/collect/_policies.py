"""The policies that can be named to record a dataset: each gives, at the start of an episode, a function that acts."""

from __future__ import annotations

import copy
import importlib
import json
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlseq import envs, run
from rlseq.errors import ConfigError, RlseqError, SpaceError

Env = gymnasium.Env[Any, Any]
Factory = Callable[[Env, int], Callable[[Any], Any]]
FORMS = "random, sb3:FILE.zip, a run folder of rlseq, or module:function"

# An attribute that only the models of one algorithm have -> that algorithm. DDPG is a TD3 with other settings.
_SB3_ALGORITHMS = {
    "clip_range": "PPO",
    "gae_lambda": "A2C",
    "target_entropy": "SAC",
    "target_policy_noise": "TD3",
    "exploration_rate": "DQN",
}


class Act(Protocol):
    """Acts in one episode."""

    def __call__(self, obs: Any, reward: float, executed: Any) -> Any:
        """An action for obs; reward and action of the step before it, 0 and None where the episode starts."""


Begin = Callable[[Env, int], Act]


def random_policy(env: Env, seed: int) -> Act:
    """Samples the action space."""
    space = sampled_space(env, seed)
    return lambda obs, reward, executed: space.sample()


def sampled_space(env: Env, seed: int, stream: int = 1) -> spaces.Space[Any]:
    """A copy of the action space, seeded otherwise than the environment, whose own draws would be the same numbers."""
    space = copy.deepcopy(env.action_space)
    space.seed(int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]))
    return space


def policy_of(name: str | Factory, env: Env, target_return: float | None = None) -> Begin:
    """The policy of a name, or of a function as ``module:function`` names one, held against the environment.

    Raises:
        ConfigError: no such form, a missing file, module or package, a file that is no model.
        RunError: a folder that is no run.
        SpaceError: the policy was made for other spaces.
    """
    if callable(name):
        return _from_factory(f"policy {getattr(name, '__name__', name)!r}", name)
    if name == "random":
        return random_policy
    scheme, colon, rest = name.partition(":")
    if scheme == "sb3" and colon:
        return _from_sb3(name, Path(rest).expanduser(), env)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_run(path, env, target_return)
    if colon:
        return _from_factory(f"policy {name!r}", _imported(name))
    raise ConfigError(f"collect: policy must be {FORMS}, got {name!r}. A run folder must exist.")


def is_run(name: str | Factory | None) -> bool:
    """Whether a name is a folder, which `policy_of` takes for a run's."""
    return isinstance(name, str) and Path(name).expanduser().is_dir() and name != "random"


@contextmanager
def told_in_one_line(who: str) -> Iterator[None]:
    """Whatever other people's code raises in the block becomes one line with the place; our own errors pass."""
    try:
        yield
    except RlseqError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"collect: {who} must work, got {type(error).__name__}{': ' if told else ''}{told} "
            f"({place.filename}, line {place.lineno}). Mend it."
        ) from error


def _from_factory(who: str, function: Factory) -> Begin:
    def begin(env: Env, seed: int) -> Act:
        with told_in_one_line(who):
            act = function(env, seed)
        if not callable(act):
            raise ConfigError(
                f"collect: {who} must return a function of an observation when it is called with (env, seed), got "
                f"{act!r:.80}."
            )
        return lambda obs, reward, executed: act(obs)

    return begin


def _imported(name: str) -> Factory:
    module_name, _, function_name = name.partition(":")
    with told_in_one_line(f"policy {name!r}"):
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError, TypeError) as error:  # ValueError: an empty name; TypeError: a relative one
            raise ConfigError(
                f"collect: policy must be {FORMS}, got {name!r} with {error}. Is the module's folder on PYTHONPATH?"
            ) from error
    function = getattr(module, function_name, None) if function_name else None
    if not callable(function):
        raise ConfigError(f"collect: policy {name!r} must name a function of its module, got none. Name one.")
    return function


def _from_run(path: Path, env: Env, target_return: float | None) -> Begin:
    agent = run.load(path, "cpu")
    flat = envs.flat_env(env, agent.info.dropped_obs)
    envs.check_spaces(flat, replace(agent.info, id=f"the run {path}"))
    policy = agent.policy(1, target_return=target_return)
    layers: list[gymnasium.ObservationWrapper[Any, Any, Any]] = []
    while flat is not env:
        assert isinstance(flat, gymnasium.ObservationWrapper)
        layers.insert(0, flat)
        flat = flat.env

    def act(obs: Any, reward: float, executed: Any) -> Any:
        for layer in layers:
            obs = layer.observation(obs)
        if executed is not None:  # noise may have replaced what the policy chose
            row = np.asarray(spaces.flatten(env.action_space, executed), np.float32)
            policy.state = policy.state._replace(action=torch.from_numpy(row)[None])
        action = policy.act([obs], [reward], np.array([executed is None]))[0]
        if isinstance(env.action_space, spaces.Box):  # rounding only: the agent stays within its bounds
            action = np.clip(action, env.action_space.low, env.action_space.high)
        return action

    return lambda env, seed: act


def _from_sb3(name: str, path: Path, env: Env) -> Begin:
    if not path.is_file():
        raise ConfigError(f"collect: policy sb3:FILE.zip must name a file, got {name!r}. Check the path.")
    if (path.parent / "vecnormalize.pkl").exists():
        raise ConfigError(
            f"collect: policy {name!r} must act on plain observations, got a vecnormalize.pkl beside it, which is not "
            f"read. Apply it in a module:function."
        )
    try:
        import stable_baselines3
    except ImportError as error:
        raise ConfigError(
            f'collect: policy {name!r} must find Stable-Baselines3, got {error}. Install it: pip install "rlseq[sb3]".'
        ) from error
    model_advice = f"Known are models of {', '.join(_SB3_ALGORITHMS.values())} and DDPG."
    try:
        with zipfile.ZipFile(path) as file:
            saved = json.loads(file.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"collect: policy {name!r} must be a model of Stable-Baselines3, got {error}. {model_advice}"
        ) from error
    found = [algorithm for mark, algorithm in _SB3_ALGORITHMS.items() if mark in saved]
    if not found:
        raise ConfigError(f"collect: policy {name!r} must be of a known algorithm, got another. {model_advice}")
    # Else the model allocates its replay buffer, a million steps by default.
    buffer: dict[str, Any] = {"buffer_size": 1, "replay_buffer_class": None, "replay_buffer_kwargs": {}}
    with told_in_one_line(f"policy {name!r} as a model of {found[0]}"):
        model = getattr(stable_baselines3, found[0]).load(
            path, device="cpu", **(buffer if "buffer_size" in saved else {})
        )
    for what in ("observation_space", "action_space"):
        ours, theirs = getattr(env, what), getattr(model, what)
        if ours != theirs:
            raise SpaceError(
                f"collect: policy {name!r} must fit the environment, got {what} {theirs} of the model and {ours} of "
                f"the environment. Name another --env."
            )
    return lambda env, seed: lambda obs, reward, executed: model.predict(obs, deterministic=True)[0]
