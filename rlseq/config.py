"""An experiment: everything that decides what is trained, as one frozen record that survives JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rlseq import agents, backbones
from rlseq.agents.policy import MODES
from rlseq.data.windows import SamplerConfig
from rlseq.errors import ConfigError, UnknownNameError
from rlseq.training import OptimConfig, TrainingConfig

ENV_STEPS_PER_UPDATE = 1280


@dataclass(frozen=True)
class EvalConfig:
    """How the trained policy is rolled out."""

    episodes: int = 10
    """Episodes after the last update, for every target return and mode."""

    during: int = 3
    """Episodes at every earlier checkpoint, for the curves in TensorBoard; 0: none."""

    target_return: tuple[float, ...] = ()
    """Raw returns to ask for. Empty: the agent's default, the dataset's best return."""

    mode: tuple[Literal["recurrent", "window"], ...] = ("recurrent",)
    """recurrent carries the state; window re-reads the last K steps at every step."""

    env: str | None = None
    """Gymnasium id. None: the environment that the dataset names."""

    seed: int = 1000
    """Reset seed of the first episode; the next ones count up from it."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.episodes < 0 or self.during < 0 or self.seed < 0:
            raise ConfigError(
                f"eval: episodes, during and seed must be at least 0, got {self.episodes}, {self.during}, {self.seed}."
            )
        if not self.mode:
            raise ConfigError("eval: mode must name recurrent, window or both, got none.")
        for mode in self.mode:
            if mode not in MODES:
                raise UnknownNameError("acting mode", mode, MODES)
        if not all(map(math.isfinite, self.target_return)):
            raise ConfigError(f"eval: target_return must be finite, got {list(self.target_return)}.")


@dataclass(frozen=True)
class Experiment:
    """What `rlseq train` trains. None stands for a default that the backbone or the dataset decides (`settle`)."""

    dataset: str = "bundled:halfcheetah-medium-replay"
    """minari:ID, d4rl:ID, d4rl:FILE.hdf5, bundled:NAME or a path."""

    agent: str = "decision_transformer"
    """decision_transformer or behaviour_cloning."""

    agent_options: Any = None
    """The agent's own Config."""

    backbone: str | None = "hawk"
    """A file of rlseq/backbones, or the dotted name of a plug-in; None for an agent without one."""

    backbone_options: Any = None
    """The backbone's own Config."""

    regime: Literal["window", "stream", "pack"] = "window"
    """window: random K-step windows; stream: shuffled episodes end to end, cut at K; pack: whole episodes in rows."""

    window: int | None = None
    """K, environment steps in a row of a batch. None: 200 for recurrent backbones, else 20."""

    batch_size: int | None = None
    """B, rows in a batch. None: as many as make 1,280 environment steps."""

    drop_obs: tuple[int, ...] = ()
    """Columns of the observation that the agent does not see, in training and in evaluation."""

    top: float = 1.0
    """Train on this fraction of the episodes, the best by return, in (0, 1]."""

    validation: float = 0.0
    """Hold out this fraction of the episodes and log the loss on them, in [0, 1)."""

    seed: int = 0
    """Decides the initial weights, the batches and the dropout."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.top <= 1:
            raise ConfigError(f"train: top must be in (0, 1], got {self.top}.")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"train: validation must be in [0, 1), got {self.validation}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"train: seed must be in [0, 2^63), got {self.seed}.")
        for name in ("window", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train: {name} must be at least 1, got {value}.")

    @property
    def sampler(self) -> SamplerConfig:
        """How batches are cut; the experiment must be settled."""
        assert self.window is not None and self.batch_size is not None
        return SamplerConfig(regime=self.regime, window=self.window, batch_size=self.batch_size)


def settle(experiment: Experiment) -> Experiment:
    """The experiment with every default written out, so that a run folder says what was run.

    Raises:
        UnknownNameError: no such agent or backbone.
        ConfigError: options that contradict each other.
    """
    module = agents.load(experiment.agent)
    options = experiment.agent_options if experiment.agent_options is not None else module.Config()
    if not module.Config.uses_backbone:
        if experiment.backbone is not None:
            raise ConfigError(f"train: agent {experiment.agent} has no backbone, got {experiment.backbone}. Give none.")
        window = experiment.window or 20
    else:
        if experiment.backbone is None:
            raise ConfigError(f"train: agent {experiment.agent} needs a backbone, got none. Give --backbone.")
        backbone_options = experiment.backbone_options or backbones.configure(experiment.backbone)
        options, backbone_options, window = module.settle(options, backbone_options, window=experiment.window)
        experiment = replace(experiment, backbone_options=backbone_options)
    experiment = replace(experiment, agent_options=options)
    batch_size = experiment.batch_size or max(1, ENV_STEPS_PER_UPDATE // window)
    return replace(experiment, window=window, batch_size=batch_size)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Plain values; `from_json` is its inverse."""
    return asdict(experiment)


def from_json(value: Any) -> Experiment:
    """The experiment of `to_json`.

    Raises:
        ConfigError: a field is missing, unknown or out of range.
    """
    try:
        value = dict(value)
        value["agent_options"] = _record(agents.load(value["agent"]).Config, value["agent_options"])
        if value["backbone"] is not None:
            value["backbone_options"] = _record(backbones.config_class(value["backbone"]), value["backbone_options"])
        value["drop_obs"] = tuple(value["drop_obs"])
        value["training"] = _record(TrainingConfig, value["training"])
        value["optim"] = _record(OptimConfig, value["optim"])
        value["eval"] = _record(EvalConfig, value["eval"])
        return Experiment(**value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"config: config.json must hold a whole experiment, got {type(error).__name__}: {error}."
        ) from error


def _record(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of JSON values; JSON has no tuples, so lists become them."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Names of the fields, dotted, in which two experiments differ."""
    a, b = _flat(to_json(old)), _flat(to_json(new))
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def flat(experiment: Experiment) -> dict[str, Any]:
    """Every option by its dotted name, for tables of hyper-parameters."""
    return _flat(to_json(experiment))
