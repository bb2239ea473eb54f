"""Evaluation: policies rolled out in environments, and the scores of what they reach."""

from rlseq.evaluation.rollout import Rollout, rollout
from rlseq.evaluation.scores import Scores, evaluate, normalized_score

__all__ = ["Rollout", "Scores", "evaluate", "normalized_score", "rollout"]
