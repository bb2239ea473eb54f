"""The facts that ``rlseq data inspect`` prints."""

from __future__ import annotations

from typing import Any

from rlseq.data.trajectories import TrajectoryStore, mean_and_std


def summary(store: TrajectoryStore) -> dict[str, Any]:
    """What there is to know of a store, as JSON values only.

    Returns:
        id, env_id, env_kwargs, max_episode_steps; episodes, steps; return_* and length_* (mean, std, min, max);
        terminated, truncated (episodes); obs_size, action_size, action_low, action_high, dropped_obs; ref_min_score,
        ref_max_score and normalized_score_mean (fraction), None where the dataset has no reference scores; obs and
        action, a list of (min, mean, std, max) per column.
    """
    info, stats = store.info, store.stats
    columns = {}
    for name, array in (("obs", store.obs), ("action", store.action)):
        mean, std = mean_and_std(array)
        figures = {"min": array.min(axis=0), "mean": mean, "std": std, "max": array.max(axis=0)}
        columns[name] = [
            dict(zip(figures, map(float, row), strict=True)) for row in zip(*figures.values(), strict=True)
        ]
    scores = info.normalized_score(store.returns)
    return {
        "id": info.id,
        "env_id": info.env_id,
        "env_kwargs": info.env_kwargs,
        "max_episode_steps": info.max_episode_steps,
        "episodes": stats.episodes,
        "steps": stats.steps,
        "return_mean": stats.return_mean,
        "return_std": stats.return_std,
        "return_min": stats.return_min,
        "return_max": stats.return_max,
        "length_mean": stats.length_mean,
        "length_min": stats.length_min,
        "length_max": stats.length_max,
        "terminated": int(store.terminated.sum()),
        "truncated": int(store.truncated.sum()),
        "obs_size": info.obs_size,
        "action_size": info.action_size,
        "action_low": info.action_low.tolist(),
        "action_high": info.action_high.tolist(),
        "dropped_obs": list(info.dropped_obs),
        "ref_min_score": info.ref_min_score,
        "ref_max_score": info.ref_max_score,
        "normalized_score_mean": None if scores is None else float(scores.mean()),
        **columns,
    }
