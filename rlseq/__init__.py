"""rlseq: offline-RL agents that read trajectories as sequences and act in constant time and memory.

The data path in seven stages: `rlseq.data` (1 source, 2 trajectories, 3 windows), `rlseq.agents` (4 tokens, 6 heads),
`rlseq.backbones` (5) and `rlseq.evaluation` (7 rollout).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlseq import agents, backbones, collect, data, envs, evaluation, kernels, training
    from rlseq.agents import load_policy
    from rlseq.run import load, train

__version__ = "0.1.0"
__all__ = [
    "agents",
    "backbones",
    "collect",
    "data",
    "envs",
    "evaluation",
    "kernels",
    "load",
    "load_policy",
    "train",
    "training",
]

_FUNCTIONS = {"load": "rlseq.run", "load_policy": "rlseq.agents", "train": "rlseq.run"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import rlseq`` is quick."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
