"""An agent that acts: it carries what the next step needs, for N environments at once.

Two modes. ``recurrent`` carries the backbone's state: the same time and memory at every step. ``window`` re-reads the
last K steps at every step, as the published Decision Transformer does (arXiv 2106.01345, algorithm 1): the check on the
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rlseq.agents.acting import Given, PolicyState, check_episode_length
from rlseq.errors import ConfigError, RunError, ShapeError

if TYPE_CHECKING:
    from rlseq.agents.engines import Engine
    from rlseq.agents.sb3 import SB3Policy

MODES = ("recurrent", "window")


class Policy:
    """Acts for num_envs environments; made by `Agent.policy`, where the arguments are explained.

    The attributes ``state`` and ``target_return`` may be read and set.
    """

    def __init__(self, engine: Engine, num_envs: int, *, target_return: float | ArrayLike | None) -> None:
        self.engine, self.num_envs, self.spec = engine, num_envs, engine.spec
        self.target_return = self.spec.target_return if target_return is None else target_return
        self._state, self._seen, self._whole = engine.initial_state(), False, True

    @property
    def target_return(self) -> np.ndarray:
        """(N,) float64, raw, what an episode that starts asks for; one number is set for all rows."""
        return self._target

    @target_return.setter
    def target_return(self, value: float | ArrayLike) -> None:
        target = np.asarray(value, np.float64)
        if target.shape not in ((), (self.num_envs,)) or not np.isfinite(target).all():
            raise ConfigError(
                f"policy: target_return must be one finite number or {self.num_envs} of them, got {target}."
            )
        self._target = np.broadcast_to(target, self.num_envs).copy()

    @property
    def state(self) -> PolicyState:
        """What `act` reads and replaces; a state that was read or set here is never changed in place."""
        self._check_whole()
        self._seen = True
        return self._state

    @state.setter
    def state(self, state: PolicyState) -> None:
        self._state, self._seen, self._whole = state, True, True

    def _check_whole(self) -> None:
        if not self._whole:
            raise RunError(
                "policy: a step must end before the next one begins, got one that was interrupted. Reset all rows, or "
                "load a state."
            )

    @property
    def mode(self) -> str:
        """``recurrent`` or ``window``."""
        return self.spec.mode

    # --- state ------------------------------------------------------------------------------------------------------

    def initial_state(self) -> PolicyState:
        """The state before any step; the first step must be an episode's start."""
        return self.engine.initial_state()

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forgets rows (indices or mask), or all: their next observation starts an episode whatever the caller says."""
        if rows is not None:
            self._check_whole()
        self._whole = True
        clock = _host(self._state.timestep).copy()
        clock[slice(None) if rows is None else np.asarray(rows)] = -1
        self._state = self._state._replace(timestep=self.engine.native(clock))

    @property
    def state_bytes(self) -> int:
        """Bytes that one environment's state occupies, of the memory that the mode carries."""
        return sum(array.nbytes for array in self.engine.arrays(self._state)) // self.num_envs

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the next action depends on besides the weights: stop here, go on elsewhere, exactly.

        The arrays have the same names whatever the engine, so another engine may go on.
        """
        self._check_whole()
        arrays = self.engine.arrays(self._state)
        return {"target_return": self.target_return.copy(), **dict(zip(self.engine.names, arrays, strict=True))}

    def load_state_dict(self, values: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `state_dict` of a policy of the same agent, mode and number of rows.

        Raises:
            ShapeError: an array is missing, unknown, or of another shape or dtype; the policy is unchanged.
        """
        arrays = self.engine.arrays(self._state)
        own = {"target_return": self._target, **dict(zip(self.engine.names, arrays, strict=True))}
        if own.keys() != values.keys():
            differ = ", ".join(sorted(own.keys() ^ values.keys()))
            raise ShapeError(f"load_state_dict: it must be of this agent and mode, got a difference in {differ}.")
        for name, array in own.items():
            given = np.asarray(values[name])
            if (given.shape, given.dtype) != (array.shape, array.dtype):
                raise ShapeError(
                    f"load_state_dict: {name} must be {array.shape} {array.dtype}, got {given.shape} {given.dtype}. "
                    f"This policy has {self.num_envs} rows."
                )
        self.target_return = values["target_return"]
        self.state = self.engine.restored([np.asarray(values[name]) for name in self.engine.names])

    def for_sb3(self) -> SB3Policy:
        """This policy with Stable-Baselines3's ``predict``."""
        from rlseq.agents.sb3 import SB3Policy

        return SB3Policy(self)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(
        self, obs: ArrayLike, reward: ArrayLike | None = None, episode_start: ArrayLike | None = None
    ) -> np.ndarray:
        """Actions for the present observations; moves the state on by one step, once per call.

        Args:
            obs: (N, S) present observations; a policy of one row takes (S,) too, with plain numbers beside it.
            reward: (N,) rewards that followed the previous actions; may be None only where every row starts an episode.
            episode_start: (N,) bool, True where obs is an episode's first; None: only rows that never acted start.

        Returns:
            (N, A) float32 actions within the action space's bounds, (N,) int64 if they are discrete; without N where
            obs has none.

        Raises:
            ShapeError: wrong shape or dtype, NaN, a reward missing; the message names the row. The state is unchanged.
            RunError: the step before was interrupted where it had written half of the state.
        """
        self._check_whole()
        action, self._state = self._stepped(obs, self._state, reward, episode_start, consume=not self._seen)
        self._seen, self._whole = False, True
        return action

    def predict(
        self,
        obs: ArrayLike,
        state: PolicyState,
        reward: ArrayLike | None = None,
        episode_start: ArrayLike | None = None,
    ) -> tuple[np.ndarray, PolicyState]:
        """`act` as a pure function: same inputs, same action and state; nothing of the policy changes."""
        return self._stepped(obs, state, reward, episode_start, consume=False)

    def _stepped(
        self,
        obs: ArrayLike,
        state: PolicyState,
        reward: ArrayLike | None,
        episode_start: ArrayLike | None,
        *,
        consume: bool,
    ) -> tuple[np.ndarray, PolicyState]:
        rows = np.asarray(obs)
        alone = self.num_envs == 1 and rows.ndim == 1
        if alone:
            rows = rows[np.newaxis]
            reward = None if reward is None else np.reshape(reward, (1,))
            episode_start = None if episode_start is None else np.reshape(episode_start, (1,))
        clock = _host(state.timestep)
        rows, rewards, start = self._checked(rows, clock, reward, episode_start)
        if self.spec.longest_episode is not None:
            check_episode_length(int(np.where(start, 0, clock + 1).max()) + 1, self.spec.longest_episode)
        if consume and self.engine.overwrites:
            self._whole = False
        action, following = self.engine(Given(rows, rewards, start, self.target_return), state, consume=consume)
        return (action[0] if alone else action), following

    def _checked(
        self, obs: np.ndarray, clock: np.ndarray, reward: ArrayLike | None, episode_start: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, size = self.num_envs, self.spec.obs_size
        if obs.shape != (n, size) or obs.dtype.kind not in "fiu":
            raise ShapeError(f"act: obs must be ({n}, {size}) numbers, got {obs.shape} {obs.dtype}.")
        rows = np.ascontiguousarray(obs, np.float32)
        start = clock < 0
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
        for name, values in (("obs", rows), ("reward", rewards[:, np.newaxis])):
            if not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise ShapeError(f"act: {name} must be finite, got {values[row].squeeze()} in row {row}.")
        return rows, rewards, start


def _host(array: Any) -> np.ndarray:
    """An engine's array as NumPy sees it; not a copy where it is in main memory."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
