"""An agent that acts: it carries what the next step needs, for N environments at once.

Two modes. ``recurrent`` carries the backbone's state: the same time and memory at every step. ``window`` re-reads the
last K steps at every step, as the published Decision Transformer does (arXiv 2106.01345, algorithm 1): the check on the
first.

The return-to-go falls by the observed reward, R_{t+1} = R_t - r_t, in float64, as `TrajectoryStore` computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rlseq.errors import ConfigError, ShapeError
from rlseq.types import Batch

if TYPE_CHECKING:
    from rlseq.agents.agent import Agent
    from rlseq.agents.tokens import Inputs

MODES = ("recurrent", "window")


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


class PolicyState(NamedTuple):
    """All that a policy remembers between two steps.

    Attributes:
        memory: the agent's state (recurrent) or a `History` (window).
        return_to_go: (N,) float64, raw, of the step acted on last.
        timestep: (N,) int64, of the step acted on last; -1 before the first.
        action: (N, A) float32, the action given last.
    """

    memory: Any
    return_to_go: Tensor
    timestep: Tensor
    action: Tensor


class Policy:
    """Acts for num_envs environments; made by `Agent.policy`, where the arguments are explained.

    Attributes:
        state: the `PolicyState` that `act` reads and replaces.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        *,
        target_return: float | ArrayLike | None,
        mode: str,
        window: int | None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"policy: mode must be one of {', '.join(MODES)}, got {mode!r}.")
        if num_envs < 1:
            raise ConfigError(f"policy: num_envs must be at least 1, got {num_envs}.")
        self.window = agent.window if window is None else window
        if self.window < 1:
            raise ConfigError(f"policy: window must be at least 1, got {self.window}.")
        target = np.asarray(agent.target_return if target_return is None else target_return, np.float64)
        if target.shape not in ((), (num_envs,)) or not np.isfinite(target).all():
            raise ConfigError(f"policy: target_return must be one finite number or {num_envs} of them, got {target}.")
        self.agent, self.num_envs, self.mode = agent.eval(), num_envs, mode
        self.device = agent.obs_mean.device
        self.target_return = torch.from_numpy(np.broadcast_to(target, num_envs).copy())
        self.state = self.initial_state()

    # --- state ------------------------------------------------------------------------------------------------------

    def initial_state(self) -> PolicyState:
        """The state before any step; the first step must be an episode's start."""
        n, info = self.num_envs, self.agent.info
        memory = self.agent.init_state(n) if self.mode == "recurrent" else self._empty_history()
        return PolicyState(
            memory,
            self.target_return.clone(),
            torch.full((n,), -1, dtype=torch.int64),
            torch.zeros(n, info.action_size),
        )

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forgets rows (indices or mask), or all: their next observation starts an episode whatever the caller says."""
        timestep = self.state.timestep.clone()
        timestep[slice(None) if rows is None else torch.as_tensor(np.asarray(rows))] = -1
        self.state = self.state._replace(timestep=timestep)

    @property
    def state_bytes(self) -> int:
        """Bytes that one environment's state occupies, of the memory that the mode carries."""
        return (
            sum(x.numel() * x.element_size() for x in tree_leaves(self.state) if isinstance(x, Tensor)) // self.num_envs
        )

    def _empty_history(self) -> History:
        n, k, info, device = self.num_envs, self.window, self.agent.info, self.device
        return History(
            torch.zeros(n, k, info.obs_size, device=device),
            torch.zeros(n, k, info.action_size, device=device),
            torch.zeros(n, k, device=device),
            torch.zeros(n, k, device=device),
            torch.zeros(n, k, dtype=torch.int64, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
        )

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(
        self, obs: ArrayLike, reward: ArrayLike | None = None, episode_start: ArrayLike | None = None
    ) -> np.ndarray:
        """Actions for the present observations; moves the state on by one step, once per call.

        Args:
            obs: (N, S) present observations.
            reward: (N,) rewards that followed the previous actions; may be None only where every row starts an episode.
            episode_start: (N,) bool, True where obs is an episode's first; None: only rows that never acted start.

        Returns:
            (N, A) float32 actions within the action space's bounds.

        Raises:
            ShapeError: wrong shape or dtype, NaN, a reward missing; the message names the row. The state is unchanged.
        """
        action, self.state = self.predict(obs, self.state, reward, episode_start)
        return action

    @torch.inference_mode()
    def predict(
        self,
        obs: ArrayLike,
        state: PolicyState,
        reward: ArrayLike | None = None,
        episode_start: ArrayLike | None = None,
    ) -> tuple[np.ndarray, PolicyState]:
        """`act` as a pure function: same inputs, same action and state; nothing of the policy changes."""
        obs_row, reward_row, start = self._checked(obs, state, reward, episode_start)
        return_to_go = torch.where(start, self.target_return, state.return_to_go - reward_row)
        timestep = torch.where(start, 0, state.timestep + 1)
        self.agent.check_timesteps(int(timestep.max()) + 1)
        if self.mode == "recurrent":
            inputs = self._step_inputs(obs_row, return_to_go, timestep, start, state.action, reward_row)
            scaled, memory = self.agent.step(inputs, state.memory)
        else:
            memory = self._append(state, obs_row, reward_row, return_to_go, timestep, start)
            scaled = self._read_window(memory)
        action = self.agent.to_bounds(scaled).float().cpu()
        return action.numpy(), PolicyState(memory, return_to_go, timestep, action)

    def _checked(
        self, obs: ArrayLike, state: PolicyState, reward: ArrayLike | None, episode_start: ArrayLike | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, size = self.num_envs, self.agent.info.obs_size
        rows = np.asarray(obs)
        if rows.shape != (n, size) or rows.dtype.kind not in "fiu":
            raise ShapeError(f"act: obs must be ({n}, {size}) numbers, got {rows.shape} {rows.dtype}.")
        rows = rows.astype(np.float32)
        start = state.timestep.numpy() < 0
        if episode_start is not None:
            told = np.asarray(episode_start)
            if told.shape != (n,) or told.dtype != np.bool_:
                raise ShapeError(f"act: episode_start must be ({n},) bool, got {told.shape} {told.dtype}.")
            start = start | told
        if reward is None:
            if not start.all():
                raise ShapeError(
                    f"act: reward may be None only where an episode starts, got row {int(np.argmin(start))}."
                )
            reward = np.zeros(n)
        rewards = np.asarray(reward, np.float64)
        if rewards.shape != (n,):
            raise ShapeError(f"act: reward must be ({n},), got {rewards.shape}.")
        rewards = np.where(start, 0.0, rewards)
        for name, bad in (("obs", ~np.isfinite(rows).all(axis=1)), ("reward", ~np.isfinite(rewards))):
            if bad.any():
                row = int(np.argmax(bad))
                value = rows[row] if name == "obs" else rewards[row]
                raise ShapeError(f"act: {name} must be finite, got {value} in row {row}.")
        return torch.from_numpy(rows), torch.from_numpy(rewards), torch.from_numpy(start)

    def _step_inputs(
        self, obs: Tensor, return_to_go: Tensor, timestep: Tensor, start: Tensor, action: Tensor, reward: Tensor
    ) -> Inputs:
        rows = (obs, action, return_to_go.float(), timestep, start, action, reward.float(), ~start)
        return self.agent.inputs(*(x.to(self.device).unsqueeze(1) for x in rows))

    # --- window mode ------------------------------------------------------------------------------------------------

    def _append(
        self, state: PolicyState, obs: Tensor, reward: Tensor, return_to_go: Tensor, timestep: Tensor, start: Tensor
    ) -> History:
        """History with the finished step completed, the oldest dropped where the window is full, the present added."""
        history, device, k = state.memory, self.device, self.window
        start, rows = start.to(device), torch.arange(self.num_envs, device=device)
        last = (history.length - 1).clamp_min(0)
        action_done, reward_done = history.action.clone(), history.reward.clone()
        action_done[rows, last] = state.action.to(device)
        reward_done[rows, last] = reward.float().to(device)
        length = torch.where(start, 0, history.length)
        full = (length == k).long()
        take = (torch.arange(k, device=device) + full.unsqueeze(1)).clamp_max(k - 1)

        def moved(old: Tensor, new: Tensor | float) -> Tensor:
            kept = old[rows.unsqueeze(1), take]
            kept[rows, length - full] = new.to(device, old.dtype) if isinstance(new, Tensor) else new
            return kept

        return History(
            moved(history.obs, obs),
            moved(action_done, 0.0),
            moved(reward_done, 0.0),
            moved(history.return_to_go, return_to_go),
            moved(history.timestep, timestep),
            length - full + 1,
        )

    def _read_window(self, history: History) -> Tensor:
        """The action at every row's last valid step: (N, A) in [-1, 1]."""
        longest = int(history.length.max())
        obs, action, reward, return_to_go, timestep = (x[:, :longest] for x in history[:-1])
        reset = torch.zeros_like(timestep, dtype=torch.bool)
        reset[:, 0] = timestep[:, 0] == 0
        mask = torch.arange(longest, device=self.device) < history.length.unsqueeze(1)
        inputs = self.agent.window_inputs(Batch(obs, action, reward, return_to_go, timestep, reset, mask))
        actions, _ = self.agent(inputs)
        return actions[torch.arange(self.num_envs, device=self.device), history.length - 1]
