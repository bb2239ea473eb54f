"""The step as an ONNX graph: written to a file that needs neither torch nor rlseq, and run by onnxruntime.

Inputs, N rows (any number): obs (N, S) float32, reward (N,) float64, episode_start (N,) bool, target_return (N,)
float64, and the arrays of the state as ``state.NAME``. Outputs: action, and the next state as ``next.NAME``, in the
same order. The metadata entry ``rlseq`` is JSON with the format, the facts of the policy and name, shape and dtype of
the state's arrays. All zeros is a state to begin with, because the first step starts an episode everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlseq.agents.acting import ActingSpec, ActingStep, Given, PolicyState
from rlseq.agents.engines._buffers import Buffers, flat, shaped
from rlseq.agents.engines._graph import in_place, translations
from rlseq.errors import ConfigError, RunError
from rlseq.kernels import plain_operations

if TYPE_CHECKING:
    from rlseq.agents.engines import Engine

FORMAT = 1
"""Raised whenever the names, the order or the meaning of inputs and outputs change."""
OPSET = 20
TOLERANCE = 1e-4
_KEY = "rlseq"
_ADVICE = 'Install it: pip install "rlseq[onnx]".'


class Onnx:
    """Runs a graph for a fixed number of rows; see `Engine`. What is given away goes on in `Buffers`."""

    def __init__(self, model: bytes | str, rows: int) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        # One step is too little work to share: a second thread costs more than it does.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_reuse = False  # a few per cent of a step for some kilobytes
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        facts = self._session.get_modelmeta().custom_metadata_map.get(_KEY)
        self.facts = read_facts(facts, "the graph" if isinstance(model, bytes) else model)
        self.spec, self.rows = ActingSpec(**self.facts["spec"]), rows
        self.names = tuple(array["name"] for array in self.facts["state"])
        # What does not decide the result (the reward, to a clone of behaviour) is no input of the graph.
        taken = {value.name for value in self._session.get_inputs()}
        inputs = (*Given._fields, *(f"state.{name}" for name in self.names))
        self._inputs = [(index, name) for index, name in enumerate(inputs) if name in taken]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._in_place = tuple(self.facts.get("in_place", ()))
        self.overwrites = bool(self._in_place)
        self._buffers: Buffers | None = None

    def initial_state(self) -> PolicyState:
        """See `Engine`."""
        arrays = [np.zeros((self.rows, *array["shape"]), array["dtype"]) for array in self.facts["state"]]
        arrays[self.names.index("timestep")][:] = -1
        return self.restored(arrays)

    def __call__(self, given: Given, state: Any, *, consume: bool = False) -> tuple[np.ndarray, PolicyState]:
        """See `Engine`."""
        if not consume:
            # the caller may have a state that lies in them
            self._buffers = None
            values = (*given, *flat(state))
            action, *following = self._session.run(self._outputs, {name: values[index] for index, name in self._inputs})
            return action, shaped(following)
        if self._buffers is None or not self._buffers.hold(state):
            self._buffers = Buffers(self._session, self.spec, self.names, state, self._in_place)
        return self._buffers(given, state)

    def native(self, array: np.ndarray) -> np.ndarray:
        """See `Engine`."""
        return array.copy()

    def arrays(self, state: PolicyState) -> list[np.ndarray]:
        """See `Engine`."""
        return [array.copy() for array in flat(state)]

    def restored(self, arrays: list[np.ndarray]) -> PolicyState:
        """See `Engine`."""
        return shaped([array.copy() for array in arrays])


def build(step: ActingStep, rows: int) -> Onnx:
    """The engine of a step; making the graph takes some seconds."""
    _runtime()
    return Onnx(graph(step, {}), rows)


def from_file(path: str | Path, rows: int) -> Onnx:
    """The engine of a file that `write` made.

    Raises:
        RunError: no such file, no ONNX graph, not one of rlseq, or of another format.
        ConfigError: onnxruntime is not installed.
    """
    runtime = _runtime()
    if not Path(path).is_file():
        raise RunError(f"load_policy: {path} must be a file, got none. Write one: rlseq export RUN {path}")
    of_runtime = vars(runtime.capi.onnxruntime_pybind11_state).values()
    broken = tuple(kind for kind in of_runtime if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        return Onnx(str(path), rows)
    except broken as error:
        told = " ".join(str(error).split())[:200]
        raise RunError(f"load_policy: {path} must be an ONNX file of rlseq export, got {told}") from error


def write(step: ActingStep, path: str | Path, facts: dict[str, Any], *, overwrite: bool) -> float:
    """Writes the step as a file, whole or not at all, after a comparison with PyTorch.

    Args:
        step: what to write.
        path: of the file.
        facts: put into the metadata beside what the policy needs; plain values.
        overwrite: replace a file.

    Returns:
        The largest difference of an action.
    """
    target = Path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise RunError(f"export: {target} must be a file in a folder that exists, got another place. Make the folder.")
    if target.exists() and not overwrite:
        raise RunError(f"export: {target} must not exist yet, got a file. Give --overwrite or another name.")
    _runtime()
    content = graph(step, facts)
    difference = largest_difference(step, content)
    if not difference <= TOLERANCE:
        raise ConfigError(f"export: the graph must act as PyTorch does within {TOLERANCE}, got {difference:.2g}.")
    handle, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return difference


def largest_difference(step: ActingStep, model: bytes, *, rows: int = 3, steps: int = 20) -> float:
    """Of an action of the graph from PyTorch's, over random steps in which rows start over apart."""
    from rlseq.agents.engines.eager import Eager

    both: tuple[Engine, Engine] = (Onnx(model, rows), Eager(step, rows))
    states = [engine.initial_state() for engine in both]
    rng, found = np.random.default_rng(0), 0.0
    steps = min(steps, step.spec.longest_episode or steps)
    for number in range(steps):
        obs = rng.normal(size=(rows, step.spec.obs_size)).astype(np.float32)
        start = (rng.random(rows) < 0.1) | (number == 0)
        given = Given(obs, rng.normal(size=rows), start, np.full(rows, step.spec.target_return))
        actions = []
        for index, engine in enumerate(both):
            action, states[index] = engine(given, states[index])
            actions.append(action.astype(np.float64))
        found = max(found, float(np.abs(actions[0] - actions[1]).max()))
    return found


def graph(step: ActingStep, facts: dict[str, Any]) -> bytes:
    """The step as a serialised ONNX model for any number of rows.

    Raises:
        ConfigError: the onnx packages are not installed, or a backbone has an operation that ONNX has not.
    """
    import torch
    from torch.utils import _pytree

    from rlseq.agents.engines.eager import leaf_name

    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"export: onnx and onnxscript must be there, got no {' and no '.join(missing)}. {_ADVICE}")
    rows, spec = 2, step.spec
    device = step.agent.obs_mean.device
    state = step.initial_state(rows)
    numbers = torch.zeros(rows, dtype=torch.float64, device=device)
    obs = torch.zeros(rows, spec.obs_size, device=device)
    arguments = (obs, numbers, numbers > 0, numbers.clone(), state)
    leaves = [(leaf_name(path), leaf) for path, leaf in _pytree.tree_flatten_with_path(state)[0]]
    names = [name for name, _ in leaves]
    batched = _pytree.tree_map(lambda _: {0: torch.export.Dim.DYNAMIC}, arguments)
    try:
        with torch.no_grad(), _quiet(), plain_operations():
            program = torch.onnx.export(
                step,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=batched,
                input_names=[*Given._fields, *(f"state.{n}" for n in names)],
                output_names=["action", *(f"next.{n}" for n in names)],
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        told = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigError(f"export: every operation of the agent must exist in ONNX, got {told}.") from error
    assert program is not None
    model = program.model_proto
    arrays = [
        {"name": name, "shape": list(leaf.shape[1:]), "dtype": str(leaf.dtype).removeprefix("torch.")}
        for name, leaf in leaves
    ]
    described = {"format": FORMAT, "spec": asdict(spec), "state": arrays, "in_place": in_place(model, names), **facts}
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(described)
    content: bytes = model.SerializeToString()
    return content


def read_facts(text: str | None, name: str) -> dict[str, Any]:
    """The metadata of a graph.

    Raises:
        RunError: there is none, or it is of another format.
    """
    if text is None:
        raise RunError(f"load_policy: {name} must be written by rlseq export, got an ONNX graph without its metadata.")
    facts: dict[str, Any] = json.loads(text)
    if facts.get("format") != FORMAT:
        raise RunError(f"load_policy: {name} must be of format {FORMAT}, got {facts.get('format')}. Export it again.")
    return facts


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"policy: engine onnx needs onnxruntime, got {error}. {_ADVICE}") from error
    return onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on what it folds and what is not installed from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
