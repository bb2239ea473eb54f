"""Writes a Minari dataset (HDF5) episode by episode: whole at its place, or not there at all.

The layout is Minari's own storage; its DataCollector is not used because it needs JAX to append to lists.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rlseq.data.minari_source import MADE_BY, datasets_root, flat_rows, read
from rlseq.errors import ConfigError, DataError
from rlseq.types import DatasetInfo, Episode

if TYPE_CHECKING:
    import gymnasium
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec

_STEPS_IN_MEMORY = 10_000


def check_out(out: str, *, overwrite: bool = False) -> str:
    """The Minari id of ``minari:ID``, free to be written to.

    Raises:
        ConfigError: not of the form minari:NAMESPACE/NAME-vN, or its place is taken.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    scheme, _, dataset_id = out.partition(":")
    try:
        if scheme != "minari" or "" in dataset_id.split("/"):
            raise ValueError
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: no version
        raise ConfigError(
            f"collect: out must be minari:NAMESPACE/NAME-vN of letters, digits, - and _, got {out!r}. Such as "
            f"minari:mine/cheetah-v0."
        ) from error
    root = datasets_root()
    folder = root / dataset_id
    above = [place for place in folder.parents if place.is_relative_to(root) and place != root and _is_dataset(place)]
    if above:
        raise ConfigError(f"collect: out must not lie inside a dataset, got {out!r} in {above[0]}. Give another --out.")
    if folder.exists() and not _is_dataset(folder):
        raise ConfigError(f"collect: out must be free or a dataset, got {out!r} at {folder}. Give another --out.")
    if folder.exists() and not overwrite:
        raise ConfigError(f"collect: {out} must not exist yet, got one at {folder}. Give --overwrite or another --out.")
    return dataset_id


class MinariRecorder:
    """A dataset being written: a context manager that leaves nothing behind unless `finish` was reached.

    Episodes go into a hidden folder under the datasets folder, which `finish` renames.

    Args:
        out: ``minari:ID``.
        env: its spaces and its spec are the dataset's.
        env_id: what `gymnasium.make` was called with, ``module:id`` included.
        env_kwargs: likewise; JSON values.
        overwrite: replace the dataset of this id.

    Attributes:
        info: what a reader sees of the dataset, before its reference scores are known.

    Raises:
        ConfigError: see `check_out`; an environment whose spec is not JSON.
        DataError: spaces that rlseq does not read back.
    """

    def __init__(
        self,
        out: str,
        env: gymnasium.Env[Any, Any],
        env_id: str,
        env_kwargs: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self._id, self._out, self._overwrite = check_out(out, overwrite=overwrite), out, overwrite
        self._folder = datasets_root() / self._id
        self._env, self._made = env, {"id": env_id, "kwargs": dict(env_kwargs)}
        self._waiting: list[Any] = []
        self._count = 0
        self._new_folders: list[Path] = []
        self._work: Path | None = None

    def __enter__(self) -> Self:
        """Makes the hidden folder."""
        from minari.dataset.minari_storage import MinariStorage

        try:
            self._make_folders(datasets_root())
            self._work = Path(tempfile.mkdtemp(prefix=".rlseq-recording-", dir=datasets_root()))
            self._dataset = self._work / "dataset"  # has the usual access rights, which a temporary folder has not
            self._dataset.mkdir()
            self._storage = MinariStorage.new(
                self._dataset / "data",
                observation_space=self._env.observation_space,
                action_space=self._env.action_space,
                env_spec=_json_spec(self._env),
                jpeg_encoding=False,
            )
            self._storage.update_metadata({MADE_BY: self._made})
            self.info: DatasetInfo = read(self._dataset, self._out)[0]
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what `finish` did not move."""
        self._clean_up()

    def add(self, episode: Episode) -> None:
        """Takes one whole episode.

        Raises:
            DataError: lengths that do not fit each other, observations outside their space's form, NaN or infinity; one
                line naming the episode.
        """
        from minari.data_collector import EpisodeBuffer

        where = f"collect: episode {self._count} (seed {episode.seed})"
        steps = len(episode.reward)
        if steps < 1 or len(episode.action) != steps or len(episode.obs) != steps + 1:
            raise DataError(
                f"{where} must have T >= 1 rewards, T actions and T + 1 observations, got {steps}, "
                f"{len(episode.action)} and {len(episode.obs)}. Mend the env."
            )
        observations = _stacked(f"{where}: observations", self._env.observation_space, episode.obs)
        for name, numbers in (
            ("observations", flat_rows(self._env.observation_space, observations)),
            ("rewards", np.asarray(episode.reward)),
        ):
            if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                step = int(np.argwhere(~np.isfinite(numbers))[0][0])
                raise DataError(f"{where}: {name} must be finite, got {numbers[step]} at step {step}. Mend the env.")
        self._waiting.append(
            EpisodeBuffer(
                seed=episode.seed,
                observations=observations,
                actions=_stacked(f"{where}: actions", self._env.action_space, episode.action),
                rewards=episode.reward,
                terminations=[False] * (steps - 1) + [episode.terminated],
                truncations=[False] * (steps - 1) + [episode.truncated],
                infos={},
            )
        )
        self._count += 1
        if sum(map(len, self._waiting)) >= _STEPS_IN_MEMORY:
            self._write()

    def finish(self, metadata: Mapping[str, Any]) -> Path:
        """Adds metadata, moves the dataset to its place, and returns the folder.

        Args:
            metadata: JSON values for metadata.json, Minari's keys or others; an author is a set.

        Raises:
            DataError: no episode was added.
        """
        import minari
        from minari.namespace import create_namespace, list_local_namespaces

        assert self._work is not None
        if self._count == 0:
            raise DataError("collect: a dataset must have an episode, got none. Record one.")
        self._write()
        self._storage.update_episode_metadata(self._storage.apply(minari.EpisodeMetadataCallback()))
        self._storage.update_metadata({"dataset_id": self._id, "minari_version": minari.__version__, **metadata})
        check_out(self._out, overwrite=self._overwrite)  # again: hours may have passed
        self._make_folders(self._folder.parent)
        old = self._work / "old"
        try:
            if self._folder.exists():
                self._folder.rename(old)
            self._dataset.rename(self._folder)
        except BaseException:
            if old.exists() and not self._folder.exists():
                old.rename(self._folder)
            raise
        self._new_folders = []
        namespace = self._id.rpartition("/")[0]
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        return self._folder

    def _write(self) -> None:
        self._storage.update_episodes(self._waiting)
        self._waiting = []

    def _make_folders(self, folder: Path) -> None:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir()
                self._new_folders.append(place)

    def _clean_up(self) -> None:
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
        for folder in reversed(self._new_folders):
            try:
                folder.rmdir()
            except OSError:  # something else is in it by now
                break
        self._work, self._new_folders = None, []


def write(
    out: str,
    episodes: Iterable[Episode],
    env_spec: EnvSpec,
    *,
    algorithm_name: str,
    description: str,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    requirements: Sequence[str] = (),
) -> Path:
    """Writes `episodes`, one at a time, as a Minari dataset, whole or not at all.

    Args:
        out: ``minari:ID``, not taken yet.
        episodes: at least one; actions and observations as the environment's spaces have them.
        env_spec: what Gymnasium makes the environment from, its kwargs included: JSON values only. It is stored as the
            recording's and as the evaluation's environment, and its spaces are the dataset's.
        algorithm_name: who acted.
        description: of the dataset, in a sentence.
        ref_min_score: return that counts as normalized score 0.
        ref_max_score: return that counts as normalized score 1.
        requirements: packages that making the environment needs, as pip takes them.

    Returns:
        The dataset's folder.

    Raises:
        ConfigError: see `check_out`, or only one of the scores is given.
        DataError: no episode, or see `MinariRecorder.add`.
    """
    import gymnasium

    check_out(out)
    scores = {"ref_min_score": ref_min_score, "ref_max_score": ref_max_score}
    if (ref_min_score is None) != (ref_max_score is None):
        raise ConfigError(f"collect: reference scores must be two or none, got {ref_min_score} and {ref_max_score}.")
    env = gymnasium.make(env_spec)
    env.close()
    metadata: dict[str, Any] = {
        "algorithm_name": algorithm_name,
        "description": description,
        "eval_env_spec": env_spec.to_json(),
        **({} if ref_min_score is None else scores),
        **({"requirements": list(requirements)} if requirements else {}),
    }
    with MinariRecorder(out, env, env_spec.id, env_spec.kwargs) as recorder:
        for episode in episodes:
            recorder.add(episode)
        return recorder.finish(metadata)


def _is_dataset(folder: Path) -> bool:
    return (folder / "data" / "metadata.json").is_file()


def _json_spec(env: gymnasium.Env[Any, Any]) -> Any:
    """The environment's spec with classes by their names, as JSON needs them."""
    spec = copy.deepcopy(env.spec)
    if spec is None:
        return None
    for name in ("entry_point", "vector_entry_point"):
        if callable(point := getattr(spec, name)):
            setattr(spec, name, f"{point.__module__}:{point.__qualname__}")
    try:
        json.loads(spec.to_json())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"collect: the specification of {spec.id} must be JSON, got {' '.join(str(error).split())}. Register it "
            f"with plain arguments."
        ) from error
    return spec


def _stacked(where: str, space: Space[Any], values: Sequence[Any] | np.ndarray) -> Any:
    """Elements of a (nested) space as arrays with a row each, in the space's dtypes."""
    from gymnasium.vector.utils import concatenate, create_empty_array

    try:
        rows: Any = create_empty_array(space, n=len(values))
        return concatenate(space, values, rows)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{where} must be elements of {space}, got {' '.join(str(error).split())}. Mend the env."
        ) from error
