"""Where the figures of a run go: TensorBoard. docs/metrics.md has a paragraph on every name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Writer(Protocol):
    """What `Trainer` writes scalars to."""

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Writes values at an update."""
        ...


class TensorBoard:
    """Writes scalars, hyper-parameters and the run's facts as TensorBoard events into a folder."""

    def __init__(self, folder: Path, purge_update: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_update)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Writes values at an update."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()

    def facts(self, hyper_parameters: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Fills the HPARAMS tab: what was set, and what came out."""
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in hyper_parameters.items()}
        self._writer.add_hparams(plain, dict(results), run_name=".")

    def text(self, name: str, value: str) -> None:
        """Writes a text."""
        self._writer.add_text(name, value, 0)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
