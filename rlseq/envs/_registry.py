"""How another package's environments get into Gymnasium's registry: by importing it."""

from __future__ import annotations

import importlib

from rlseq.errors import ConfigError

# prefix of ids -> the package whose import registers them; the extra of rlseq that brings it has the same name
_PACKAGES = {"popgym-": "popgym"}


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
