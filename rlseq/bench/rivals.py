"""The rivals of ``rlseq bench acting``, of Hugging Face's transformers: its Decision Transformer, and a growing cache.

Both act in the middle of an episode from the beginning: what is seen before is zeros.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from rlseq.bench.contenders import ACTION_SIZE, DEPTH, OBS_SIZE, WIDTH, Contender

NAME = "hugging-face"


def available() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def window(steps: int) -> Contender:
    """Its DecisionTransformerModel, which reads the last `steps` steps again at every step."""
    return Contender(NAME, "window", steps, "eager", lambda rows: DecisionTransformer(rows, steps))


def cache() -> Contender:
    """Its transformer with a cache of all keys and values."""
    return Contender(NAME, "cache", None, "eager", GrowingCache)


def model_of(obs_size: int, action_size: int, width: int, context: int, clock: int) -> Any:
    """Its DecisionTransformerModel with fresh weights from seed 0, DEPTH layers of one head, without dropout.

    Args:
        obs_size: S.
        action_size: A.
        width: D.
        context: K, environment steps that it can read.
        clock: environment steps that have an embedding.
    """
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=obs_size,
        act_dim=action_size,
        hidden_size=width,
        n_layer=DEPTH,
        n_head=1,
        max_ep_len=clock,
        n_positions=max(1024, 3 * context),
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return DecisionTransformerModel(config)


class DecisionTransformer:
    """DecisionTransformerModel, acting as its documentation does; the clock counts the window's steps."""

    def __init__(self, rows: int, window: int) -> None:
        self.model = model_of(OBS_SIZE, ACTION_SIZE, WIDTH, window, window).eval()
        self.timesteps = torch.arange(window).expand(rows, -1)
        self.mask = torch.ones(rows, window)
        self.reward = torch.zeros(rows, window, 1)
        self.obs = torch.zeros(rows, window, OBS_SIZE)
        self.action = torch.zeros(rows, window, ACTION_SIZE)
        self.return_to_go = torch.full((rows, window, 1), 3.0)

    @torch.inference_mode()
    def act(self, obs: np.ndarray, reward: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """Appends the step and reads the window."""
        following = self.return_to_go[:, -1:] - torch.from_numpy(reward).float().view(-1, 1, 1) / 1000.0
        self.obs = _appended(self.obs, torch.from_numpy(obs).unsqueeze(1))
        self.action = _appended(self.action, torch.zeros_like(self.action[:, :1]))
        self.return_to_go = _appended(self.return_to_go, following)
        prediction = self.model(
            states=self.obs,
            actions=self.action,
            rewards=self.reward,
            returns_to_go=self.return_to_go,
            timesteps=self.timesteps,
            attention_mask=self.mask,
        ).action_preds
        self.action[:, -1] = prediction[:, -1]
        return self.action[:, -1].numpy()

    @property
    def state_bytes(self) -> int:
        """Of one row."""
        return sum(x.nbytes for x in (self.obs, self.action, self.return_to_go)) // len(self.obs)


class GrowingCache:
    """The same transformer, one token a step to favour it, with the keys and values of all steps: each is dearer."""

    def __init__(self, rows: int) -> None:
        from transformers import DynamicCache

        whole = model_of(OBS_SIZE, ACTION_SIZE, WIDTH, 1, 1).eval()
        self.encoder, self.embed, self.head = whole.encoder, whole.embed_state, whole.predict_action
        self.cache, self.positions = DynamicCache(), torch.zeros(rows, 1, dtype=torch.long)

    @torch.inference_mode()
    def act(self, obs: np.ndarray, reward: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """One more token."""
        features = self.encoder(
            None,
            self.cache,  # by place: its name changes between versions
            inputs_embeds=self.embed(torch.from_numpy(obs)).unsqueeze(1),
            use_cache=True,
            position_ids=self.positions,
        )
        return self.head(features.last_hidden_state[:, -1]).numpy()

    @property
    def state_bytes(self) -> int:
        """Of one row: keys and values, 4 bytes a number."""
        return 2 * 4 * DEPTH * WIDTH * self.cache.get_seq_length()


def _appended(past: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return torch.cat([past[:, 1:], present], dim=1)
