"""What every agent shares: the scales of the data, the loss, and the way to a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlseq.agents import acting, engines
from rlseq.agents.heads import Categorical, DeterministicTanh
from rlseq.agents.policy import MODES, Policy
from rlseq.agents.tokens import Inputs
from rlseq.errors import ConfigError, SpaceError
from rlseq.types import Batch, DatasetInfo, DatasetStats

OBS_EPSILON = 1e-6


@dataclass(frozen=True)
class AgentConfig:
    """Options that every agent has: what a return-to-go means to it."""

    return_scale: float | None = None
    """Raw return-to-go is divided by this. None: its standard deviation over the dataset's steps."""

    clip_return: bool = True
    """Feed a return-to-go outside the dataset's range as the nearest one inside; False: as it is, as published."""

    target_return: float | None = None
    """Raw return that the policy asks for by default. None: the dataset's best return."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.return_scale is not None and not (math.isfinite(self.return_scale) and self.return_scale > 0):
            raise ConfigError(f"agent: return_scale must be a positive number, got {self.return_scale}.")
        if self.target_return is not None and not math.isfinite(self.target_return):
            raise ConfigError(f"agent: target_return must be finite, got {self.target_return}.")


class Loss(NamedTuple):
    """What `Agent.loss` returns: the value to minimise, figures to log, and the state after the batch."""

    value: Tensor
    metrics: dict[str, Tensor]
    state: Any


class Agent(nn.Module):
    """An agent reads K steps at once (`forward`) or one at a time with a state (`step`) and says the actions.

    Args:
        info: the dataset's own description; the bounds of the action space come from it.
        stats: the dataset's figures; observations are normalised as (obs - mean) / (std + 1e-6).
        window: K, environment steps that a training row holds and that window mode re-reads.
        config: what a return-to-go means. Clipping is on by default because what a network makes of an input far from
            all that it was trained on is arbitrary: asking for more than the data has then means the data's best.

    Raises:
        SpaceError: the action space is not bounded.
    """

    obs_mean: Tensor
    obs_std: Tensor
    action_middle: Tensor
    action_half: Tensor
    head: DeterministicTanh | Categorical
    reads_past = True

    def __init__(self, info: DatasetInfo, stats: DatasetStats, *, window: int, config: AgentConfig) -> None:
        super().__init__()
        self.info, self.stats, self.window = info, stats, window
        self.return_scale = config.return_scale or stats.return_to_go_std or 1.0
        self.target_return = stats.return_max if config.target_return is None else config.target_return
        self.clip_return = config.clip_return
        low, high = torch.as_tensor(info.action_low).float(), torch.as_tensor(info.action_high).float()
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
            raise SpaceError(
                f"Agent: the action space must be bounded with low < high, got low {low.tolist()}, high "
                f"{high.tolist()}. Rescale the dataset's actions to a bounded box."
            )
        for name, value in {
            "obs_mean": torch.as_tensor(stats.obs_mean).float(),
            "obs_std": torch.as_tensor(stats.obs_std).float(),
            "action_middle": (low + high) / 2,
            "action_half": (high - low) / 2,
        }.items():
            self.register_buffer(name, value, persistent=False)

    # --- one code path from raw numbers to the network's inputs, for training and acting -------------------------

    def scaled_action(self, action: Tensor) -> Tensor:
        """Raw action (..., A) -> [-1, 1]."""
        return (action - self.action_middle) / self.action_half

    def to_bounds(self, prediction: Tensor) -> Tensor:
        """What the head says (..., A) -> the action within the dataset's bounds (..., A)."""
        return self.action_middle + self.action_half * self.head.decide(prediction)

    def inputs(
        self,
        obs: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor,
        reset: Tensor,
        previous_action: Tensor,
        previous_reward: Tensor,
        known: Tensor,
    ) -> Inputs:
        """Raw arrays (B, K, ...) -> `Inputs`; the only place where observations, returns and actions are scaled.

        known (B, K) bool says where there is a previous step; elsewhere its action and reward are fed as zeros.
        """
        if self.clip_return:
            return_to_go = return_to_go.clamp(self.stats.return_to_go_min, self.stats.return_to_go_max)
        return Inputs(
            obs=(obs - self.obs_mean) / (self.obs_std + OBS_EPSILON),
            return_to_go_scaled=(return_to_go / self.return_scale).unsqueeze(-1),
            action=self.scaled_action(action),
            previous_action=self.scaled_action(previous_action).masked_fill(~known.unsqueeze(-1), 0.0),
            previous_reward_scaled=(previous_reward / self.return_scale).masked_fill(~known, 0.0).unsqueeze(-1),
            timestep=timestep,
            reset=reset,
        )

    def window_inputs(self, batch: Batch) -> Inputs:
        """A training batch -> `Inputs`."""
        known = ~batch.reset
        known[:, 0] = False
        return self.inputs(
            batch.obs,
            batch.action,
            batch.return_to_go,
            batch.timestep,
            batch.reset,
            previous_action=batch.action.roll(1, dims=1),
            previous_reward=batch.reward.roll(1, dims=1),
            known=known,
        )

    # --- what an agent implements -----------------------------------------------------------------------------------

    def init_state(self, batch_size: int) -> Any:
        """State before an episode's first step: a pytree of tensors, batch first, of a size independent of time."""
        raise NotImplementedError

    def forward(self, inputs: Inputs, state: Any = None) -> tuple[Tensor, Any]:
        """K steps at once: what the head says (B, K, A), each only from what came before it, and the last state."""
        raise NotImplementedError

    def step(self, inputs: Inputs, state: Any) -> tuple[Tensor, Any]:
        """One step (K = 1): what the head says (B, A), and the next state."""
        raise NotImplementedError

    # --- what an agent gives ----------------------------------------------------------------------------------------

    def loss(self, batch: Batch, state: Any = None) -> Loss:
        """The head's loss over valid steps: mean squared error in scaled units, or cross-entropy of discrete actions.

        Args:
            batch: B rows of K steps.
            state: where row b starts from; zeros if None.
        """
        prediction, state = self(self.training_inputs(batch), state)
        value = self.head.loss(prediction, self.scaled_action(batch.action), batch.mask)
        return Loss(value, {"loss": value.detach()}, state)

    def training_inputs(self, batch: Batch) -> Inputs:
        """`window_inputs` with whatever noise the agent trains under."""
        return self.window_inputs(batch)

    @property
    def longest_episode(self) -> int | None:
        """Steps that an episode may have; None, as for most agents, for no limit."""
        return None

    def check_timesteps(self, longest: int) -> None:
        """Raises ConfigError where an episode of `longest` steps does not fit the agent."""
        acting.check_episode_length(longest, self.longest_episode)

    def policy(
        self,
        num_envs: int = 1,
        *,
        target_return: float | Tensor | None = None,
        mode: str = "recurrent",
        window: int | None = None,
        engine: str = "eager",
    ) -> Policy:
        """A policy for num_envs environments.

        Args:
            num_envs: rows; each has a state of its own.
            target_return: raw return to ask for, one for all or (num_envs,); the dataset's best if None.
            mode: ``recurrent`` carries the state, O(1) a step; ``window`` re-reads the last `window` steps every time.
            window: environment steps that window mode reads; the training window if None.
            engine: what runs the step, a name of `rlseq.agents.engines.ENGINES`: ``eager``, ``compiled`` or ``onnx``.

        Raises:
            ConfigError: unknown mode or engine, sizes that do not fit, or an engine that cannot run here.
        """
        if num_envs < 1:
            raise ConfigError(f"policy: num_envs must be at least 1, got {num_envs}.")
        step = self.acting_step(mode, window)
        return Policy(engines.build(engine, step, num_envs), num_envs, target_return=target_return)

    def export(
        self,
        path: str | Path,
        *,
        mode: str = "recurrent",
        window: int | None = None,
        overwrite: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> float:
        """Writes one acting step as an ONNX file that onnxruntime runs without torch (`rlseq.agents.engines.onnx`).

        Args:
            path: of the file.
            mode: see `policy`.
            window: see `policy`.
            overwrite: replace the file if it is there.
            facts: plain values for the file's metadata.

        Returns:
            The largest difference of an action from PyTorch's over the steps that were compared before writing.

        Raises:
            ConfigError: the packages of the extra ``onnx`` are missing, or ONNX has not all of the agent's operations.
            RunError: no place to write to, or the file is there.
        """
        from rlseq.agents.engines import onnx

        info = self.info
        described = {
            "dataset": info.id,
            "env_id": info.env_id,
            "env_kwargs": info.env_kwargs,
            "dropped_obs": list(info.dropped_obs),
            "action_low": info.action_low.tolist(),
            "action_high": info.action_high.tolist(),
        }
        return onnx.write(self.acting_step(mode, window), path, {**described, **(facts or {})}, overwrite=overwrite)

    def acting_step(self, mode: str, window: int | None) -> acting.ActingStep:
        """The step of a mode, of this agent in evaluation mode."""
        if mode not in MODES:
            raise ConfigError(f"policy: mode must be one of {', '.join(MODES)}, got {mode!r}.")
        steps = self.window if window is None else window
        if steps < 1:
            raise ConfigError(f"policy: window must be at least 1, got {steps}.")
        if mode != "window" and window is not None:
            raise ConfigError(f"policy: window goes with mode window, got {window} and mode {mode}. Leave it out.")
        agent = self.eval()
        return (acting.RecurrentStep(agent) if mode == "recurrent" else acting.WindowStep(agent, steps)).eval()
