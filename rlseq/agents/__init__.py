"""The agents, by name. `load(name)` gives the module with its Config, class and builder."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from rlseq.agents.agent import Agent, Loss
from rlseq.agents.behaviour_cloning import BehaviourCloning
from rlseq.agents.decision_transformer import DecisionTransformer
from rlseq.agents.policy import Policy
from rlseq.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

AGENTS = {
    "decision_transformer": "rlseq.agents.decision_transformer",
    "behaviour_cloning": "rlseq.agents.behaviour_cloning",
}

__all__ = ["AGENTS", "Agent", "BehaviourCloning", "DecisionTransformer", "Loss", "Policy", "load", "load_policy"]


def load(name: str) -> ModuleType:
    """The module of an agent.

    Raises:
        UnknownNameError: no agent has that name.
    """
    if name not in AGENTS:
        raise UnknownNameError("agent", name, AGENTS)
    return importlib.import_module(AGENTS[name])


def load_policy(path: str | Path, num_envs: int = 1, *, target_return: float | None = None) -> Policy:
    """The policy of a file that ``rlseq export`` or `Agent.export` wrote, run by onnxruntime.

    Args:
        path: of the file.
        num_envs: rows; each has a state of its own.
        target_return: raw return to ask for; the agent's default if None.

    Raises:
        RunError: no such file, or not one of rlseq's, or of another format.
        ConfigError: onnxruntime is not installed, or num_envs < 1.
    """
    from rlseq.agents.engines import onnx

    if num_envs < 1:
        raise ConfigError(f"load_policy: num_envs must be at least 1, got {num_envs}.")
    return Policy(onnx.from_file(path, num_envs), num_envs, target_return=target_return)
