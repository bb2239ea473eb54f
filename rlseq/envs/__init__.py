"""The Gymnasium side: environments as flat vectors, made quietly, held against a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rlseq.envs._quiet import no_version_note_on_failure, quiet_mujoco
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.types import DatasetInfo

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

__all__ = ["check_spaces", "flat_env", "make", "make_for", "make_one", "time_limit"]


def make(
    env_id: str,
    num_envs: int = 1,
    seed: int | None = None,
    *,
    dropped_obs: Iterable[int] = (),
    **env_kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """`num_envs` copies of a Gymnasium environment as one vector environment with next-step autoreset.

    Observations are flat: nested ones are flattened as `gymnasium.spaces.flatten` does, and `dropped_obs` columns are
    left out after that. MuJoCo's deprecation notes for Gymnasium's models are swallowed.

    Args:
        env_id: Gymnasium id, or ``module:id``.
        num_envs: rows.
        seed: environment i starts from seed + i, and the action space from seed: what follows a plain `reset()` is
            then the same in every run.
        dropped_obs: columns of the flat observation that the agent does not see, `DatasetInfo.dropped_obs`.
        env_kwargs: for `gymnasium.make`.
    Raises:
        UnknownNameError: no such id.
        ConfigError: the environment cannot be made (a missing package, an old version, a wrong argument), or
            num_envs < 1.
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if num_envs < 1:
        raise ConfigError(f"make: num_envs must be >= 1, got {num_envs}. Give a larger one.")
    dropped = tuple(dropped_obs)

    def one() -> gymnasium.Env[Any, Any]:
        quiet_mujoco()  # here, so that a worker process of an asynchronous vector is quiet too
        return flat_env(gymnasium.make(env_id, **env_kwargs), dropped)

    with _failures_explained(env_id, env_kwargs):
        envs = SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    if seed is not None:
        envs.reset(seed=seed)
        envs.action_space.seed(seed)
    return envs


def make_one(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
    """One environment as Gymnasium makes it, its observations not flattened, for recording.

    Raises:
        UnknownNameError: no such id.
        ConfigError: the environment cannot be made.
    """
    import gymnasium

    quiet_mujoco()
    with _failures_explained(env_id, env_kwargs or {}):
        return gymnasium.make(env_id, **(env_kwargs or {}))


def make_for(info: DatasetInfo, num_envs: int = 1, seed: int | None = None) -> VectorEnv[Any, Any, Any]:
    """The environment that a dataset names, checked against it.

    Raises:
        ConfigError: the dataset names none, or see `make`.
        SpaceError: see `check_spaces`.
    """
    if info.env_id is None:
        raise ConfigError(
            f"make_for: {info.id} must name an environment, got none. Name one with --eval.env ID (rlseq train) or "
            f"--env ID (rlseq eval), or train without evaluations: --eval.episodes 0 --eval.during 0."
        )
    envs = make(info.env_id, num_envs, seed, dropped_obs=info.dropped_obs, **info.env_kwargs)
    check_spaces(envs, info)
    return envs


def time_limit(info: DatasetInfo) -> int | None:
    """Steps after which `make_for`'s environment, which must have been made once, ends an episode; None: no limit."""
    import gymnasium

    # Gymnasium registers module:id under its id alone.
    registered = gymnasium.spec(str(info.env_id).rpartition(":")[2]).max_episode_steps
    limit = info.env_kwargs.get("max_episode_steps", registered)
    return None if limit in (None, -1) else int(limit)


def check_spaces(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any], info: DatasetInfo) -> None:
    """Observation size, action size and action bounds of `env` are the dataset's.

    Raises:
        SpaceError: they are not; the message lists all that differ.
    """
    from gymnasium import spaces

    obs_space = getattr(env, "single_observation_space", env.observation_space)
    action_space = getattr(env, "single_action_space", env.action_space)
    differ: list[str] = []
    if not isinstance(obs_space, spaces.Box) or obs_space.shape != (info.obs_size,):
        differ.append(f"observations: dataset {info.obs_size} numbers, environment {obs_space}")
    if not isinstance(action_space, spaces.Box) or action_space.shape != (info.action_size,):
        differ.append(f"actions: dataset {info.action_size} numbers, environment {action_space}")
    else:
        for bound, ours in (("low", info.action_low), ("high", info.action_high)):
            theirs = getattr(action_space, bound)
            if not np.allclose(ours, theirs):
                differ.append(f"action {bound}: dataset {ours.tolist()}, environment {theirs.tolist()}")
    if differ:
        raise SpaceError(
            f"check_spaces: the environment must fit {info.id}, got {'; '.join(differ)}. Name one with the dataset's "
            f"spaces."
        )


@contextmanager
def _failures_explained(env_id: str, env_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """What Gymnasium raises where it cannot make an environment, as one line of our own."""
    import gymnasium

    try:
        with no_version_note_on_failure():
            yield
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound, gymnasium.error.VersionNotFound) as error:
        raise UnknownNameError("environment", env_id, gymnasium.registry) from error
    except (gymnasium.error.Error, ImportError, TypeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        given = f" with {dict(env_kwargs)}" if env_kwargs else ""
        raise ConfigError(
            f"make: {env_id!r}{given} must be an environment that can be made, got {reason}. {_advice(env_id)}"
        ) from error


def _advice(env_id: str) -> str:
    import gymnasium

    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    if spec is None:
        return "Check its id."
    family = [one for one in gymnasium.registry.values() if (one.namespace, one.name) == (spec.namespace, spec.name)]
    newest = max(family, key=lambda one: one.version or 0)
    if newest.id != spec.id:
        return f"Its newest version is {newest.id}."
    return "Check its arguments and the packages that it needs."


def flat_env(env: gymnasium.Env[Any, Any], dropped: tuple[int, ...] = ()) -> gymnasium.Env[Any, Any]:
    """`env` with observations as an agent reads them: one vector, without the columns `dropped`.

    Raises:
        ConfigError: a dropped column that the observation does not have.
    """
    from gymnasium import spaces
    from gymnasium.wrappers import FlattenObservation, TransformObservation

    space = env.observation_space
    if isinstance(space, spaces.Dict | spaces.Tuple) or (isinstance(space, spaces.Box) and len(space.shape) != 1):
        env = FlattenObservation(env)
    if not dropped:
        return env
    flat = env.observation_space
    if not isinstance(flat, spaces.Box) or max(dropped) >= flat.shape[0]:
        raise ConfigError(f"make: dropped_obs must be columns of {flat}, got {dropped}. Drop none.")
    kept = np.setdiff1d(np.arange(flat.shape[0]), dropped)
    seen = spaces.Box(flat.low[kept], flat.high[kept], dtype=flat.dtype.type)
    return TransformObservation(env, lambda obs: obs[kept], seen)
