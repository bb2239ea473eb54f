"""What an installation can do, found out by trying."""

from __future__ import annotations

from typing import Any

import torch

from rlseq import backbones, data, envs, kernels
from rlseq.errors import RlseqError
from rlseq.provenance import provenance

ENVIRONMENT = "HalfCheetah-v5"
WINDOW_TOKENS = 60


def diagnose() -> dict[str, Any]:
    """Versions, machine, live kernels, backbones with their sizes, and whether MuJoCo and the bundled data work."""
    where = provenance()
    return {
        "versions": where["versions"],
        "machine": where["machine"],
        "checks": {"environment": _environment(), "bundled datasets": ", ".join(data.bundled_names()) or "none"},
        "kernels": [
            {"device": device, **row._asdict()}
            for device in ("cpu", "cuda")
            if device == "cpu" or torch.cuda.is_available()
            for row in kernels.status(device)
        ],
        "backbones": [_backbone(name) for name in backbones.available()],
    }


def _environment() -> str:
    try:
        env = envs.make(ENVIRONMENT, 1)
        env.reset(seed=0)
        env.close()
    except RlseqError as error:
        return f"{ENVIRONMENT} cannot be made: {error}"
    return f"{ENVIRONMENT} runs"


def _backbone(name: str) -> dict[str, Any]:
    """Sizes at the default width and depth; attention windows of 20 steps with three tokens each."""
    config = backbones.for_tokens(backbones.configure(name), WINDOW_TOKENS)
    module: Any = backbones.from_config(name, config)
    return {
        "name": name,
        "parameters": backbones.parameter_count(module),
        "state_bytes": backbones.state_bytes(module.init_state(1)),
        "step_flops": backbones.step_flops(module, config.width),
    }
