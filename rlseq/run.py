"""A run from dataset to scores, and back from its folder: the only place where the stages are wired together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlseq import agents, backbones, data, envs, evaluation
from rlseq.config import ENV_STEPS_PER_UPDATE, Experiment, differences, flat, from_json, settle, to_json
from rlseq.errors import ConfigError, RunError
from rlseq.provenance import provenance
from rlseq.report import write_json
from rlseq.training import OptimConfig, Trainer, TrainingConfig, checkpoint
from rlseq.training.metrics import TensorBoard, Writer
from rlseq.training.seeding import seed_everything
from rlseq.types import DatasetInfo, DatasetStats

MAY_CHANGE_ON_RESUME = ("training.updates", "training.checkpoint_every", "training.log_every", "eval.")
KEPT_CHECKPOINTS = 2
VALIDATION_BATCHES = 8


def build_agent(experiment: Experiment, info: DatasetInfo, stats: DatasetStats) -> agents.Agent:
    """The untrained agent of a settled experiment, with fresh weights from torch's generator."""
    module = agents.load(experiment.agent)
    rest: dict[str, Any] = {"window": experiment.window}
    if experiment.backbone is not None:
        rest |= {"backbone": experiment.backbone, "backbone_config": experiment.backbone_options}
    agent: agents.Agent = module.build(experiment.agent_options, info, stats, **rest)
    return agent


def load(run: str | Path, device: str = "auto") -> agents.Agent:
    """The trained agent of a run folder, in evaluation mode: its last checkpoint, or the one that is named.

    Raises:
        RunError: the folder is no run, or its checkpoint is broken.
    """
    return load_with_experiment(run, device)[0]


def load_with_experiment(run: str | Path, device: str = "auto") -> tuple[agents.Agent, Experiment]:
    """`load`, and what the agent was trained by."""
    where, path = choose_device(device), Path(run)
    folder = path if (path / "model.safetensors").is_file() else checkpoint.latest(path)
    experiment, info, stats = _read(folder)
    try:
        agent = build_agent(experiment, info, stats).to(where)
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        raise RunError(f"load: {folder}/config.json must describe an agent, got {error}.") from error
    checkpoint.load_weights(folder, agent)
    return agent.eval(), experiment


def read_experiment(run: Path) -> Experiment:
    """What a run folder was trained by, for a resume.

    Raises:
        RunError: the folder is no run, or its newest checkpoint is broken.
    """
    return _read(checkpoint.latest(run))[0]


def _read(folder: Path) -> tuple[Experiment, DatasetInfo, DatasetStats]:
    config, info, stats = checkpoint.read_config(folder)
    return from_json(config.get("experiment")), info, stats


def train(
    agent: agents.Agent,
    store: data.TrajectoryStore,
    sampler: data.SamplerConfig | None = None,
    *,
    training: TrainingConfig | None = None,
    optim: OptimConfig | None = None,
    seed: int = 0,
    writer: Writer | None = None,
    progress: bool = True,
) -> agents.Agent:
    """Trains an agent on a store from a script, without a run folder; `train_experiment` is what ``rlseq train`` does.

    Args:
        agent: such as ``DecisionTransformer.for_data(store, "hawk")``.
        store: where the batches come from.
        sampler: how they are cut; windows of the agent's own length, 1,280 environment steps a batch, if None.
        training: how long.
        optim: how the weights are moved.
        seed: of the batches.
        writer: takes the scalars of the training curves.
        progress: show a progress bar.

    Returns:
        The agent to use, in evaluation mode (another object than `agent` where weights are averaged).
    """
    cut = sampler or data.SamplerConfig(window=agent.window, batch_size=max(1, ENV_STEPS_PER_UPDATE // agent.window))
    agent.check_timesteps(store.stats.length_max)
    trainer = Trainer(
        agent,
        _batches(store, cut, training or TrainingConfig(), seed),
        training or TrainingConfig(),
        optim or OptimConfig(),
        writer=writer,
        progress=progress,
    )
    trainer.fit()
    return trainer.result


def _batches(store: data.TrajectoryStore, cut: data.SamplerConfig, training: TrainingConfig, seed: int) -> data.Sampler:
    """The sampler, held against the training.

    Raises:
        ConfigError: a state is to be carried between rows that do not follow each other.
    """
    if training.carry_state and cut.regime != "stream":
        raise ConfigError(f"train: carry_state goes with regime stream, got {cut.regime}. Give --regime stream.")
    return data.make_sampler(store, cut, seed)


def train_experiment(
    experiment: Experiment,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """What ``rlseq train`` does: dataset -> training with checkpoints and curves -> evaluation -> result.json.

    Everything that can be wrong with the input is found before the folder is touched.

    Args:
        experiment: what to train.
        out: the run folder.
        device: auto, cpu, cuda or cuda:N.
        resume: go on from the last checkpoint in out.
        overwrite: replace the run in out.
        progress: show progress bars.

    Returns:
        The content of result.json.

    Raises:
        RlseqError: whatever is wrong, in one line.
    """
    experiment = settle(experiment)
    where = choose_device(device)
    _check_folder(out, experiment, resume=resume, overwrite=overwrite)
    store, held_out, info = _open(experiment)
    longest = max(part.stats.length_max for part in (store, held_out) if part is not None)
    if experiment.eval.episodes or experiment.eval.during:
        envs.make_for(info).close()
        longest = max(longest, envs.time_limit(info) or 0)

    seed_everything(experiment.seed)
    agent = build_agent(experiment, info, store.stats).to(where)
    agent.check_timesteps(longest)
    run = _Run(experiment, out, agent, held_out, progress=progress)
    trainer = Trainer(
        agent,
        _batches(store, experiment.sampler, experiment.training, experiment.seed),
        experiment.training,
        experiment.optim,
        writer=run,
        on_checkpoint=run.checkpoint,
        progress=progress,
    )
    for part in (store, held_out):
        if part is not None:
            _try_one_batch(agent, part, experiment)
    _try_acting(agent, experiment)
    if resume:
        newest = checkpoint.latest(out)
        checkpoint.load_weights(newest, agent)
        trainer.load_state_dict(checkpoint.load_trainer(newest))
        _check_unfinished(out, trainer.update, experiment)
    elif overwrite and out.exists():
        checkpoint.remove_run(out)
    run.open(trainer.update)
    try:
        trainer.fit()
        return run.finish(trainer)
    finally:
        run.close()


def _open(experiment: Experiment) -> tuple[data.TrajectoryStore, data.TrajectoryStore | None, DatasetInfo]:
    """The episodes to train on, those held out, and the dataset's description with the environment to evaluate in."""
    store = data.open_dataset(experiment.dataset)
    if experiment.drop_obs:
        store = store.drop_obs(experiment.drop_obs)
    held_out = None
    if experiment.validation:
        store, held_out = store.split(experiment.validation, experiment.seed)
    if experiment.top < 1:
        store = store.top(experiment.top)
    if experiment.eval.env is None:
        return store, held_out, store.info
    return store, held_out, replace(store.info, env_id=experiment.eval.env, env_kwargs={})


def _try_one_batch(agent: agents.Agent, store: data.TrajectoryStore, experiment: Experiment) -> None:
    """One loss, thrown away, so that what cannot work is said before a folder is made."""
    batch = next(data.make_sampler(store, experiment.sampler, experiment.seed)).to(agent.obs_mean.device)
    try:
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            backbones.plug_in_errors(experiment.backbone or "", f"take a batch of {experiment.dataset}"),
        ):
            agent.loss(batch)
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"train: the agent must take a batch of {experiment.dataset}, got {told}.") from error


def _try_acting(agent: agents.Agent, experiment: Experiment) -> dict[str, int]:
    """Two steps of three rows, thrown away; the bytes of a row's state and the FLOPs of a token's step."""
    backbone, obs = getattr(agent, "backbone", None), np.zeros((3, agent.info.obs_size), np.float32)
    with torch.random.fork_rng(), backbones.plug_in_errors(experiment.backbone or "", "act step by step"):
        policy = agent.policy(3)  # a step that gives one tensor of two rows would pass for a pair
        _, state = policy.predict(obs, policy.initial_state())
        policy.predict(obs, state, reward=np.zeros(3, np.float32))
        flops = 0 if backbone is None else backbones.step_flops(backbone, experiment.backbone_options.width)
    return {"state_bytes": policy.state_bytes, "step_flops": flops}


def _check_unfinished(out: Path, update: int, experiment: Experiment) -> None:
    asked = experiment.training.updates
    if update > asked or (update == asked and (out / "result.json").is_file()):
        raise ConfigError(
            f"train: a resumed run must have updates left, got {update} done of {asked}. Give more --updates."
        )


class _Run:
    """A run folder being written: provenance, curves, checkpoints, result."""

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        agent: agents.Agent,
        held_out: data.TrajectoryStore | None,
        *,
        progress: bool,
    ) -> None:
        self.experiment, self.out, self.progress = experiment, out, progress
        self.parameters = backbones.parameter_count(agent)
        self.held_out = held_out
        self._board: TensorBoard | None = None

    def open(self, update: int) -> None:
        """Makes the folder and writes what is known before the first update."""
        self.out.mkdir(parents=True, exist_ok=True)
        history = self.out / "provenance.json"
        earlier = checkpoint.read_history(history) if update else []
        write_json(self.out / "config.json", to_json(self.experiment))
        write_json(history, [*earlier, provenance()])
        self._board = TensorBoard(self.out, purge_update=update + 1 if update else None)
        if not update:
            self._board.text("experiment", "```json\n" + json.dumps(to_json(self.experiment), indent=2) + "\n```")

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Passes the scalars of training on."""
        assert self._board is not None
        self._board.scalars(values, update)

    def checkpoint(self, trainer: Trainer) -> None:
        """Writes a checkpoint; then, but for the last, plays a few episodes for the curves."""
        config = {"experiment": to_json(self.experiment)}
        agent = trainer.result
        checkpoint.save(self.out, trainer.update, config, agent, trainer.state_dict(), KEPT_CHECKPOINTS)
        if self.held_out is not None:
            self.scalars({"validation/loss": self._validation_loss(agent)}, trainer.update)
        if trainer.update < self.experiment.training.updates and self.experiment.eval.during:
            for scores in self._evaluations(agent, self.experiment.eval.during):
                self._log_scores(scores, trainer.update)

    def finish(self, trainer: Trainer) -> dict[str, Any]:
        """Evaluates the last weights, writes result.json and the hyper-parameters."""
        agent = trainer.result
        scores = []
        if self.experiment.eval.episodes:
            for found in self._evaluations(agent, self.experiment.eval.episodes):
                self._log_scores(found, trainer.update)
                scores.append(found)
        sizes = {"parameters": self.parameters, **_try_acting(agent, self.experiment)}
        result = {
            "updates": trainer.update,
            "train_seconds": trainer.train_seconds,
            "env_steps_per_s": trainer.env_steps / max(trainer.train_seconds, 1e-9),
            **sizes,
            "evaluations": [s.as_dict() for s in scores],
            "dataset": {"id": agent.info.id, "return_max": agent.stats.return_max, "steps": agent.stats.steps},
            **provenance(),
        }
        write_json(self.out / "result.json", result)
        figures = {f"hparam/{name}": float(value) for name, value in sizes.items()}
        if scores:
            figures["hparam/return_mean"] = scores[0].as_dict()["return_mean"]
        assert self._board is not None
        self._board.facts(flat(self.experiment), figures)
        return result

    def close(self) -> None:
        """Closes the curves."""
        if self._board is not None:
            self._board.close()

    def _evaluations(self, agent: agents.Agent, episodes: int) -> Iterator[evaluation.Scores]:
        config = self.experiment.eval
        for mode in config.mode if agent.reads_past else config.mode[:1]:
            for target in config.target_return or (agent.target_return,):
                yield evaluation.evaluate(
                    agent,
                    config.env,
                    episodes=episodes,
                    target_return=target,
                    seed=config.seed,
                    mode=mode,
                    progress=self.progress,
                )

    def _log_scores(self, scores: evaluation.Scores, update: int) -> None:
        figures = scores.as_dict()
        name = f"eval_{scores.mode}_{scores.target_return:g}"
        values = {f"{name}/{key}": figures[key] for key in ("return_mean", "return_std", "length_mean", "act_us")}
        if figures["normalized_score"] is not None:
            values[f"{name}/normalized_score_x100"] = 100 * figures["normalized_score"]
        self.scalars(values, update)

    @torch.no_grad()
    def _validation_loss(self, agent: agents.Agent) -> float:
        """Mean loss over the same few batches of held-out episodes every time."""
        assert self.held_out is not None
        batches = data.make_sampler(self.held_out, self.experiment.sampler, seed=0)
        device = agent.obs_mean.device
        losses = [agent.loss(next(batches).to(device)).value for _ in range(VALIDATION_BATCHES)]
        return float(torch.stack(losses).mean())


def _check_folder(out: Path, experiment: Experiment, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("train: --resume and --overwrite exclude each other, got both. Give one.")
    if resume:
        changed = [
            name for name in differences(read_experiment(out), experiment) if not name.startswith(MAY_CHANGE_ON_RESUME)
        ]
        if changed:
            raise ConfigError(
                f"train: a resumed run must keep its options, got other values of {', '.join(changed)}. Leave them out."
            )
        return
    if out.exists() and not out.is_dir():
        raise RunError(f"train: {out} must be a folder or not exist yet, got a file. Give another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise RunError(
                f"train: {out} must not exist yet, got a full one. Give --resume, --overwrite or another --out."
            )
        if not (out / "config.json").is_file() or not (out / "provenance.json").is_file():
            raise RunError(
                f"train: --overwrite replaces run folders only, got {out} without a run. Give another --out."
            )
    parent = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"train: {out} must be a place to write to, got {parent}. Give another --out.")


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is the first GPU, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} must exist here, got {torch.cuda.device_count()} CUDA devices. Use cpu.")
    return device
