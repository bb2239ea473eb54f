"""What ``benchmarks/train.py`` times: whole optimiser updates of rlseq's agents and of Hugging Face's.

Equal sizes: every backbone is as wide as it must be to have the parameters of the Transformer of width 128.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlseq import agents, backbones, data
from rlseq.bench import rivals
from rlseq.training import OptimConfig, Trainer, TrainingConfig
from rlseq.training.optim import build_optimizer

WIDTHS = range(64, 257, 8)
CHECKED = 200
"""Steps that are checked: beyond all windows and chunks of 64 tokens, so that eviction and earlier chunks count too."""
SAME = 1e-4
"""Largest difference of actions in [-1, 1] between one window and its steps: float32, three layers, 200 steps."""
MODERN = "transformer-modern"


@dataclass(frozen=True)
class Contender:
    """One thing to time: ``update`` is a whole optimiser update of ``steps`` environment steps."""

    name: str
    tokens: str
    window: int
    width: int
    parameters: int
    steps: int
    update: Callable[[], Any]


def names() -> list[str]:
    """What can be timed of rlseq: the backbones, and the Transformer's second preset."""
    return [*backbones.available(), MODERN]


def options_of(name: str) -> tuple[str, dict[str, Any]]:
    """The backbone of a contender's name, and its options."""
    if name == MODERN:
        return "transformer", {"preset": "modern", "dropout": 0.0}
    return name, {"dropout": 0.0}


def parameters(name: str, width: int) -> int:
    """Parameters of a backbone alone; the window decides those of a bias only, so any will do."""
    backbone, options = options_of(name)
    config = backbones.for_tokens(backbones.configure(backbone, width=width, **options), 60)
    return backbones.parameter_count(backbones.from_config(backbone, config))


def width_for(name: str, wanted: int) -> int:
    """The multiple of 8 at which a backbone has the number of parameters nearest to the wanted one."""
    return min(WIDTHS, key=lambda width: abs(parameters(name, width) - wanted))


def agent_of(name: str, store: data.TrajectoryStore, window: int, tokens: str, width: int) -> agents.Agent:
    """A Decision Transformer agent with fresh weights."""
    backbone, options = options_of(name)
    torch.manual_seed(0)
    return agents.DecisionTransformer.for_data(
        store, backbone, window=window, tokens=tokens, backbone_options={"width": width, **options}
    )


def check(agent: agents.Agent, store: data.TrajectoryStore) -> None:
    """Steps with a carried state give the actions of one window; SystemExit where not."""
    one = data.make_sampler(store.episodes([0]), data.SamplerConfig("stream", CHECKED, 1), 0)
    batch = next(one)
    inputs = agent.eval().window_inputs(batch)
    with torch.inference_mode():
        whole, _ = agent(inputs)
        state, steps = agent.init_state(1), []
        for t in range(CHECKED):
            action, state = agent.step(type(inputs)(*(x[:, t : t + 1] for x in inputs)), state)
            steps.append(action)
    difference = float((torch.stack(steps, dim=1) - whole).abs().max())
    if not difference < SAME:
        raise SystemExit(
            f"refused to time {type(agent.backbone).__name__}: steps differ from the window by {difference}."
        )


def ours(name: str, store: data.TrajectoryStore, cut: data.SamplerConfig, tokens: str, width: int) -> Contender:
    """Batch, forward, backward, clip, AdamW of one of rlseq's agents."""
    agent = agent_of(name, store, cut.window, tokens, width)
    check(agent, store)
    sampler = data.make_sampler(store, cut, 0)
    trainer = Trainer(agent.train(), sampler, TrainingConfig(updates=10_000), OptimConfig(), progress=False)
    count = backbones.parameter_count(agent)
    return Contender(name, tokens, cut.window, width, count, cut.window * cut.batch_size, trainer.step)


def rival(store: data.TrajectoryStore, cut: data.SamplerConfig, width: int) -> Contender:
    """The same updates of Hugging Face's DecisionTransformerModel, with the same batches and optimiser."""
    sizes = (store.info.obs_size, store.info.action_size, width)
    model = rivals.model_of(*sizes, context=cut.window, clock=store.stats.length_max).train()
    optim = OptimConfig()
    optimizer, schedule = build_optimizer(model, optim, 10_000)
    sampler = data.make_sampler(store, cut, 0)
    mean, std = torch.as_tensor(store.stats.obs_mean), torch.as_tensor(store.stats.obs_std)

    def update() -> None:
        batch = next(sampler)
        optimizer.zero_grad(set_to_none=True)
        prediction = model(
            states=(batch.obs - mean) / (std + 1e-6),
            actions=batch.action,
            rewards=batch.reward.unsqueeze(-1),
            returns_to_go=batch.return_to_go.unsqueeze(-1) / store.stats.return_to_go_std,
            timesteps=batch.timestep,
            attention_mask=batch.mask.long(),
        ).action_preds
        loss = ((prediction - batch.action)[batch.mask] ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        schedule.step()

    count = backbones.parameter_count(model)
    return Contender(rivals.NAME, "interleaved", cut.window, width, count, cut.window * cut.batch_size, update)


def peak_megabytes(make: Callable[[], Contender]) -> tuple[Contender, float]:
    """A contender, and how far the memory of this process rose while it was made and did two updates.

    Linux only: the kernel's own high-water mark, set back before; NaN elsewhere.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed but not given back would hide the rise
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = _status("VmRSS")
    except OSError:
        before = float("nan")
    contender = make()
    for _ in range(2):
        contender.update()
    return contender, (_status("VmHWM") - before if before == before else before)


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024
