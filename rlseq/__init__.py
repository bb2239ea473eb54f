"""rlseq: offline-RL agents that read trajectories as sequences and act in constant time and memory."""

__version__ = "0.1.0"
