"""Checkpoints: a folder written under a temporary name and renamed when whole, so a kill leaves the last one intact.

``config.json`` (what was run), ``model.safetensors`` (weights), ``stats.safetensors`` (arrays of the dataset:
observation mean and deviation, action bounds) and ``trainer.pt`` (optimiser, schedule, sampler, random state; read with
``weights_only=True``). The first three make an agent; the last is needed only to go on training.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_model, save_model

from rlseq.agents import Agent
from rlseq.errors import RunError
from rlseq.report import write_json
from rlseq.types import DatasetInfo, DatasetStats

CHECKPOINTS = "checkpoints"
DAMAGED = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
"""What ``torch.load`` raises for a file that is missing, cut short or has flipped bits."""


def save(run: Path, update: int, config: dict[str, Any], agent: Agent, trainer: dict[str, Any], keep: int) -> Path:
    """Writes run/checkpoints/NNNNNNNN whole or not at all, and drops all but the newest `keep`.

    Args:
        run: the run folder.
        update: number of updates done; names the folder.
        config: what was run, JSON-able.
        agent: its weights, `info` and `stats` are written.
        trainer: what a resume needs, of tensors and plain values.
        keep: how many checkpoints stay.
    """
    folder = run / CHECKPOINTS
    final, temporary = folder / f"{update:08d}", folder / f".{update:08d}.part"
    for left_behind in folder.glob(".*.part"):
        shutil.rmtree(left_behind)
    temporary.mkdir(parents=True)
    try:
        arrays, scalars = _split(agent.info, agent.stats)
        write_json(temporary / "config.json", {**config, "data": scalars})
        save_model(agent, str(temporary / "model.safetensors"))
        save_arrays(arrays, temporary / "stats.safetensors")
        buffer = io.BytesIO()  # torch.save into a file says a full disk in words of its own
        torch.save(trainer, buffer)
        (temporary / "trainer.pt").write_bytes(buffer.getbuffer())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in all_of(run)[:-keep]:
        shutil.rmtree(old)
    return final


def all_of(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
    return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def latest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        RunError: there is none.
    """
    found = all_of(run)
    if found:
        return found[-1]
    if (run / "provenance.json").is_file():
        raise RunError(f"load: {run} must have a checkpoint, got a run that stopped before its first. Start it again.")
    raise RunError(f"load: {run} must be a run folder, got none. Give the folder that `rlseq train --out` named.")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The provenance of a run's earlier starts.

    Raises:
        RunError: the file is missing or broken.
    """
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"load: {path} must be a whole file, got {_line(error)}. Remove it, or start again.") from error


def remove_run(run: Path) -> None:
    """Removes what a run wrote, and the folder if nothing else is in it."""
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    for name in ("config.json", "provenance.json", "result.json"):
        (run / name).unlink(missing_ok=True)
    for events in run.glob("events.out.tfevents.*"):
        events.unlink()
    if not any(run.iterdir()):
        run.rmdir()


def read_config(checkpoint: Path) -> tuple[dict[str, Any], DatasetInfo, DatasetStats]:
    """config.json and the dataset's description of a checkpoint.

    Raises:
        RunError: a file is missing or broken.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        arrays = load_arrays(checkpoint / "stats.safetensors")
        data = config.pop("data")
        info, stats = (
            _join(kind, data[name], arrays) for name, kind in (("info", DatasetInfo), ("stats", DatasetStats))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(f"load: {checkpoint} must be a whole checkpoint, got {_line(error)}. {_REMEDY}") from error
    return config, info, stats


def load_weights(checkpoint: Path, agent: Agent) -> None:
    """Puts model.safetensors into the agent.

    Raises:
        RunError: the file is missing, cut short, or made for another network.
    """
    path = checkpoint / "model.safetensors"
    try:
        load_model(agent, path, device=str(agent.obs_mean.device))
    except (OSError, SafetensorError) as error:
        raise RunError(f"load: {path} must be whole, got {_line(error)}. {_REMEDY}") from error
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise RunError(f"load: {path} must be of the network that config.json describes, got: {told}") from error


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """trainer.pt on the CPU, read with weights_only=True: no code of the file is run.

    Raises:
        RunError: the file is missing, cut short or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint / "trainer.pt", map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise RunError(f"load: {checkpoint}/trainer.pt must be whole, got {_line(error)}. {_REMEDY}") from error
    return state


_REMEDY = "Remove that checkpoint folder to fall back to the one before it."


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _arrays(kind: type) -> list[str]:
    return [f.name for f in fields(kind) if "ndarray" in str(f.type)]


def _split(info: DatasetInfo, stats: DatasetStats) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays apart from what JSON can hold."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, record in (("info", info), ("stats", stats)):
        values = asdict(record)
        arrays |= {k: np.ascontiguousarray(v) for k, v in values.items() if k in _arrays(type(record))}
        scalars[name] = {k: v for k, v in values.items() if k not in arrays}
    return arrays, scalars


def _join(kind: type, scalars: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """The reverse of `_split` for one record; JSON has no tuples, so lists become them."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in scalars.items()}
    return kind(**plain, **{name: arrays[name] for name in _arrays(kind)})
