"""Environments that draw."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rlseq.envs._quiet import quiet_mujoco
from rlseq.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium


def make_rendering(env_id: str, **env_kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One environment to look at: `render()` gives (height, width, 3) uint8 pixels. Its observations are not flattened.

    Args:
        env_id: Gymnasium id, or ``module:id``.
        env_kwargs: for `gymnasium.make`.
    Raises:
        ConfigError: it cannot draw, which is tried out.
    """
    import gymnasium

    with _cannot_draw(env_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same that the error tells
        quiet_mujoco()
        env = gymnasium.make(env_id, **{**env_kwargs, "render_mode": "rgb_array"})
        env.reset(seed=0)
        picture: Any = env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.dtype != np.uint8:
            raise TypeError(f"{type(picture).__name__} from render()")
    return env


@contextmanager
def _cannot_draw(env_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # drivers and the libraries above them raise all kinds
        _forget_silently(error)
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"make_rendering: {env_id!r} must draw with render_mode='rgb_array', got {reason}. MuJoCo needs OpenGL: "
            f"without a display set the environment variable MUJOCO_GL to egl or osmesa."
        ) from error


def _forget_silently(error: BaseException) -> None:
    """Frees what the failed frames hold here and now: the finalizers of half-made renderers raise, to be printed."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook
