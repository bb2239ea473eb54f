"""Checkpoints: a folder written under a temporary name and renamed when whole, so a kill leaves the last one intact.

``config.json`` (what was run), ``model.safetensors`` (weights), ``stats.safetensors`` (arrays of the dataset:
observation mean and deviation, action bounds) and ``trainer.pt`` (optimiser, schedule, sampler, random state; read with
``weights_only=True``). The first three make an agent; the last is needed only to go on training.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from rlseq.agents import Agent
from rlseq.errors import RunError
from rlseq.types import DatasetInfo, DatasetStats

CHECKPOINTS = "checkpoints"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


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
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    arrays, scalars = _split(agent.info, agent.stats)
    write_json(temporary / "config.json", {**config, "data": scalars})
    save_file({k: v.contiguous() for k, v in agent.state_dict().items()}, temporary / "model.safetensors")
    save_arrays(arrays, temporary / "stats.safetensors")
    torch.save(trainer, temporary / "trainer.pt")
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
    """The newest checkpoint of a run, or the folder itself where it is a checkpoint.

    Raises:
        RunError: there is none.
    """
    if (run / "model.safetensors").is_file():
        return run
    found = all_of(run)
    if not found:
        raise RunError(
            f"load: {run} must be a run folder with checkpoints, got none there. "
            "Give the folder that `rlseq train --out` named."
        )
    return found[-1]


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
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"load: {checkpoint} must be a whole checkpoint, got {_line(error)}. {_REMEDY}") from error
    return config, info, stats


def load_weights(checkpoint: Path, agent: Agent) -> None:
    """Puts model.safetensors into the agent.

    Raises:
        RunError: the file is missing, cut short, or made for another network.
    """
    try:
        agent.load_state_dict(load_file(checkpoint / "model.safetensors", device=str(agent.obs_mean.device)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"load: {checkpoint}/model.safetensors must be whole, got {_line(error)}. {_REMEDY}") from error


def load_trainer(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """trainer.pt, read with weights_only=True: no code of the file is run.

    Raises:
        RunError: the file is missing or cut short.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint / "trainer.pt", map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
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
