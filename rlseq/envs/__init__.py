"""The Gymnasium side: environments as flat vectors, made quietly, held against a dataset; memory tasks.

Importing it registers rlseq's own environments, `rlseq.envs.t_maze`.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlseq.envs._quiet import no_version_note_on_failure, quiet_mujoco
from rlseq.envs._registry import import_package_of, register_own
from rlseq.envs._rendering import make_rendering
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.types import DatasetInfo

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv

__all__ = [
    "VECTORIZATIONS",
    "Vectorization",
    "check_spaces",
    "flat_env",
    "make",
    "make_for",
    "make_one",
    "make_rendering",
    "takes_autoreset_mode",
    "time_limit",
    "with_reward",
]

Vectorization = Literal["sync", "async", "native"]
VECTORIZATIONS: tuple[Vectorization, ...] = ("sync", "async", "native")

register_own()


def make(
    env_id: str,
    num_envs: int = 1,
    seed: int | None = None,
    *,
    vectorization: Vectorization = "sync",
    autoreset_mode: AutoresetMode | str | None = None,
    dropped_obs: Iterable[int] = (),
    **env_kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """`num_envs` copies of a Gymnasium environment as one vector environment.

    Observations are flat: nested and discrete ones are flattened as `gymnasium.spaces.flatten` does (a discrete one is
    one-hot), and `dropped_obs` columns are left out after that. MuJoCo's deprecation notes for Gymnasium's models are
    swallowed, in worker processes too.

    Args:
        env_id: Gymnasium id, or ``module:id``.
        num_envs: rows.
        seed: environment i starts from seed + i, and the action space from seed: what follows a plain `reset()` is
            then the same in every run. What the rows of a native vector make of one seed is its own affair.
        vectorization: ``sync``, one environment after the other in this process; ``async``, a worker process for each
            (close the vector to end them; they leave Ctrl-C to this process); ``native``, the environment's own vector
            form, Gymnasium's ``vector_entry_point``.
        autoreset_mode: when a row whose episode ended is reset: a `gymnasium.vector.AutoresetMode` or its value. None:
            in the next step, or as a native vector does it; another way it must take as an argument of its own.
        dropped_obs: columns of the flat observation that the agent does not see, `DatasetInfo.dropped_obs`.
        env_kwargs: for `gymnasium.make`.
    Raises:
        UnknownNameError: no such id, vectorization or autoreset mode.
        ConfigError: the environment cannot be made (a missing package, an old version, a wrong argument), it has no
            native vector or one that resets otherwise, or num_envs < 1.
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if num_envs < 1:
        raise ConfigError(f"make: num_envs must be >= 1, got {num_envs}. Give a larger one.")
    if vectorization not in VECTORIZATIONS:
        raise UnknownNameError("vectorization", vectorization, VECTORIZATIONS)
    try:
        mode = AutoresetMode.NEXT_STEP if autoreset_mode is None else AutoresetMode(autoreset_mode)
    except ValueError as error:
        raise UnknownNameError("autoreset mode", str(autoreset_mode), [one.value for one in AutoresetMode]) from error
    dropped, main_process = tuple(dropped_obs), os.getpid()

    def one() -> gymnasium.Env[Any, Any]:
        if os.getpid() != main_process:
            # Ctrl-C reaches the workers as well, but it is the main process that ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        quiet_mujoco()
        import_package_of(env_id)
        return flat_env(gymnasium.make(env_id, **env_kwargs), dropped)

    envs: VectorEnv[Any, Any, Any]
    with _told_in_one_line(env_id, env_kwargs, native=vectorization == "native"):
        if vectorization == "native":
            quiet_mujoco()
            asked: dict[str, Any] = dict(env_kwargs)
            if autoreset_mode is not None and takes_autoreset_mode(env_id):
                asked.setdefault("autoreset_mode", mode)
            own = gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **asked)
            envs = _flat_vector(own, dropped)
        elif vectorization == "async":
            from rlseq.envs._workers import Workers

            envs = Workers([one] * num_envs, mode)
        else:
            envs = SyncVectorEnv([one] * num_envs, autoreset_mode=mode)
    with _closed_on_error(envs):
        found = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if autoreset_mode is not None and found != mode:
            raise ConfigError(
                f"make: the native vector of {env_id!r} must reset as asked, {mode.value}, got {found.value}. Leave "
                f"autoreset_mode out, or give vectorization sync or async."
            )
        if seed is not None:
            envs.reset(seed=seed)
            envs.action_space.seed(seed)
    return envs


def takes_autoreset_mode(env_id: str) -> bool:
    """Whether the native vector of an environment can be asked for a mode; False where there is none of that name."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    try:
        import_package_of(env_id)
        entry = gymnasium.spec(env_id).vector_entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except (gymnasium.error.Error, ImportError, AttributeError):  # `make` says it in one line
        return False
    return creator is not None and "autoreset_mode" in inspect.signature(creator).parameters


def make_one(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
    """One environment as Gymnasium makes it, its observations not flattened, for recording.

    Raises:
        UnknownNameError: no such id.
        ConfigError: the environment cannot be made.
    """
    import gymnasium

    quiet_mujoco()
    with _told_in_one_line(env_id, env_kwargs or {}, native=False):
        import_package_of(env_id)
        return gymnasium.make(env_id, **(env_kwargs or {}))


def make_for(
    info: DatasetInfo,
    num_envs: int = 1,
    seed: int | None = None,
    *,
    vectorization: Vectorization = "sync",
    autoreset_mode: AutoresetMode | str | None = None,
) -> VectorEnv[Any, Any, Any]:
    """The environment that a dataset names, checked against it; the other arguments are those of `make`.

    Raises:
        ConfigError: the dataset names none, or see `make`.
        SpaceError: see `check_spaces`.
    """
    if info.env_id is None:
        raise ConfigError(
            f"make_for: {info.id} must name an environment, got none. Name one with --eval.env ID (rlseq train) or "
            f"--env ID (rlseq eval), or train without evaluations: --eval.episodes 0 --eval.during 0."
        )
    envs = make(
        info.env_id,
        num_envs,
        seed,
        vectorization=vectorization,
        autoreset_mode=autoreset_mode,
        dropped_obs=info.dropped_obs,
        **info.env_kwargs,
    )
    with _closed_on_error(envs):
        check_spaces(envs, info)
    return envs


def with_reward(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment with observations {"obs": its own, "reward": () float64 of the step before, 0 at a reset}.

    For `rlseq.agents.sb3.SB3Policy`: Stable-Baselines3 hands a model the observation alone.
    """
    from rlseq.envs._with_reward import WithReward

    return WithReward(env)


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
    if info.discrete:
        if not isinstance(action_space, spaces.Discrete) or (action_space.n, action_space.start) != (
            info.action_size,
            0,
        ):
            differ.append(f"actions: dataset {info.action_size} choices, environment {action_space}")
    elif not isinstance(action_space, spaces.Box) or action_space.shape != (info.action_size,):
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
def _told_in_one_line(env_id: str, env_kwargs: Mapping[str, Any], *, native: bool) -> Iterator[None]:
    """What Gymnasium says of an environment that it cannot make becomes an error of ours."""
    import gymnasium

    try:
        with no_version_note_on_failure():
            yield
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound, gymnasium.error.VersionNotFound) as error:
        raise UnknownNameError("environment", env_id, gymnasium.registry) from error
    except (gymnasium.error.Error, ImportError, TypeError, OSError, ValueError, EOFError) as error:
        spec = gymnasium.registry.get(env_id.rpartition(":")[2])
        if native and spec is not None and spec.vector_entry_point is None:
            raise ConfigError(
                f"make: {env_id!r} must have a vector_entry_point for vectorization native, got none. Give "
                f"vectorization sync or async."
            ) from error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        given = f" with {dict(env_kwargs)}" if env_kwargs else ""
        raise ConfigError(
            f"make: {env_id!r}{given} must be an environment that can be made, got {reason}. {_advice(env_id)}"
        ) from error


@contextmanager
def _closed_on_error(envs: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        envs.close()
        raise


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
    other = spaces.Dict | spaces.Tuple | spaces.Discrete | spaces.MultiDiscrete
    if isinstance(space, other) or (isinstance(space, spaces.Box) and len(space.shape) != 1):
        env = FlattenObservation(env)
    if not dropped:
        return env
    seen, kept = _kept(env.observation_space, dropped)
    return TransformObservation(env, lambda obs: obs[kept], seen)


def _flat_vector(envs: VectorEnv[Any, Any, Any], dropped: tuple[int, ...]) -> VectorEnv[Any, Any, Any]:
    """`flat_env` for all rows of a native vector at once."""
    from gymnasium import spaces
    from gymnasium.wrappers import vector

    space = envs.single_observation_space
    if isinstance(space, spaces.Dict | spaces.Tuple) or (isinstance(space, spaces.Box) and len(space.shape) != 1):
        envs = vector.FlattenObservation(envs)
    if not dropped:
        return envs
    seen, kept = _kept(envs.single_observation_space, dropped)
    return vector.TransformObservation(envs, lambda obs: obs[:, kept], single_observation_space=seen)


def _kept(space: gymnasium.Space[Any], dropped: tuple[int, ...]) -> tuple[gymnasium.spaces.Box, np.ndarray]:
    """The space without the dropped columns, and the indices of those that stay."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box) or max(dropped) >= space.shape[0]:
        raise ConfigError(f"make: dropped_obs must be columns of {space}, got {dropped}. Drop none.")
    kept = np.setdiff1d(np.arange(space.shape[0]), dropped)
    return spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type), kept
