"""Array operations over time: scans, convolution and attention, each with resets, a state in and a state out.

Beside them ``geglu``, ``rms_norm`` and ``gated_projections`` work on single tokens, which took as long as the scans.

The folder is the registry: every sub-folder is an op, every file in it that does not start with an underscore is an
implementation, and the environment variable ``RLSEQ_KERNEL`` forces one (see ``_dispatch``). Layout is (B, L, ...)
everywhere.
"""

from __future__ import annotations

from rlseq.kernels._attention import positions
from rlseq.kernels._dispatch import Status, plain_operations, status
from rlseq.kernels._threads import rule_torch
from rlseq.kernels.causal_conv import causal_conv
from rlseq.kernels.chunk_attention import ChunkState, chunk_attention
from rlseq.kernels.gated_projections import gated_projections
from rlseq.kernels.geglu import geglu
from rlseq.kernels.linear_scan import linear_scan
from rlseq.kernels.local_attention import AttentionState, local_attention, local_attention_step
from rlseq.kernels.rg_lru import rg_lru
from rlseq.kernels.rms_norm import rms_norm
from rlseq.kernels.softmax_scan import SoftmaxState, softmax_scan

__all__ = [
    "AttentionState",
    "ChunkState",
    "SoftmaxState",
    "Status",
    "causal_conv",
    "chunk_attention",
    "gated_projections",
    "geglu",
    "linear_scan",
    "local_attention",
    "local_attention_step",
    "plain_operations",
    "positions",
    "rg_lru",
    "rms_norm",
    "softmax_scan",
    "status",
]

rule_torch()
