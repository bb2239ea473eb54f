"""Episodes -> a local Minari dataset (0.5, HDF5), whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlseq.data.minari_source import datasets_root
from rlseq.errors import ConfigError, DataError
from rlseq.types import Episode

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def write(
    dataset_id: str,
    episodes: Iterable[Episode],
    env_spec: EnvSpec,
    *,
    algorithm_name: str,
    description: str,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    requirements: Iterable[str] = (),
) -> Path:
    """Writes `episodes`, one at a time, as the Minari dataset `dataset_id` under the folder of local datasets.

    The dataset appears when it is whole: until then it has a hidden name, and a failure leaves nothing.

    Args:
        dataset_id: ``namespace/name-v0``, not taken yet.
        episodes: at least one; actions and observations as the environment's spaces have them.
        env_spec: what Gymnasium makes the environment from, its kwargs included: JSON values only. It is stored as the
            recording's and as the evaluation's environment, and its spaces are the dataset's.
        algorithm_name: who acted.
        description: of the dataset, in a sentence.
        ref_min_score: return that counts as normalized score 0.
        ref_max_score: return that counts as normalized score 1.
        requirements: packages that making the environment needs, as pip takes them.
    Returns:
        the dataset's folder; `open_dataset` takes it, and ``minari:ID``.
    Raises:
        ConfigError: the id is malformed or taken, or only one of the scores is given.
        DataError: no episode, or one whose arrays are not equally long.
    """
    import gymnasium
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except ValueError as error:
        raise ConfigError(
            f"write: dataset_id must have the form (namespace/)name-v0, got {dataset_id!r}. Choose such a name."
        ) from error
    folder = datasets_root() / dataset_id
    if folder.exists():
        raise ConfigError(
            f"write: dataset_id must be a new name, got {dataset_id}, which {folder} has. Choose another."
        )
    if (ref_min_score is None) != (ref_max_score is None):
        raise ConfigError(f"write: reference scores must be two or none, got {ref_min_score} and {ref_max_score}.")
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "algorithm_name": algorithm_name,
        "description": description,
        "eval_env_spec": env_spec.to_json(),
        "minari_version": minari.__version__,
    }
    if ref_min_score is not None:
        metadata |= {"ref_min_score": ref_min_score, "ref_max_score": ref_max_score}
    if requirements := list(requirements):
        metadata["requirements"] = requirements

    env = gymnasium.make(env_spec)
    env.close()
    partial = datasets_root() / f".{dataset_id.replace('/', '-')}.{os.getpid()}"
    try:
        (partial / "data").mkdir(parents=True)
        storage = MinariStorage.new(partial / "data", env.observation_space, env.action_space, env_spec)
        storage.update_metadata(metadata)
        storage.update_episodes(_buffers(episodes))
        if storage.total_episodes == 0:
            raise DataError("write: a dataset must have an episode, got none.")
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _buffers(episodes: Iterable[Episode]) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for number, episode in enumerate(episodes):
        steps = len(episode.reward)
        if steps < 1 or len(episode.action) != steps or len(episode.obs) != steps + 1:
            raise DataError(
                f"write: episode {number} must have T >= 1 rewards, T actions and T + 1 observations, got {steps}, "
                f"{len(episode.action)} and {len(episode.obs)}."
            )
        last = np.arange(steps) == steps - 1
        yield EpisodeBuffer(
            id=number,
            seed=episode.seed,
            observations=episode.obs,
            actions=episode.action,
            rewards=episode.reward,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
        )
