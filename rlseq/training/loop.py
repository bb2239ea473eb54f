"""The training loop: batches -> loss -> gradient -> update, with logging, checkpoints and evaluation as callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from rlseq.agents import Agent
from rlseq.errors import ConfigError, RlseqError
from rlseq.progress import ProgressBar
from rlseq.training.metrics import Writer
from rlseq.training.optim import OptimConfig, build_optimizer
from rlseq.training.seeding import restore_rng, rng_state
from rlseq.types import Batch


class Batches(Protocol):
    """An endless source of batches that can be stopped and gone on with."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train and how often to look."""

    updates: int = 1500
    """Optimiser updates."""

    checkpoint_every: int = 500
    """Updates between checkpoints; the last update always writes one."""

    log_every: int = 20
    """Updates between points in TensorBoard."""

    carry_state: bool = False
    """Stream regime only: a row goes on from the previous row's state instead of from zero."""

    ema: float = 0.0
    """Decay of an exponential average of the weights, in [0, 1), that checkpoints and evaluations use; 0: off."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("updates", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training: {name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training: ema must be in [0, 1), got {self.ema}.")


class Trainer:
    """Trains an agent on batches.

    Args:
        agent: what is trained; it stays on its device.
        batches: where batches come from.
        config: how long, how often.
        optim: how the weights are moved.
        writer: takes the scalars.
        on_checkpoint: called as on_checkpoint(trainer) every `checkpoint_every` updates and at the end.
        progress: show a progress bar.

    Raises:
        ConfigError: a state is to be carried by an agent that has none.
    """

    def __init__(
        self,
        agent: Agent,
        batches: Batches,
        config: TrainingConfig,
        optim: OptimConfig,
        *,
        writer: Writer | None = None,
        on_checkpoint: Callable[[Trainer], None] | None = None,
        progress: bool = True,
    ) -> None:
        if config.carry_state and not agent.reads_past:
            raise ConfigError(
                "train: carry_state needs an agent that has a state, got one that has none. Leave it out."
            )
        self.agent, self.batches, self.config, self.optim = agent, batches, config, optim
        self.device = agent.obs_mean.device
        self.optimizer, self.schedule = build_optimizer(agent, optim, config.updates)
        average = get_ema_multi_avg_fn(config.ema)
        self._average = AveragedModel(agent, multi_avg_fn=average) if config.ema else None
        self.update = 0
        self.train_seconds, self.env_steps = 0.0, 0
        self._carried: Any = None
        self._writer, self._on_checkpoint, self._progress = writer, on_checkpoint, progress

    def fit(self) -> None:
        """Trains up to `config.updates`.

        Raises:
            RlseqError: the loss or the weights are not finite; nothing is checkpointed after that.
        """
        config, steps = self.config, 0
        sums: list[dict[str, Tensor]] = []
        mark = time.perf_counter()
        with ProgressBar("training", config.updates, done=self.update, quiet=not self._progress) as bar:
            while self.update < config.updates:
                self.agent.train()
                metrics, count = self.step()
                sums.append(metrics)
                steps += count
                last = self.update == config.updates
                keep = self._on_checkpoint is not None and (self.update % config.checkpoint_every == 0 or last)
                # Nothing is pending at a checkpoint, so that a resumed run logs and counts as an unbroken one.
                if self.update % config.log_every == 0 or keep or last:
                    values = {name: float(torch.stack([m[name] for m in sums]).mean()) for name in metrics}
                    self._check_finite(values)
                    now = time.perf_counter()
                    self.train_seconds, self.env_steps = self.train_seconds + now - mark, self.env_steps + steps
                    speed = steps / (now - mark)
                    bar.update(self.update, f"loss {values['train/loss']:.4f}  {speed:,.0f} steps/s")
                    if self._writer is not None:
                        values["train/lr"] = float(self.schedule.get_last_lr()[0])
                        values["train/env_steps_per_s"] = speed
                        self._writer.scalars(values, self.update)
                    sums, steps, mark = [], 0, now
                if keep:
                    assert self._on_checkpoint is not None
                    self._on_checkpoint(self)
                    mark = time.perf_counter()

    def _check_finite(self, values: dict[str, float]) -> None:
        """The weights are looked at too: an update with a finite loss and gradient can still make them infinite."""
        finite = all(map(math.isfinite, values.values()))
        if not finite or not all(bool(torch.isfinite(p).all()) for p in self.agent.parameters()):
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise RlseqError(
                f"train: loss and weights must stay finite, got {told} at update {self.update}. Lower --optim.lr."
            )

    def step(self) -> tuple[dict[str, Tensor], int]:
        """One optimiser update; returns the figures to log and the environment steps that went in."""
        accumulated: dict[str, Tensor] = {}
        steps = 0
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.optim.accumulate):
            batch = next(self.batches)
            steps += int(batch.mask.sum())
            batch = batch.to(self.device)
            loss = self.agent.loss(batch, self._carried)
            (loss.value / self.optim.accumulate).backward()
            if self.config.carry_state:
                self._carried = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, loss.state)
            for name, value in loss.metrics.items():
                part = value / self.optim.accumulate
                accumulated[f"train/{name}"] = accumulated.get(f"train/{name}", torch.zeros_like(part)) + part
        accumulated["train/grad_norm"] = nn.utils.clip_grad_norm_(self.agent.parameters(), self.optim.clip)
        self.optimizer.step()
        self.schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.agent)
        self.update += 1
        return accumulated, steps

    @property
    def result(self) -> Agent:
        """The agent to keep and to evaluate, in evaluation mode: the averaged one where weights are averaged."""
        agent = self.agent if self._average is None else self._average.module
        assert isinstance(agent, Agent)
        return agent.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, of tensors and plain values (readable with weights_only=True)."""
        return {
            "update": self.update,
            "train_seconds": self.train_seconds,
            "env_steps": self.env_steps,
            "weights": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "carried": None if self._carried is None else tree_leaves(self._carried),
            "rng": rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken: the next update is the one that would have come."""
        self.agent.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        # The saved rate belongs to the saved length of the training; a longer one has another rate at this update.
        rates = [
            b * f(self.schedule.last_epoch)
            for b, f in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule._last_lr = rates
        self.batches.load_state_dict(state["batches"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if state["carried"] is not None:
            leaves = [leaf.to(self.device) for leaf in state["carried"]]
            self._carried = tree_unflatten(leaves, tree_structure(self.agent.init_state(1)))
        self.update, self.train_seconds, self.env_steps = state["update"], state["train_seconds"], state["env_steps"]
        restore_rng(state["rng"])
