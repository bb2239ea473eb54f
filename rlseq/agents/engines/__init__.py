"""Engines run an acting step: the same results, at different speeds. The table names them.

- ``eager``: PyTorch as it is; any device, nothing to wait for
- ``compiled``: `torch.compile` with fixed shapes; on a GPU as CUDA graphs
- ``onnx``: the step as an ONNX graph in onnxruntime, on the CPU
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rlseq.errors import UnknownNameError

if TYPE_CHECKING:
    from rlseq.agents.acting import ActingSpec, ActingStep, Given, PolicyState

ENGINES = {
    "eager": "rlseq.agents.engines.eager",
    "compiled": "rlseq.agents.engines.compiled",
    "onnx": "rlseq.agents.engines.onnx",
}
"""Each is a module with a function ``build(step, rows)``."""


class Engine(Protocol):
    """Runs an acting step for a fixed number of rows. A state is not changed in place, unless it is given away.

    Attributes:
        spec: the step's facts.
        overwrites: a step that is interrupted may leave half of itself in a state that was given away.
        names: of the arrays of a state, in the order of `arrays`.
    """

    spec: ActingSpec
    overwrites: bool
    names: tuple[str, ...]

    def initial_state(self) -> PolicyState:
        """The state before any step."""
        ...

    def __call__(self, given: Given, state: Any, *, consume: bool = False) -> tuple[np.ndarray, PolicyState]:
        """See `ActingStep.forward`; arrays instead of tensors, and a state of the engine's own making.

        With consume the caller gives the state away: nobody reads it again, and the next one may lie in its memory.
        """
        ...

    def native(self, array: np.ndarray) -> Any:
        """The engine's own copy of an array of a state."""
        ...

    def arrays(self, state: PolicyState) -> list[np.ndarray]:
        """The arrays of a state, copied."""
        ...

    def restored(self, arrays: list[np.ndarray]) -> PolicyState:
        """The state of `arrays`."""
        ...


def build(name: str, step: ActingStep, rows: int) -> Engine:
    """The engine of a name, ready to run.

    Raises:
        UnknownNameError: no engine has that name.
        ConfigError: it cannot run here (a missing package or compiler).
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    engine: Engine = importlib.import_module(ENGINES[name]).build(step, rows)
    return engine
