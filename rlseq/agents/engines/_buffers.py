"""Memory that an onnxruntime session reads and writes, bound to it once: a step copies only what is new to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rlseq.agents.acting import ActingSpec, Given, PolicyState


class Buffers:
    """Runs an acting step; the next state lies where the last but one lay.

    Args:
        session: of an exported graph.
        spec: of its step.
        names: of the state's arrays.
        state: the one to begin with; it is copied.
        in_place: names of the arrays whose next one may be written over them; they have one memory, the others two.
    """

    def __init__(
        self, session: Any, spec: ActingSpec, names: Sequence[str], state: PolicyState, in_place: Iterable[str]
    ) -> None:
        self._session, rows = session, len(state.timestep)
        obs, number = np.zeros((rows, spec.obs_size), np.float32), np.zeros(rows)
        self._given = Given(obs, number, np.zeros(rows, np.bool_), number.copy())
        self._action = np.zeros(rows, np.int64) if spec.discrete else np.zeros((rows, spec.action_size), np.float32)
        first = [array.copy() for array in flat(state)]
        second = [
            array if name in set(in_place) else np.zeros_like(array) for name, array in zip(names, first, strict=True)
        ]
        taken = {value.name for value in session.get_inputs()}
        self._bindings, self._states = [], (shaped(first), shaped(second))
        for before, after in ((first, second), (second, first)):
            binding = session.io_binding()
            arrays: tuple[np.ndarray, ...] = (*self._given, *before)
            for name, array in zip((*Given._fields, *(f"state.{name}" for name in names)), arrays, strict=True):
                if name in taken:
                    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            arrays = (self._action, *after)
            for name, array in zip(("action", *(f"next.{name}" for name in names)), arrays, strict=True):
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._bindings.append(binding)
        self._turn = 0

    def hold(self, state: PolicyState) -> bool:
        """Whether a state is the one that the last step left here, whatever its clock says."""
        return state.return_to_go is self._states[self._turn].return_to_go

    def __call__(self, given: Given, state: PolicyState) -> tuple[np.ndarray, PolicyState]:
        """A step from the state that is held: the action, and the next one, which the step after next overwrites."""
        for own, new in zip(self._given, given, strict=True):
            np.copyto(own, new)
        self._states[self._turn].timestep[...] = state.timestep
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return self._action.copy(), self._states[self._turn]


def flat(state: PolicyState) -> tuple[np.ndarray, ...]:
    """A state's arrays in the order of the graph's."""
    return (*state.memory, *state[1:])


def shaped(arrays: Sequence[np.ndarray]) -> PolicyState:
    """The state of arrays in the order of the graph's."""
    *memory, return_to_go, timestep, action = arrays
    return PolicyState(tuple(memory), return_to_go, timestep, action)
