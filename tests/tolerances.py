"""Every tolerance of the tests, in one table: the largest error measured over the test's own inputs, times 4.

Errors are relative to the largest magnitude of the expected tensor unless the comment says otherwise.
"""

from __future__ import annotations

import torch

KERNELS: dict[str, dict[torch.dtype, float]] = {
    # values and gradients of a Numba kernel or a blocked op against the float64 reference, inputs rounded to the dtype;
    # rg_lru and softmax_scan in float32: the contract's bound, because long random runs came to 6e-6 and 4e-6
    "linear_scan": {torch.float64: 1.2e-15, torch.float32: 7e-7, torch.bfloat16: 1.6e-2, torch.float16: 1.9e-3},
    "rg_lru": {torch.float64: 2e-14, torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.9e-3},
    "softmax_scan": {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 1.3e-2, torch.float16: 2.3e-3},
    "causal_conv": {torch.float64: 4e-15, torch.float32: 1.7e-6, torch.bfloat16: 1.5e-2, torch.float16: 1.8e-3},
    "local_attention": {torch.float64: 5e-15, torch.float32: 2.5e-6, torch.bfloat16: 2.7e-2, torch.float16: 3.6e-3},
    "chunk_attention": {torch.float64: 1.4e-14, torch.float32: 3.5e-6, torch.bfloat16: 1.9e-2, torch.float16: 2.5e-3},
    # geglu, rms_norm and gated_projections
    "token ops": {torch.float64: 3e-14, torch.float32: 6.2e-6, torch.bfloat16: 2e-2, torch.float16: 2.6e-3},
    # gamma's gradient in gated_projections over 100,000 tokens; 64 at a time in float32
    "sums of gamma": {torch.float32: 1.2e-7},
    # 4,096 tokens, values and gradients against float64
    "chunk_attention long": {torch.float32: 1.1e-6},
    # the mean of chunk_attention over n chunks, float32 against float64, the documented law times 4
    "mean, over sqrt(n)": {torch.float32: 1.6e-7},
    # gate logits of +-100: float32 sigmoid and expm1 stop at exp(-87)
    "rg_lru extremes": {torch.float32: 1e-5},
    # relative error of each value
    "e^-u - 1": {torch.float32: 6.4e-7},
    "sigmoid": {torch.float32: 5e-6},
}

# the Triton kernels against the float64 reference, measured in the interpreter, where multiply-adds are not fused
GPU: dict[str, dict[torch.dtype, float]] = {
    "linear_scan": {torch.float64: 1.2e-15, torch.float32: 5e-7, torch.bfloat16: 2.4e-2, torch.float16: 2.1e-3},
    "rg_lru": {torch.float64: 1.8e-15, torch.float32: 2.7e-6, torch.bfloat16: 2.3e-2, torch.float16: 2.8e-3},
    "causal_conv": {torch.float64: 7e-16, torch.float32: 9e-7, torch.bfloat16: 2.2e-2, torch.float16: 2.1e-3},
    "softmax_scan": {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 2.6e-2, torch.float16: 3.1e-3},
    # gate logits of +-100 in rg_lru, scores of +-1e4 in softmax_scan
    "extremes": {torch.float32: 1.1e-5},
    # the bound of the contract at 65,536 tokens, which only a GPU is fast enough for
    "long": {torch.float32: 1e-5},
    # relative error of each value, the first as the design asks; that of sigmoid also over 1 + |x|
    "expm1": {torch.float32: 2e-7, torch.float64: 9e-16},
    "sigmoid": {torch.float32: 6e-7, torch.float64: 9e-16},
}

BACKBONES: dict[str, float] = {
    # absolute, float64; the laws of the contract are held to ``rlseq.conformance.TOLERANCE``, which users run too
    "hawk features": 3.1e-14,
    "griffin features": 9.6e-14,
    "gau features": 1.6e-14,
    "flash features": 1.7e-14,
    "attention values": 1.4e-14,
    "few tokens": 5.7e-14,
    "attention gradients": 1.6e-13,
    "aaren features": 8.8e-14,
    "aaren gradients": 7.4e-12,
    "transformer features": 6.5e-15,
    "transformer gradients": 9e-14,
    "modern features": 3.2e-14,
    "modern gradients": 4.1e-13,
    # a directional derivative against a central difference of step 1e-5: relative, and absolute where it is near 0
    "differences": 9e-7,
    "differences near 0": 4e-9,
    # absolute, float64 state of a float32 layer: 2,000 tokens through a closed gate; 32,768 equal tokens against the
    # sum of the geometric series
    "hawk held state": 1.2e-12,
    "hawk geometric sum": 2.1e-6,
    # absolute, over 50 vectors at positions above 1,000,000; a float32 layer against itself 1,000,000 positions on
    "rotation float64": 5.6e-10,
    "rotation float32": 1.5e-6,
    "far attention": 1.9e-6,
    # absolute, float64 layers: a mean over the window; 50 chunks against one; norms and MLPs against their equations
    "averages": 3.6e-15,
    "one over chunks": 1e-14,
    "norms": 3.6e-15,
    "scale norm": 2.7e-15,
    "mlps": 1.4e-14,
    # absolute, float32: ScaleNorm against RMSNorm; mean squares of what a fresh norm gives against 1
    "scale norm float32": 9.5e-7,
    "unit mean square": 2.1e-6,
    # relative; random draws against their distribution, from a fixed seed
    "initial std": 0.017,
    "shortest of 100,000": 0.01,
    "longest of 100,000": 0.017,
    "mean of 100,000": 2.4e-4,
    # absolute; the share of zeros under dropout 0.25 among 3,200 values
    "dropped share": 0.02,
}

# a stack with gradient checkpointing against one without: the bound asked for, because nothing differed
CHECKPOINTING = {torch.float64: 1e-12, torch.float32: 1e-6}

# absolute; a small agent's actions in steps against the same in one window, in [-1, 1] times bounds of up to 3
POLICY_REPLAY = 1e-5
# relative; a masked loss against the same in parts
LOSS = 1e-5
# absolute; returns of up to 15 steps in rows against lone environments
ROLLOUT = 1e-4

# least cosine of a backbone's bfloat16 gradients, all in one vector, to those in float32; measured: 0.9980 of the
# Transformer, 0.9995 and more of the others
BF16_GRADIENT_COSINE = 0.992
