"""How environments get into Gymnasium's registry: rlseq's own as strings, another package's by importing it."""

from __future__ import annotations

import importlib

from rlseq.errors import ConfigError

# prefix of ids -> the package whose import registers them; the extra of rlseq that brings it has the same name
_PACKAGES = {"popgym-": "popgym"}


def register_own() -> None:
    """`rlseq/TMazePassive-v0` and `rlseq/TMazeActive-v0`; their code is imported when one is made."""
    import gymnasium

    for kind in ("passive", "active"):
        env_id = f"rlseq/TMaze{kind.capitalize()}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="rlseq.envs.t_maze:TMazeEnv",
                vector_entry_point="rlseq.envs.t_maze:TMazeVectorEnv",
                reward_threshold=1.0,
                kwargs={"kind": kind},
            )


def import_package_of(env_id: str) -> None:
    """Imports the package that registers `env_id`, where an extra of rlseq brings one.

    Raises:
        ConfigError: the package is not installed.
    """
    name = env_id.rpartition(":")[2]
    for prefix, package in _PACKAGES.items():
        if name.startswith(prefix):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                if error.name != package:
                    raise
                raise ConfigError(
                    f"make: {env_id!r} needs the package {package}, which is not installed. Install it: "
                    f'pip install "rlseq[{package}]".'
                ) from error
