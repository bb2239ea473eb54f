"""Selective copying and induction heads: seeded sequences, a small model, its training and its accuracy.

Both tasks are of Gu and Dao 2023, "Mamba", arXiv 2312.00752, section 4.1, in the sizes of De et al. 2024, "Griffin",
arXiv 2402.19427, section 6.2. Of a vocabulary of V tokens (16 in the papers), in a sequence of L tokens:

copying      token 0 is noise, V - 1 the marker, 1 .. V - 2 data (14 values for V = 16, a guess is right 1 time in 14).
             ``data`` data tokens (16), uniform and independent, stand at random places among L - data noise tokens;
             then ``data`` markers follow, L + data tokens in all. At the i-th marker the answer is the i-th data token.
             Answers are not fed back.
induction    token V - 1 is special, 0 .. V - 2 are ordinary (15 values). All tokens are uniform ordinary ones, but for
             two special tokens: one at a random place among the first L - 2, one at the end. At the end, the answer is
             the token that follows the first.

The answers are those of the last tokens of every sequence; loss and accuracy count nothing else.

Differs from the papers: a training batch has one length, drawn log-uniformly between ``shortest`` and L, so that what
is learned on short sequences carries over to long ones; with ``shortest`` = L every batch has length L, as published.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlseq import backbones
from rlseq.errors import ConfigError, RunError
from rlseq.training import OptimConfig
from rlseq.training.checkpoint import DAMAGED
from rlseq.training.optim import build_optimizer

TASKS = ("copying", "induction")
WHOLE_PATTERN = {"griffin": 3, "hybrid": 3}
"""Layers that it takes for each kind of mixer to be there."""


@dataclass(frozen=True)
class Task:
    """What is asked, and how long it is."""

    name: str
    """copying or induction."""
    length: int
    """L, tokens of a sequence; copying's markers come on top."""
    vocabulary: int = 16
    """V, number of different tokens."""
    data: int = 16
    """Tokens to copy; induction asks for one."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.name not in TASKS:
            raise ConfigError(f"Task: name must be one of {', '.join(TASKS)}, got {self.name!r}. Choose one of them.")
        if self.length < self.least:
            raise ConfigError(
                f"Task: {self.name} must have a length of at least {self.least}, got {self.length}. Give a longer one."
            )

    @property
    def least(self) -> int:
        """Least length that the task can have."""
        return self.data if self.name == "copying" else 3

    @property
    def answers(self) -> int:
        """Tokens at the end of a sequence that have an answer."""
        return self.data if self.name == "copying" else 1

    def tokens(self, length: int | None = None) -> int:
        """Tokens of a sequence, copying's markers included."""
        return (self.length if length is None else length) + (self.data if self.name == "copying" else 0)

    def batch(self, rows: int, generator: torch.Generator, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (rows, ``tokens(length)``) and the answers (rows, ``answers``) of the last of them, int64."""
        length = self.length if length is None else length
        make = selective_copying if self.name == "copying" else induction_heads
        return make(rows, length, self.vocabulary, self.data, generator)


def selective_copying(
    rows: int, length: int, vocabulary: int, data: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences (rows, length + data) and the data tokens (rows, data) that the last ``data`` markers ask for."""
    places = torch.rand(rows, length, generator=generator).argsort(dim=1)[:, :data].sort(dim=1).values
    answers = torch.randint(1, vocabulary - 1, (rows, data), generator=generator)
    noise = torch.zeros(rows, length, dtype=torch.int64).scatter_(1, places, answers)
    return F.pad(noise, (0, data), value=vocabulary - 1), answers


def induction_heads(
    rows: int, length: int, vocabulary: int, _data: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences (rows, length) that end in the special token, and the tokens (rows, 1) that followed it before."""
    tokens = torch.randint(0, vocabulary - 1, (rows, length), generator=generator)
    place = torch.randint(0, length - 2, (rows, 1), generator=generator)
    tokens[:, -1] = vocabulary - 1
    tokens.scatter_(1, place, vocabulary - 1)
    return tokens, tokens.gather(1, place + 1)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    updates: int
    """Most updates; then the run ends, solved or not."""
    batch: int = 16
    """Sequences in a batch."""
    shortest: int = 16
    """Least length of a training batch; the task's own length, or more, trains at that length alone."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, warmup=100, schedule="constant", weight_decay=0.0, clip=1.0)
    )
    """AdamW; the rate is constant between the warm-up and the cool-down."""
    solved: float = 0.995
    """Accuracy on held-out sequences that, reached at two checks in a row, solves the task."""
    cooldown: int = 1000
    """The last of the updates, in which the rate falls to 0; they begin sooner where the task is solved sooner."""
    every: int = 100
    """Updates between two checks."""
    rows: int = 256
    """Held-out sequences of a check, the same ones each time."""


def stream(seed: int, *, held_out: bool = False) -> torch.Generator:
    """The random numbers of training, or of held-out sequences: no seed of the one is a seed of the other."""
    return torch.Generator().manual_seed(2 * seed + held_out)


class Model(nn.Module):
    """Embedding, backbone, linear head.

    Args:
        backbone: any ``rlseq.backbones.Backbone``.
        width: D, its width.
        vocabulary: V, number of tokens.
    """

    def __init__(self, backbone: nn.Module, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.backbone = backbone
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, answers: int, state: Any = None) -> tuple[Tensor, Any]:
        """(B, L) tokens -> logits (B, answers, V) of the last ones, and the state after them."""
        features, state = self.backbone(self.embedding(tokens), state)
        return self.head(features[:, -answers:]), state


@torch.inference_mode()
def accuracy(
    model: Model,
    task: Task,
    rows: int,
    generator: torch.Generator,
    *,
    length: int | None = None,
    piece: int = 2048,
    tokens_at_once: int = 16_384,
) -> float:
    """Fraction of right answers on ``rows`` sequences of ``length`` tokens (the task's own if None).

    Sequences are read ``piece`` tokens at a time with the state carried over, so that memory does not grow with them.
    """
    model.eval()
    at_once = max(1, tokens_at_once // min(piece, task.tokens(length)))
    right = 0
    for done in range(0, rows, at_once):
        tokens, answers = task.batch(min(at_once, rows - done), generator, length)
        state = model.backbone.init_state(len(tokens))
        for part in pieces(tokens, max(piece, task.answers)):
            logits, state = model(part, task.answers, state)
        right += int((logits.argmax(-1) == answers).sum())
    return right / (rows * task.answers)


def pieces(tokens: Tensor, size: int) -> Iterator[Tensor]:
    """Parts of (B, L) tokens, in order, of ``size`` tokens each but for the first, which may be shorter."""
    first = tokens.shape[1] % size
    if first:
        yield tokens[:, :first]
    yield from tokens[:, first:].split(size, dim=1) if tokens.shape[1] > first else ()


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE``; values are JSON, or else text.

    Raises:
        ConfigError: an option without a value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for part in split_options(rest) if rest else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ConfigError(
                f"variant: options must be OPTION=VALUE, got {part!r} in {text!r}. Such as griffin:window=16."
            )
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return name, options


def split_options(text: str) -> list[str]:
    """The parts between commas that stand outside of brackets and braces."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def options_of(name: str, task: Task) -> dict[str, Any]:
    """Options that are not a backbone's defaults; windows that have none hold a whole training sequence.

    Griffin's local attention sees half of a training sequence (512 tokens of 1,024 and 128 of 256 in arXiv 2402.19427,
    section 6.2); FLASH's chunk is at most that, so that there are earlier ones to read.
    """
    if name == "transformer":
        return {"preset": "modern", "heads": 4, "dropout": 0.0}
    if name == "flash":
        return {"chunk": min(64, task.length // 2)}
    return {"window": task.length // 2} if name == "griffin" else {}


def configure(text: str, task: Task, width: int, layers: int, tokens: int | None = None) -> Any:
    """A backbone's Config; one without MLPs gets two layers for one, which is about as many parameters.

    Args:
        text: see ``variant``.
        task: what the model is for.
        width: D.
        layers: of mixer and MLP; at least one of every kind that the backbone has.
        tokens: what windows without a default hold; a training sequence if None.

    Raises:
        ConfigError: options that cannot be.
    """
    name, options = variant(text)
    layers = max(layers, WHOLE_PATTERN.get(name, 1))
    depth = layers if getattr(backbones.config_class(name), "has_mlp", True) else 2 * layers
    config = backbones.configure(name, **{"width": width, "depth": depth, **options_of(name, task), **options})
    return backbones.for_tokens(config, task.tokens() if tokens is None else tokens)


def build(text: str, task: Task, width: int, layers: int, tokens: int | None = None) -> Model:
    """A fresh model from torch's random numbers; see ``configure``."""
    config = configure(text, task, width, layers, tokens)
    return Model(backbones.from_config(variant(text)[0], config), config.width, task.vocabulary)


def widened(model: Model, wider: Model) -> Model:
    """``wider``, built with longer windows, with model's weights; model where a window has weights of its own (GAU)."""
    weights = model.state_dict()
    if any(weights[key].shape != value.shape for key, value in wider.state_dict().items()):
        return model
    wider.load_state_dict(weights)
    return wider


def train(
    model: Model,
    task: Task,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    show: Callable[[int, str], None] = lambda update, note: None,
) -> dict[str, Any]:
    """Trains until the task is solved or the updates are used up, with a cool-down at the end.

    Args:
        model: fresh weights; overwritten where there is a checkpoint.
        task: what to learn.
        recipe: how.
        seed: of the training sequences and the held-out ones.
        checkpoint: a file written at every check; where it exists, training goes on from it, to the same numbers.
        show: called at every check with the updates done and a note.

    Raises:
        RunError: the checkpoint is damaged.

    Returns:
        ``solved_at``, the update of the first of the two checks, or None; ``updates`` done; ``seconds`` of training,
        checks left out; ``curve``, one dictionary a check: update, seconds, loss, accuracy.
    """
    optimizer, _ = build_optimizer(model, recipe.optim, recipe.updates)
    generator = stream(seed)
    log: dict[str, Any] = {"solved_at": None, "updates": 0, "seconds": 0.0, "curve": []}
    last = recipe.updates
    if checkpoint is not None and checkpoint.exists():
        log, last = _resume(checkpoint, model, optimizer, generator)
    began = time.perf_counter() - log["seconds"]
    while log["updates"] < last:
        update = log["updates"]
        rate = recipe.optim.lr * min(1.0, (update + 1) / max(1, recipe.optim.warmup))
        rate *= min(1.0, (last - update) / max(1, min(recipe.cooldown, recipe.updates)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _update(model, task, recipe, generator, optimizer)
        log["updates"] = update = update + 1
        if update % recipe.every and update != last:
            continue
        log["seconds"] = time.perf_counter() - began
        right = accuracy(model, task, recipe.rows, stream(seed, held_out=True))
        curve = log["curve"]
        curve.append({"update": update, "seconds": log["seconds"], "loss": loss, "accuracy": right})
        if log["solved_at"] is None and len(curve) > 1 and min(one["accuracy"] for one in curve[-2:]) >= recipe.solved:
            log["solved_at"] = curve[-2]["update"]
            last = min(recipe.updates, update + recipe.cooldown)
        show(update, f"loss {loss:.3f}  accuracy {right:.3f}")
        if checkpoint is not None:
            whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "last": last, "log": log}
            _write(checkpoint, {**whole, "generator": generator.get_state()})
        began = time.perf_counter() - log["seconds"]
    return log


def _resume(
    checkpoint: Path, model: Model, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[dict[str, Any], int]:
    """Puts a checkpoint into the three; its log and the last update."""
    try:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        log, last = saved["log"], int(saved["last"])
        _ = log["solved_at"], log["updates"] + log["seconds"], log["curve"][-1]
    except DAMAGED as error:
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise RunError(f"run: {checkpoint} must be a whole checkpoint, got {told}. Remove it.") from error
    return log, last


def _update(
    model: Model, task: Task, recipe: Recipe, generator: torch.Generator, optimizer: torch.optim.Optimizer
) -> float:
    """One update; its loss."""
    length = task.length
    if recipe.shortest < length:
        low, high = math.log(max(recipe.shortest, task.least)), math.log(length)
        length = round(math.exp(low + (high - low) * torch.rand((), generator=generator).item()))
    tokens, answers = task.batch(recipe.batch, generator, length)
    logits, _ = model.train()(tokens, task.answers)
    loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
    optimizer.step()
    return loss.item()


def _write(file: Path, value: Any) -> None:
    """torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_bytes(buffer.getbuffer())
    os.replace(temporary, file)
