"""The agents, by name. `load(name)` gives the module with its Config, class and builder."""

from __future__ import annotations

import importlib
from types import ModuleType

from rlseq.agents.agent import Agent, Loss
from rlseq.agents.behaviour_cloning import BehaviourCloning
from rlseq.agents.decision_transformer import DecisionTransformer
from rlseq.agents.policy import Policy
from rlseq.errors import UnknownNameError

AGENTS = {
    "decision_transformer": "rlseq.agents.decision_transformer",
    "behaviour_cloning": "rlseq.agents.behaviour_cloning",
}

__all__ = ["AGENTS", "Agent", "BehaviourCloning", "DecisionTransformer", "Loss", "Policy", "load"]


def load(name: str) -> ModuleType:
    """The module of an agent.

    Raises:
        UnknownNameError: no agent has that name.
    """
    if name not in AGENTS:
        raise UnknownNameError("agent", name, AGENTS)
    return importlib.import_module(AGENTS[name])
