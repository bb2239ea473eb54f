"""Environments in processes of their own, which end with the vector environment, however that ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState


class Workers(AsyncVectorEnv):
    """`AsyncVectorEnv` whose `close` never waits for an answer that may not come.

    Gymnasium's waits for a call that an exception interrupted, also for the answers that were read already.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]], autoreset_mode: AutoresetMode) -> None:
        self._state, self.processes, self.parent_pipes = AsyncState.DEFAULT, [], []
        try:
            super().__init__(env_fns, autoreset_mode=autoreset_mode)
        except BaseException:
            self.close(terminate=True)
            raise

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        idle = self._state == AsyncState.DEFAULT and all(process.is_alive() for process in self.processes)
        self._state = AsyncState.DEFAULT
        super().close_extras(timeout, terminate or not idle)
