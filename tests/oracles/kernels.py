"""float64 NumPy loops of the ops, written from their equations."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def linear_scan(a: Array, b: Array, h0: Array, reset: Array) -> tuple[Array, Array]:
    """h_t = a_t h_{t-1} + b_t; nothing comes through a reset."""
    batch, length, _ = b.shape
    h, last = np.empty_like(b), np.array(h0)
    for row in range(batch):
        for t in range(length):
            last[row] = b[row, t] if reset[row, t] else a[row, t] * last[row] + b[row, t]
            h[row, t] = last[row]
    return h, last


def rg_lru(
    x: Array, gate_x: Array, gate_a: Array, a_param: Array, h0: Array, reset: Array, c: float
) -> tuple[Array, Array]:
    """arXiv 2402.19427, eq. 1-4: a = sigmoid(-a_param)^(c r), h_t = a h_{t-1} + sqrt(1 - a^2) i x_t."""
    batch, length, _ = x.shape
    h, last = np.empty_like(x), np.array(h0)
    for row in range(batch):
        for t in range(length):
            gated = _sigmoid(gate_x[row, t]) * x[row, t]
            if reset[row, t]:
                last[row] = gated
            else:
                log_a = -c * _sigmoid(gate_a[row, t]) * np.logaddexp(0.0, a_param)
                last[row] = last[row] + np.expm1(log_a) * last[row] + np.sqrt(-np.expm1(2.0 * log_a)) * gated
            h[row, t] = last[row]
    return h, last


def causal_conv(x: Array, weight: Array, bias: Array, state: Array, reset: Array) -> tuple[Array, Array]:
    """y_t = bias + sum_j weight[W-1-j] x_{t-j} over the taps with no reset between."""
    batch, length, _ = x.shape
    taps = weight.shape[0]
    y, last = np.empty_like(x), np.zeros_like(state)
    for row in range(batch):
        tokens = np.concatenate([state[row], x[row]])
        for t in range(length):
            y[row, t] = bias
            for j in range(taps):
                if not reset[row, max(t - j + 1, 0) : t + 1].any():
                    y[row, t] += weight[taps - 1 - j] * tokens[taps - 1 + t - j]
        for s in range(taps - 1):
            if not reset[row, max(length - (taps - 1) + s + 1, 0) :].any():
                last[row, s] = tokens[length + s]
    return y, last


def softmax_scan(s: Array, v: Array, z: Array, o: Array, reset: Array) -> tuple[Array, Array, Array]:
    """o_t = sum of e^{s_i} v_i / sum of e^{s_i} over the tokens since a reset; the state counts as one token (z, o)."""
    batch, length, heads, _ = v.shape
    out, last_z, last_o = np.empty_like(v), np.array(z), np.array(o)
    for row in range(batch):
        for head in range(heads):
            scores, values = [z[row, head]], [o[row, head]]
            for t in range(length):
                if reset[row, t]:
                    scores, values = [], []
                scores.append(s[row, t, head])
                values.append(v[row, t, head])
                largest = max(scores)
                if largest == -np.inf:
                    # every token is dropped: the last one stands for all
                    out[row, t, head], last_z[row, head] = values[-1], -np.inf
                else:
                    weights = np.exp(np.array(scores) - largest)
                    out[row, t, head] = weights / weights.sum() @ np.array(values)
                    last_z[row, head] = largest + np.log(weights.sum())
            last_o[row, head] = out[row, length - 1, head]
    return out, last_z, last_o


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))
