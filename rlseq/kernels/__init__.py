"""Array operations over time: scans, convolution and local attention, each with resets, a state in and a state out.

The folder is the registry: every sub-folder is an op, every file in it that does not start with an underscore is an
implementation, and the environment variable ``RLSEQ_KERNEL`` forces one (see ``_dispatch``). Layout is (B, L, ...)
everywhere.
"""

from __future__ import annotations

from rlseq.kernels._dispatch import Status, status
from rlseq.kernels.causal_conv import causal_conv
from rlseq.kernels.linear_scan import linear_scan
from rlseq.kernels.local_attention import AttentionState, local_attention
from rlseq.kernels.rg_lru import rg_lru

__all__ = ["AttentionState", "Status", "causal_conv", "linear_scan", "local_attention", "rg_lru", "status"]
