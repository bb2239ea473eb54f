"""The datasets of D4RL (Fu et al. 2020, arXiv 2004.07219): addresses, reference scores, environments.

Reference scores belong to these datasets alone: other recordings of the same task are scored by their own metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_ROOT = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


@dataclass(frozen=True)
class D4RLEntry:
    """One dataset.

    Attributes:
        url: where the HDF5 file is.
        max_episode_steps: time limit, which splits files that lack ``timeouts``.
        scores: returns that count as normalized score 0 and 1.
        env_id: Gymnasium environment of the same task that rlseq installs; None where there is none.
        env_kwargs: what makes that environment closest to the recorded one.
    """

    url: str
    max_episode_steps: int
    scores: tuple[float, float]
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Name in the cache, the one that the d4rl package gives it."""
        return self.url.rsplit("/", 1)[1]


# Ant-v5 has 105 observations, D4RL's ant 111. Walker2d-v5 has other foot friction unless given the old model.
_LOCOMOTION: dict[str, tuple[tuple[float, float], str | None, dict[str, Any]]] = {
    "halfcheetah": ((-280.178953, 12135.0), "HalfCheetah-v5", {}),
    "hopper": ((-20.272305, 3234.3), "Hopper-v5", {}),
    "walker2d": ((1.629008, 4592.3), "Walker2d-v5", {"xml_file": "walker2d.xml"}),
    "ant": ((-325.6, 3879.7), None, {}),
}
_LOCOMOTION_V0 = {
    "random": "random",
    "medium": "medium",
    "expert": "expert",
    "medium-replay": "mixed",
    "medium-expert": "medium_expert",
}
_ADROIT = {
    "pen": ((96.262799, 3076.8331017826877), 100),
    "hammer": ((-274.856578, 12794.134825156867), 200),
    "door": ((-56.512833, 2880.5693087298737), 200),
    "relocate": ((-6.425911, 4233.877797728884), 200),
}
_ADROIT_V0 = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}
_MAZE2D = {
    "open-v0": ("open-sparse", 150, (0.01, 20.66)),
    "umaze-v1": ("umaze-sparse-v1", 300, (23.85, 161.86)),
    "medium-v1": ("medium-sparse-v1", 600, (13.13, 277.39)),
    "large-v1": ("large-sparse-v1", 800, (6.7, 273.99)),
    "open-dense-v0": ("open-dense", 150, (11.17817, 27.166538620695782)),
    "umaze-dense-v1": ("umaze-dense-v1", 300, (68.537689, 193.66285642381482)),
    "medium-dense-v1": ("medium-dense-v1", 600, (44.264742, 297.4552547777125)),
    "large-dense-v1": ("large-dense-v1", 800, (30.569041, 303.4857382709002)),
}
_ANTMAZE = {
    "umaze": ("u-maze_noisy_multistart_False_multigoal_False", 700),
    "umaze-diverse": ("u-maze_noisy_multistart_True_multigoal_True", 700),
    "medium-play": ("big-maze_noisy_multistart_True_multigoal_False", 1000),
    "medium-diverse": ("big-maze_noisy_multistart_True_multigoal_True", 1000),
    "large-play": ("hardest-maze_noisy_multistart_True_multigoal_False", 1000),
    "large-diverse": ("hardest-maze_noisy_multistart_True_multigoal_True", 1000),
}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}


def _rows() -> Iterator[tuple[str, D4RLEntry]]:
    for task, (scores, env_id, env_kwargs) in _LOCOMOTION.items():
        v0 = _LOCOMOTION_V0 | ({"random-expert": "random_expert"} if task == "ant" else {})
        for kind, stem in v0.items():
            # One file of this folder drops the "2d".
            prefix = "walker" if (task, kind) == ("walker2d", "medium-replay") else task
            url = f"{_ROOT}/gym_mujoco/{prefix}_{stem}.hdf5"
            yield f"{task}-{kind}-v0", D4RLEntry(url, 1000, scores, env_id, env_kwargs)
        for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
            for version in ("v1", "v2"):
                url = f"{_ROOT}/gym_mujoco_{version}/{task}_{kind.replace('-', '_')}-{version}.hdf5"
                yield f"{task}-{kind}-{version}", D4RLEntry(url, 1000, scores, env_id, env_kwargs)
    for task, (scores, steps) in _ADROIT.items():
        for kind, stem in _ADROIT_V0.items():
            yield f"{task}-{kind}-v0", D4RLEntry(f"{_ROOT}/hand_dapg/{stem.format(task)}.hdf5", steps, scores)
            yield f"{task}-{kind}-v1", D4RLEntry(f"{_ROOT}/hand_dapg_v1/{task}-{kind}-v1.hdf5", steps, scores)
    for name, (stem, steps, scores) in _MAZE2D.items():
        yield f"maze2d-{name}", D4RLEntry(f"{_ROOT}/maze2d/maze2d-{stem}.hdf5", steps, scores)
    for name, (stem, steps) in _ANTMAZE.items():
        old = f"{_ROOT}/ant_maze_new/Ant_maze_{stem}_sparse.hdf5"
        fixed = f"{_ROOT}/ant_maze_v2/Ant_maze_{stem}_sparse_fixed.hdf5"
        yield f"antmaze-{name}-v0", D4RLEntry(old, steps, (0.0, 1.0))
        yield f"antmaze-{name}-v2", D4RLEntry(fixed, steps, (0.0, 1.0))
    for name, stem in _KITCHEN.items():
        yield f"kitchen-{name}-v0", D4RLEntry(f"{_ROOT}/kitchen/{stem}.hdf5", 280, (0.0, 4.0))


TABLE: dict[str, D4RLEntry] = dict(_rows())


def reference_scores(dataset_id: str) -> tuple[float, float] | None:
    """(min, max): returns that count as normalized score 0 and 1, of a D4RL id with or without ``d4rl:``; else None.

    normalized_score = (return - min) / (max - min), D4RL's constants (arXiv 2004.07219, section 5).
    """
    entry = TABLE.get(dataset_id.removeprefix("d4rl:"))
    return entry.scores if entry else None
