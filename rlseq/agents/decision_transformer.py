"""Return-conditioned sequence agent: tokens, a backbone, a head (Chen et al. 2021, arXiv 2106.01345, algorithm 1).

    a_t = bounds(tanh(W backbone(R_{t-K+1}, s_{t-K+1}, ..., R_t, s_t)))

Differs from the paper:

- the backbone is a plug-in; the published one is ``transformer``
- ``joint`` tokens, one a step, are the default for recurrent backbones, without timestep embeddings
- return scale and target return default to what the dataset says; the published ones are recipes
- weight decay applies to matrices only (the paper's code decays biases and norms too)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.agents.agent import Agent, AgentConfig
from rlseq.agents.heads import head_for
from rlseq.agents.tokens import Inputs, InterleavedTokens, JointTokens
from rlseq.errors import ConfigError, UnknownNameError
from rlseq.types import Batch, DatasetInfo, DatasetStats

TOKENS = ("auto", "interleaved", "joint")


@dataclass(frozen=True)
class Config(AgentConfig):
    """Options of the Decision Transformer agent. ``auto`` and None are settled by the backbone and the dataset."""

    uses_backbone: ClassVar[bool] = True

    tokens: Literal["auto", "interleaved", "joint"] = "auto"
    """interleaved: return-to-go, obs, action, three tokens a step; joint: one. auto: joint for recurrent backbones."""

    previous_action: bool = False
    """Joint tokens only: put the previous action into the token. It invites copying."""

    previous_reward: bool = False
    """Joint tokens only: put the previous reward into the token."""

    timestep_embedding: bool | None = None
    """Learned table of time steps, as long as the longest episode. None: only for backbones that are not recurrent."""

    embedding_norm: bool | None = None
    """LayerNorm on the token embeddings. None: only for interleaved tokens."""

    token_dropout: float | None = None
    """Dropout on the tokens, in [0, 1). None: the backbone's own dropout."""

    return_noise: float = 0.0
    """Standard deviation, in units of the return scale, of noise on the return-to-go in training; one draw a row."""

    obs_noise: float = 0.0
    """Standard deviation of noise on the normalised observations in training."""

    forget: float = 0.0
    """Training only: probability at each step of forgetting all before it, so that short pasts are seen more often."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if self.tokens not in TOKENS:
            raise UnknownNameError("kind of tokens", self.tokens, TOKENS)
        if self.token_dropout is not None and not 0 <= self.token_dropout < 1:
            raise ConfigError(f"decision_transformer: token_dropout must be in [0, 1), got {self.token_dropout}.")
        if not 0 <= self.forget < 1:
            raise ConfigError(f"decision_transformer: forget must be in [0, 1), got {self.forget}.")
        for name in ("return_noise", "obs_noise"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"decision_transformer: {name} must be at least 0, got {getattr(self, name)}.")
        if self.tokens == "interleaved" and (self.previous_action or self.previous_reward):
            raise ConfigError(
                "decision_transformer: previous_action and previous_reward belong to joint tokens, got tokens "
                "interleaved. Interleaved tokens hold the previous action already."
            )


class DecisionTransformer(Agent):
    """Tokens -> backbone -> head.

    Args:
        backbone: any module that keeps the contract of `rlseq.backbones`, of width D.
        width: D.
        info: the dataset's description.
        stats: the dataset's figures.
        window: K, environment steps of a training row.
        config: `Config` with no ``auto`` and no None but return_scale and target_return; see `settle`.
    """

    config: Config
    tokens: InterleavedTokens | JointTokens
    backbone: Any

    def __init__(
        self, backbone: nn.Module, width: int, info: DatasetInfo, stats: DatasetStats, *, window: int, config: Config
    ) -> None:
        super().__init__(info, stats, window=window, config=config)
        self.config = config
        table = max(stats.length_max, info.max_episode_steps or 0) if config.timestep_embedding else 0
        common: dict[str, Any] = {
            "max_timestep": table,
            "norm": bool(config.embedding_norm),
            "dropout": config.token_dropout or 0.0,
        }
        if config.tokens == "interleaved":
            self.tokens = InterleavedTokens(info.obs_size, info.action_size, width, **common)
        else:
            self.tokens = JointTokens(
                info.obs_size,
                info.action_size,
                width,
                previous_action=config.previous_action,
                previous_reward=config.previous_reward,
                **common,
            )
        self.backbone = backbone
        self.head = head_for(width, info.action_size, discrete=info.discrete)

    @classmethod
    def for_data(
        cls,
        store: Any,
        backbone: str = "hawk",
        *,
        window: int | None = None,
        backbone_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> DecisionTransformer:
        """An agent that fits a store: `DecisionTransformer.for_data(store, "hawk", backbone_options={"width": 64})`.

        Args:
            store: anything with `.info` and `.stats`, such as a `TrajectoryStore`.
            backbone: a backbone's name, or the dotted name of a plug-in.
            window: K, environment steps of a training row; 200 for recurrent backbones, else 20, if None.
            backbone_options: fields of the backbone's Config.
            options: fields of this module's Config.
        """
        config, backbone_config, window = settle(
            Config(**options), backbones.configure(backbone, **(backbone_options or {})), window=window
        )
        return build(config, store.info, store.stats, window=window, backbone=backbone, backbone_config=backbone_config)

    @property
    def longest_episode(self) -> int | None:
        """The size of the timestep table."""
        return None if self.tokens.timestep is None else self.tokens.timestep.num_embeddings

    def training_inputs(self, batch: Batch) -> Inputs:
        """Inputs with the configured noise on return-to-go (one draw per row) and observations."""
        inputs = self.window_inputs(batch)
        if not self.training:
            return inputs
        if self.config.forget:
            inputs = inputs._replace(reset=inputs.reset | (torch.rand_like(inputs.obs[..., 0]) < self.config.forget))
        if self.config.return_noise:
            scale = self.config.return_noise
            noise = scale * torch.randn(len(inputs.obs), 1, 1, device=inputs.obs.device)
            inputs = inputs._replace(return_to_go_scaled=inputs.return_to_go_scaled + noise)
        if self.config.obs_noise:
            inputs = inputs._replace(obs=inputs.obs + self.config.obs_noise * torch.randn_like(inputs.obs))
        return inputs

    def init_state(self, batch_size: int) -> Any:
        """The backbone's zero state."""
        return self.backbone.init_state(batch_size, device=self.obs_mean.device)

    def forward(self, inputs: Inputs, state: Any = None) -> tuple[Tensor, Any]:
        """See `Agent.forward`."""
        x, reset = self.tokens(inputs)
        features, state = self.backbone(x, state, reset)
        return self.head(self.tokens.read_out(features)), state

    def step(self, inputs: Inputs, state: Any) -> tuple[Tensor, Any]:
        """See `Agent.step`: one token through `backbone.step`, or a chunk of three through `backbone.forward`."""
        x, reset = self.tokens.step(inputs)
        if x.shape[1] == 1:
            features, state = self.backbone.step(x[:, 0], state, reset[:, 0])
            return self.head(features), state
        features, state = self.backbone(x, state, reset)
        return self.head(features[:, -1]), state


def settle(config: Config, backbone_config: Any, *, window: int | None) -> tuple[Config, Any, int]:
    """Both configs and K with every ``auto`` and None replaced by what it stands for: what a checkpoint keeps."""
    recurrent = backbones.is_recurrent(backbone_config)
    if window is None:
        window = 200 if recurrent else 20
    tokens = config.tokens if config.tokens != "auto" else ("joint" if recurrent else "interleaved")
    per_step = InterleavedTokens.per_step if tokens == "interleaved" else JointTokens.per_step
    backbone_config = backbones.for_tokens(backbone_config, per_step * window)
    dropout = getattr(backbone_config, "dropout", 0.0)
    config = replace(
        config,
        tokens=tokens,
        timestep_embedding=not recurrent if config.timestep_embedding is None else config.timestep_embedding,
        embedding_norm=tokens == "interleaved" if config.embedding_norm is None else config.embedding_norm,
        token_dropout=dropout if config.token_dropout is None else config.token_dropout,
    )
    return config, backbone_config, window


def build(
    config: Config, info: DatasetInfo, stats: DatasetStats, *, window: int, backbone: str, backbone_config: Any
) -> DecisionTransformer:
    """The agent of settled configs."""
    module = backbones.from_config(backbone, backbone_config)
    return DecisionTransformer(module, backbone_config.width, info, stats, window=window, config=config)
