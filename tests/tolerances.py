"""Every tolerance of the tests, in one table: the largest error measured over the test's own inputs, times 4.

Errors are relative to the largest magnitude of the expected tensor unless the comment says otherwise.
"""

from __future__ import annotations

import torch

KERNELS: dict[str, dict[torch.dtype, float]] = {
    # values and gradients of a Numba kernel or a blocked op against the float64 reference, inputs rounded to the dtype
    "linear_scan": {torch.float64: 1.2e-15, torch.float32: 7e-7, torch.bfloat16: 1.6e-2, torch.float16: 1.9e-3},
    "rg_lru": {torch.float64: 7e-15, torch.float32: 2.7e-6, torch.bfloat16: 1.5e-2, torch.float16: 1.9e-3},
    "causal_conv": {torch.float64: 4e-15, torch.float32: 1.7e-6, torch.bfloat16: 1.5e-2, torch.float16: 1.8e-3},
    "local_attention": {torch.float64: 2.8e-15, torch.float32: 1.8e-6, torch.bfloat16: 2.5e-2},
    # gate logits of +-100: float32 sigmoid and expm1 stop at exp(-87)
    "rg_lru extremes": {torch.float32: 1e-5},
    # relative error of each value
    "exponential": {torch.float32: 5.5e-7},
}

# absolute; a small agent's actions in steps against the same in one window, in [-1, 1] times bounds of up to 3
POLICY_REPLAY = 1e-5
# relative; a masked loss against the same in parts
LOSS = 1e-5
# absolute; returns of up to 15 steps in rows against lone environments
ROLLOUT = 1e-4
