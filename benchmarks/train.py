"""Env-steps/s of training and microseconds a step of acting, for every backbone, side by side in one run.

python benchmarks/train.py [--backbones hawk transformer] [--threads 1] [--updates 12] [--steps 200] [--json FILE]

Whole optimiser updates of 1,280 environment steps (1,200 at K = 200), then `Policy.act` at batch 1 and 64, recurrent
and window. An agent whose steps do not equal its window is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rlseq import agents, backbones, data
from rlseq.provenance import provenance
from rlseq.training import OptimConfig, Trainer, TrainingConfig

STEPS_PER_UPDATE = 1280
SETTINGS = {
    "transformer": ((20, "interleaved"), (20, "joint")),
    "": ((20, "joint"), (200, "joint"), (20, "interleaved")),
}
SAME = 1e-4
"""Largest difference of actions in [-1, 1] between one window and its steps: float32, three layers, 20 steps."""


def check(agent: agents.Agent, store: data.TrajectoryStore) -> None:
    """Steps with a carried state give the actions of one window; SystemExit where not."""
    one = data.make_sampler(store.episodes([0]), data.SamplerConfig("stream", 20, 1), 0)
    batch = next(one)
    inputs = agent.eval().window_inputs(batch)
    with torch.inference_mode():
        whole, _ = agent(inputs)
        state, steps = agent.init_state(1), []
        for t in range(20):
            action, state = agent.step(type(inputs)(*(x[:, t : t + 1] for x in inputs)), state)
            steps.append(action)
    difference = float((torch.stack(steps, dim=1) - whole).abs().max())
    if not difference < SAME:
        raise SystemExit(
            f"refused to time {type(agent.backbone).__name__}: steps differ from the window by {difference}."
        )


def timed(function: Callable[[], object], repeats: int, warm_up: int = 3) -> tuple[float, float, float]:
    """(median, least, most) seconds of a call."""
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), min(seconds), max(seconds)


def train_speed(agent: agents.Agent, store: data.TrajectoryStore, window: int, updates: int) -> dict[str, float]:
    """Env-steps/s over whole updates: batch, forward, backward, clip, AdamW."""
    sampler = data.make_sampler(store, data.SamplerConfig("window", window, STEPS_PER_UPDATE // window), 0)
    trainer = Trainer(agent.train(), sampler, TrainingConfig(updates=10_000), OptimConfig(), progress=False)
    steps = window * (STEPS_PER_UPDATE // window)
    median, least, most = timed(trainer.step, updates)
    return {"median": steps / median, "least": steps / most, "most": steps / least}


def act_speed(agent: agents.Agent, rows: int, mode: str, steps: int) -> dict[str, float]:
    """Microseconds of a call of `Policy.act` for `rows` environments, in the middle of an episode."""
    policy = agent.policy(rows, mode=mode)
    obs = np.random.default_rng(0).normal(size=(rows, agent.info.obs_size))
    policy.act(obs)
    reward = np.zeros(rows)
    median, least, most = timed(lambda: policy.act(obs, reward), steps, warm_up=min(agent.window, 250))
    return {"median": 1e6 * median, "least": 1e6 * least, "most": 1e6 * most, "state_bytes": policy.state_bytes}


def main() -> None:
    """Prints two tables and where they were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=backbones.available(), help="names or dotted plug-ins")
    parser.add_argument("--dataset", default="bundled:halfcheetah-medium-replay")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels")
    parser.add_argument("--updates", type=int, default=12, help="updates timed, after 3 to warm up")
    parser.add_argument("--steps", type=int, default=200, help="acting steps timed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = data.open_dataset(options.dataset)
    where = provenance("python benchmarks/train.py")
    print(json.dumps(where))
    training, acting = [], []
    print(f"\n{'backbone':<14}{'K':>5} {'tokens':<12}{'parameters':>11}{'env-steps/s':>13}{'least..most':>19}")
    for name in options.backbones:
        for window, tokens in SETTINGS.get(name, SETTINGS[""]):
            torch.manual_seed(0)
            agent = agents.DecisionTransformer.for_data(store, name, window=window, tokens=tokens)
            check(agent, store)
            row = train_speed(agent, store, window, options.updates)
            count = backbones.parameter_count(agent)
            training.append({"backbone": name, "window": window, "tokens": tokens, "parameters": count, **row})
            spread = f"{row['least']:,.0f}..{row['most']:,.0f}"
            print(f"{name:<14}{window:>5} {tokens:<12}{count:>11,}{row['median']:>13,.0f}{spread:>19}", flush=True)
    print(f"\n{'backbone':<14}{'mode':<11}{'K':>5}{'batch':>7}{'us/step':>10}{'least..most':>17}{'state bytes':>13}")
    for name in options.backbones:
        window, tokens = SETTINGS.get(name, SETTINGS[""])[0]
        torch.manual_seed(0)
        agent = agents.DecisionTransformer.for_data(store, name, window=window, tokens=tokens)
        for mode in ("recurrent", "window"):
            for rows in (1, 64):
                row = act_speed(agent, rows, mode, options.steps)
                acting.append({"backbone": name, "mode": mode, "window": window, "batch": rows, **row})
                spread = f"{row['least']:,.0f}..{row['most']:,.0f}"
                print(
                    f"{name:<14}{mode:<11}{window:>5}{rows:>7}{row['median']:>10,.0f}{spread:>17}"
                    f"{row['state_bytes']:>13,.0f}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps({**where, "training": training, "acting": acting}, indent=2) + "\n")


if __name__ == "__main__":
    main()
