"""Evaluation: policies rolled out in environments, and the scores of what they reach."""

from rlseq.evaluation.rollout import Rollout, resets_single_rows, rollout
from rlseq.evaluation.scores import Scores, evaluate, normalized_score
from rlseq.evaluation.video import check_video, record_videos

__all__ = [
    "Rollout",
    "Scores",
    "check_video",
    "evaluate",
    "normalized_score",
    "record_videos",
    "resets_single_rows",
    "rollout",
]
