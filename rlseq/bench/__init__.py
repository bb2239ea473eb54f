"""Measurements that users repeat on their own machine: ``rlseq bench acting``."""
