"""One acting step as a pure function of tensors: what every engine runs, and what an exported file holds.

    (obs, reward, episode_start, target_return, state) -> (action, next state)

The return-to-go falls by the observed reward, R_{t+1} = R_t - r_t, in float64, as `TrajectoryStore` computes it. All
scaling is inside: raw observations come in, the environment's own actions go out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rlseq.errors import ConfigError
from rlseq.types import Batch

if TYPE_CHECKING:
    from rlseq.agents.agent import Agent


class PolicyState(NamedTuple):
    """All that a policy remembers between two steps, a row an environment.

    Attributes:
        memory: the agent's state (recurrent) or a `History` (window).
        return_to_go: (N,) float64, raw, of the step acted on last.
        timestep: (N,) int64, of the step acted on last; -1 before the first.
        action: (N, A) float32, the action given last, as the dataset would hold it.
    """

    memory: Any
    return_to_go: Any
    timestep: Any
    action: Any


class Given(NamedTuple):
    """What a step gets beside the state, as an `Engine` takes it; `ActingStep.forward` has shapes and meaning."""

    obs: np.ndarray
    reward: np.ndarray
    episode_start: np.ndarray
    target_return: np.ndarray


class History(NamedTuple):
    """Window mode's memory: the last K steps of every row, oldest first, padded on the right.

    Attributes:
        obs: (N, K, S) raw.
        action: (N, K, A) raw; the present step's is not known and zero.
        reward: (N, K) raw; likewise.
        return_to_go: (N, K) raw, float32.
        timestep: (N, K).
        length: (N,) valid steps.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    timestep: Tensor
    length: Tensor


class Present(NamedTuple):
    """The step that is acted on, and the reward that the one before it earned.

    Attributes:
        obs: (N, S) raw.
        reward: (N,) raw, float32.
        episode_start: (N,) bool.
        return_to_go: (N,) raw, float32.
        timestep: (N,).
    """

    obs: Tensor
    reward: Tensor
    episode_start: Tensor
    return_to_go: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class ActingSpec:
    """What a policy must know besides the step itself.

    Attributes:
        mode: ``recurrent`` or ``window``.
        obs_size: S.
        action_size: A.
        discrete: the action is one of A numbers.
        target_return: raw return that is asked for by default.
        longest_episode: steps that the timestep table has; None for no limit.
    """

    mode: str
    obs_size: int
    action_size: int
    discrete: bool
    target_return: float
    longest_episode: int | None


def check_episode_length(length: int, longest: int | None) -> None:
    """Raises ConfigError where an episode is longer than the timestep table."""
    if longest is not None and length > longest:
        raise ConfigError(
            f"agent: an episode must have at most {longest} steps, the size of the timestep table, got {length}. "
            "Train with --agent.timestep-embedding False, or on longer episodes."
        )


class ActingStep(nn.Module):
    """What the two ways of acting share: the return-to-go, the clock and the scaling."""

    mode: str

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    @property
    def spec(self) -> ActingSpec:
        """The step's facts."""
        info = self.agent.info
        return ActingSpec(
            self.mode,
            info.obs_size,
            info.action_size,
            info.discrete,
            self.agent.target_return,
            self.agent.longest_episode,
        )

    def initial_state(self, rows: int) -> PolicyState:
        """The state before any step; the first step must be an episode's start."""
        device = self.agent.obs_mean.device
        return PolicyState(
            self.empty_memory(rows),
            torch.zeros(rows, dtype=torch.float64, device=device),
            torch.full((rows,), -1, dtype=torch.int64, device=device),
            torch.zeros(rows, self.agent.info.action_size, device=device),
        )

    def forward(
        self, obs: Tensor, reward: Tensor, episode_start: Tensor, target_return: Tensor, state: PolicyState
    ) -> tuple[Tensor, PolicyState]:
        """One step of every row.

        Args:
            obs: (N, S) float32, raw.
            reward: (N,) float64, what followed the previous action; of no effect where an episode starts.
            episode_start: (N,) bool.
            target_return: (N,) float64, raw; read where an episode starts.
            state: of the step before.

        Returns:
            (N, A) float32 within the bounds, or (N,) int64 for discrete actions, and the next state.
        """
        return_to_go = torch.where(episode_start, target_return, state.return_to_go - reward)
        timestep = torch.where(episode_start, 0, state.timestep + 1)
        present = Present(obs, reward.float(), episode_start, return_to_go.float(), timestep)
        prediction, memory = self.read(present, state)
        action = self.agent.to_bounds(prediction).float()
        given = action.argmax(-1) if self.agent.info.discrete else action
        return given, PolicyState(memory, return_to_go, timestep, action)

    def empty_memory(self, rows: int) -> Any:
        """The memory of rows that have seen nothing."""
        raise NotImplementedError

    def read(self, present: Present, state: PolicyState) -> tuple[Tensor, Any]:
        """What the head says (N, A), and the next memory."""
        raise NotImplementedError


class RecurrentStep(ActingStep):
    """Carries the agent's state: the same time and memory at every step."""

    mode = "recurrent"

    def empty_memory(self, rows: int) -> Any:
        """The agent's first state."""
        return self.agent.init_state(rows)

    def read(self, present: Present, state: PolicyState) -> tuple[Tensor, Any]:
        """See `ActingStep.read`."""
        done, (obs, reward, start, return_to_go, timestep) = state.action, present
        rows = (obs, done, return_to_go, timestep, start, done, reward, ~start)
        return self.agent.step(self.agent.inputs(*(x.unsqueeze(1) for x in rows)), state.memory)


class WindowStep(ActingStep):
    """Re-reads the last K steps at every step, as published (Chen et al. 2021, arXiv 2106.01345, algorithm 1)."""

    mode = "window"

    def __init__(self, agent: Agent, window: int) -> None:
        super().__init__(agent)
        self.window = window

    def empty_memory(self, rows: int) -> History:
        """No steps."""
        k, info, device = self.window, self.agent.info, self.agent.obs_mean.device
        return History(
            torch.zeros(rows, k, info.obs_size, device=device),
            torch.zeros(rows, k, info.action_size, device=device),
            torch.zeros(rows, k, device=device),
            torch.zeros(rows, k, device=device),
            torch.zeros(rows, k, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def read(self, present: Present, state: PolicyState) -> tuple[Tensor, History]:
        """See `ActingStep.read`."""
        history = self._append(present, state)
        k = self.window
        if not torch.compiler.is_compiling():  # a graph has one shape; without one, empty columns need not be read
            k = int(history.length.max())
        past = [x[:, :k] for x in history[:-2]]
        clock, device = history.timestep[:, :k], present.obs.device
        reset = (clock == 0) & (torch.arange(k, device=device) == 0)
        mask = torch.arange(k, device=device) < history.length.unsqueeze(1)
        batch = Batch(past[0], past[1], past[2], past[3], clock, reset, mask)
        prediction, _ = self.agent(self.agent.window_inputs(batch))
        last = (history.length - 1).view(-1, 1, 1).expand(-1, 1, prediction.shape[-1])
        return prediction.gather(1, last)[:, 0], history

    def _append(self, present: Present, state: PolicyState) -> History:
        """History with the finished step completed, the oldest dropped where the window is full, the present added."""
        history, k = state.memory, self.window
        column = torch.arange(k, device=present.obs.device)
        finished = column == (history.length - 1).unsqueeze(1)
        length = torch.where(present.episode_start, 0, history.length)
        full = length == k
        newest = column == (length - full.long()).unsqueeze(1)

        def moved(old: Tensor, new: Tensor | float) -> Tensor:
            trailing = (1,) * (old.ndim - 2)
            shifted = torch.where(full.view(-1, 1, *trailing), old.roll(-1, dims=1), old)
            value = new.unsqueeze(1).to(old.dtype) if isinstance(new, Tensor) else new
            return torch.where(newest.view(*newest.shape, *trailing), value, shifted)

        action = torch.where(finished.unsqueeze(-1), state.action.unsqueeze(1), history.action)
        rewards = torch.where(finished, present.reward.unsqueeze(1), history.reward)
        return History(
            moved(history.obs, present.obs),
            moved(action, 0.0),
            moved(rewards, 0.0),
            moved(history.return_to_go, present.return_to_go),
            moved(history.timestep, present.timestep),
            length - full.long() + 1,
        )
