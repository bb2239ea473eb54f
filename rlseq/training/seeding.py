"""One seed for all that draws numbers in training, and the state of it all for a resume."""

from __future__ import annotations

from typing import Any

import torch


def seed_everything(seed: int) -> None:
    """Seeds torch's generators, CPU and GPU. rlseq's own sampling takes its seed as an argument, not from a global."""
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of torch's generators, as tensors."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Puts `rng_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
