"""Plays a policy in an environment and records a Minari dataset with reference scores: ``rlseq data collect``."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlseq import envs
from rlseq.collect._policies import (
    FORMS,
    Begin,
    Env,
    Factory,
    is_run,
    policy_of,
    random_policy,
    sampled_space,
    told_in_one_line,
)
from rlseq.data.minari_recorder import MinariRecorder, check_out
from rlseq.errors import ConfigError, ShapeError
from rlseq.progress import ProgressBar
from rlseq.provenance import provenance
from rlseq.types import Episode

__all__ = ["FORMS", "Collected", "collect"]

_RESERVED = {"num_envs", "seed", "dropped_obs", "env_id"}


@dataclass(frozen=True)
class Collected:
    """What was recorded.

    Attributes:
        dataset: the name that `rlseq.data.open_dataset` and ``rlseq train --dataset`` take.
        folder: where it is.
        episodes: how many.
        steps: of all episodes.
        return_mean: undiscounted, raw; likewise the others.
        ref_min_score: return that counts as normalized score 0; None where there are no reference scores.
        ref_max_score: return that counts as 1.
        no_scores: why there are no reference scores; None where there are.
    """

    dataset: str
    folder: Path
    episodes: int
    steps: int
    return_mean: float
    return_min: float
    return_max: float
    ref_min_score: float | None
    ref_max_score: float | None
    no_scores: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class _Player:
    """A policy with its name for messages, and the probability that an action is replaced by a random one."""

    name: str
    begin: Begin
    noise: float = 0.0


def collect(
    env_id: str,
    policy: str | Factory,
    *,
    episodes: int,
    out: str,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    noise: float = 0.0,
    target_return: float | None = None,
    expert: str | Factory | None = None,
    ref_min: float | None = None,
    ref_max: float | None = None,
    ref_episodes: int = 20,
    author: str | None = None,
    description: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Collected:
    """Records whole episodes as a Minari dataset under the datasets folder; a failure or Ctrl-C leaves nothing there.

    Reference scores: ref_min is the random policy's mean return, ref_max the expert's; without an expert it is the
    recording policy's own without noise. Numbers that are given win. There are none where ref_max <= ref_min, or where
    the random policy records and no expert is named.

    Args:
        env_id: Gymnasium id, or ``module:id``.
        policy: ``random``, ``sb3:FILE.zip``, a run folder, ``module:function``, or such a function: it is called as
            function(env, seed) at the start of every episode and returns a function of an observation that returns an
            action.
        episodes: how many; episode i is reset with seed + i.
        out: ``minari:NAMESPACE/NAME-vN``.
        seed: of the first episode; the random actions follow from it too.
        env_kwargs: for `gymnasium.make`; JSON values.
        noise: probability of a random action, in [0, 1], at every step.
        target_return: raw return that a run's agent is asked for; its default if None.
        expert: the policy whose mean return is ref_max.
        ref_min: return that counts as normalized score 0.
        ref_max: return that counts as normalized score 1.
        ref_episodes: that a reference policy plays.
        author: for the metadata.
        description: likewise.
        overwrite: replace the dataset of this id.
        progress: show progress bars.

    Raises:
        ConfigError: an option out of range, a name that is none, a policy that raises.
        ShapeError: a policy's action is not in the action space.
        SpaceError: a policy that does not fit the environment.
        DataError: spaces that rlseq does not read back, or observations and rewards that are not finite.
    """
    kwargs = dict(env_kwargs or {})
    _check_options(kwargs, episodes, seed, noise, target_return, ref_min, ref_max, ref_episodes)
    if target_return is not None and not (is_run(policy) or is_run(expert)):
        raise ConfigError(f"collect: target_return goes with a run folder as a policy, got {policy!r}. Leave it out.")
    check_out(out, overwrite=overwrite)
    env = envs.make_one(env_id, kwargs)
    try:
        name = _name(policy)
        player = _Player(name, policy_of(policy, env, target_return), noise)
        teacher = None if expert is None else _Player(_name(expert), policy_of(expert, env, target_return))
        with MinariRecorder(out, env, env_id, kwargs, overwrite=overwrite) as recorder:
            low, high, no_scores = ref_min, ref_max, None
            if high is None and teacher is None and player.begin is random_policy:
                no_scores = "the random policy recorded: give an expert or ref_max"
            else:
                seeds = range(seed, seed + ref_episodes)
                if low is None:
                    low = _mean_return(env, _Player("random", random_policy), seeds, progress)
                if high is None and (teacher is not None or noise):
                    high = _mean_return(env, teacher or _Player(name, player.begin), seeds, progress)
            returns, steps = [], 0
            with ProgressBar("recording", episodes, quiet=not progress) as bar:
                for number in range(episodes):
                    episode = _play(env, player, seed + number)
                    recorder.add(episode)
                    returns.append(_total(episode))
                    steps += len(episode.reward)
                    bar.update(number + 1, f"{steps:,} steps, return {np.mean(returns):.1f}")
            if no_scores is None and high is None:
                high = float(np.mean(returns))
            if no_scores is None and low is not None and high is not None and high <= low:
                no_scores = f"ref_max {high:.6g} is not above ref_min {low:.6g}"
            scores = {} if no_scores else {"ref_min_score": low, "ref_max_score": high}
            texts = {"author": None if author is None else {author}, "description": description}
            where_from = provenance()
            made = {
                "policy": name,
                "noise": noise,
                "seed": seed,
                "target_return": target_return,
                "expert": None if expert is None else _name(expert),
                "ref_episodes": ref_episodes,
                **{key: where_from[key] for key in ("date", "commit", "versions")},
            }
            given = {key: value for key, value in texts.items() if value is not None}
            folder = recorder.finish({"algorithm_name": name, "rlseq_collect": made, **scores, **given})
    finally:
        env.close()
    return Collected(
        dataset=out,
        folder=folder,
        episodes=episodes,
        steps=steps,
        return_mean=float(np.mean(returns)),
        return_min=min(returns),
        return_max=max(returns),
        ref_min_score=scores.get("ref_min_score"),
        ref_max_score=scores.get("ref_max_score"),
        no_scores=no_scores,
    )


def _check_options(
    kwargs: dict[str, Any],
    episodes: int,
    seed: int,
    noise: float,
    target_return: float | None,
    ref_min: float | None,
    ref_max: float | None,
    ref_episodes: int,
) -> None:
    if episodes < 1 or ref_episodes < 1:
        raise ConfigError(
            f"collect: episodes and ref_episodes must be >= 1, got {episodes} and {ref_episodes}. Give more."
        )
    if not 0 <= seed < 2**31:
        raise ConfigError(f"collect: seed must be in [0, 2^31), got {seed}. Give another.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"collect: noise must be a probability in [0, 1], got {noise}. Give another.")
    for name, value in (("target_return", target_return), ("ref_min", ref_min), ("ref_max", ref_max)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"collect: {name} must be finite, got {value}. Give another.")
    if ref_min is not None and ref_max is not None and ref_min >= ref_max:
        raise ConfigError(f"collect: ref_min must be less than ref_max, got {ref_min} and {ref_max}. Swap them?")
    if reserved := sorted(_RESERVED & kwargs.keys()):
        raise ConfigError(
            f"collect: env_kwargs must not use rlseq's own names, got {', '.join(reserved)}. Register an environment "
            f"that has them built in."
        )
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"collect: env_kwargs must be JSON values, got {kwargs} with {error}.") from error


def _name(policy: str | Factory) -> str:
    if isinstance(policy, str):
        return policy
    return f"{getattr(policy, '__module__', '?')}:{getattr(policy, '__qualname__', type(policy).__qualname__)}"


def _mean_return(env: Env, player: _Player, seeds: range, progress: bool) -> float:
    returns: list[float] = []
    with ProgressBar(f"reference: {player.name}", len(seeds), quiet=not progress) as bar:
        for seed in seeds:
            returns.append(_total(_play(env, player, seed)))
            bar.update(len(returns), f"return {np.mean(returns):.1f}")
    return float(np.mean(returns))


def _total(episode: Episode) -> float:
    """Undiscounted return."""
    return float(np.sum(episode.reward, dtype=np.float64))


def _play(env: Env, player: _Player, seed: int) -> Episode:
    """One whole episode from a reset with `seed`."""
    act = player.begin(env, seed)
    rng = np.random.default_rng([seed, 2])
    noise_space = sampled_space(env, seed, stream=3) if player.noise else None
    who = f"environment {getattr(env.spec, 'id', env)}"
    with told_in_one_line(who):
        obs, _ = env.reset(seed=seed)
    seen, actions, rewards = [copy.deepcopy(obs)], list[Any](), list[float]()
    reward, executed, terminated, truncated = 0.0, None, False, False
    while not (terminated or truncated):
        step = len(actions)
        with told_in_one_line(f"policy {player.name!r}"):
            action = act(obs, reward, executed)
        if noise_space is not None and rng.random() < player.noise:
            action = noise_space.sample()
        executed = _checked(action, env.action_space, player.name, step)
        actions.append(executed)
        with told_in_one_line(f"{who}, step {step} of the episode with seed {seed},"):
            obs, given, terminated, truncated, _ = env.step(copy.deepcopy(executed))
            reward = float(given)
        seen.append(copy.deepcopy(obs))
        rewards.append(reward)
    return Episode(seen, actions, rewards, bool(terminated), bool(truncated), seed)


def _checked(action: Any, space: spaces.Space[Any], name: str, step: int) -> Any:
    """`action` in the dtype of its space.

    Raises:
        ShapeError: it is none of its elements; the message has the value.
    """

    def wrong(got: str, advice: str) -> ShapeError:
        return ShapeError(f"collect: policy {name!r} must act within {space}, got {got} at step {step}. {advice}")

    if not isinstance(space, spaces.Box):
        if not space.contains(action):
            raise wrong(f"{action!r:.80}", "Return an element of the space.")
        return space.dtype.type(action) if isinstance(space, spaces.Discrete) else action
    try:
        array = np.asarray(action)
    except ValueError:  # a ragged list
        array = np.empty(0, object)
    if array.shape != space.shape or array.dtype.kind not in "fiu":
        raise wrong(f"{action!r:.80} of shape {array.shape}", "Return one array of numbers.")
    cast = array.astype(space.dtype)
    if not np.isfinite(array).all():
        raise wrong(f"{array.tolist()}", "Return finite numbers.")
    if (cast < space.low).any() or (cast > space.high).any():
        raise wrong(f"{array.tolist()}", "Clip it to the bounds.")
    return cast
