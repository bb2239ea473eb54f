"""float64 NumPy of the backbones' layers, written from the papers, for one row x (L, D) with its resets (L,).

Parameters go by their names in the model's state dict, a layer's without what stands before its own part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

Array = np.ndarray
Parameters: TypeAlias = dict[str, Array]
Layer: TypeAlias = Callable[[Parameters, Array, Array], Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def below(p: Parameters, prefix: str) -> Parameters:
    """The parameters of one part of a module."""
    return {name.removeprefix(f"{prefix}."): value for name, value in p.items() if name.startswith(f"{prefix}.")}


def linear(p: Parameters, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def rms_norm(p: Parameters, x: Array) -> Array:
    """arXiv 2402.19427, section 2.1, with 1 + scale as in the released code."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + p["scale"])


def layer_norm(p: Parameters, x: Array) -> Array:
    """arXiv 1607.06450, eq. 4."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def scale_norm(p: Parameters, x: Array) -> Array:
    """arXiv 1910.05895, eq. 5."""
    return p["scale"] * x / np.sqrt((x * x).sum(-1, keepdims=True))


def gated_mlp(p: Parameters, x: Array) -> Array:
    """arXiv 2402.19427, figure 2b."""
    gate, value = np.split(linear(p, "up", x), 2, axis=-1)
    return linear(p, "down", gelu(gate) * value)


def stack(
    p: Parameters, x: Array, reset: Array, mixers: Sequence[Layer], norm: Callable[[Parameters, Array], Array]
) -> Array:
    """x += mixer(norm(x)), x += mlp(norm(x)) where there is one, and a last norm."""
    for index, mixer in enumerate(mixers):
        layer = below(p, f"blocks.{index}")
        x = x + mixer(below(layer, "mixer"), norm(below(layer, "mixer_norm"), x), reset)
        if below(layer, "mlp"):
            x = x + gated_mlp(below(layer, "mlp"), norm(below(layer, "mlp_norm"), x))
    return norm(below(p, "last_norm"), x)


def block_diagonal(blocks: Array) -> Array:
    heads, size, _ = blocks.shape
    matrix = np.zeros((heads * size, heads * size))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        matrix[part, part] = blocks[head]
    return matrix


def recurrent_block(p: Parameters, x: Array, reset: Array) -> Array:
    """arXiv 2402.19427, figure 2c and eq. 1-4, one token after the other."""
    both = linear(p, "inner", x)
    size = both.shape[1] // 2
    left, right = both[:, :size], both[:, size:]
    block = size // len(p["gate_weight"])
    w_x, w_a = (block_diagonal(p["gate_weight"][:, :, part]) for part in (slice(0, block), slice(block, None)))
    b_x, b_a = (p["gate_bias"][:, 0, part].reshape(-1) for part in (slice(0, block), slice(block, None)))
    a = sigmoid(-p["decay"])
    hidden, start = np.zeros(size), 0
    y = np.zeros_like(left)
    for t in range(len(x)):
        start = t if reset[t] else start
        conv = p["conv_bias"] + sum(p["conv_weight"][3 - j] * left[t - j] for j in range(4) if t - j >= start)
        r = sigmoid(conv @ w_a + b_a)  # eq. 1
        i = sigmoid(conv @ w_x + b_x)  # eq. 2
        a_t = a ** (8 * r)  # eq. 3
        past, factor = (0 * hidden, 1.0) if reset[t] else (hidden, np.sqrt(1 - a_t**2))
        hidden = a_t * past + factor * (i * conv)  # eq. 4
        y[t] = hidden * gelu(right[t])
    return linear(p, "out", y)


def rotary(x: Array, position: int | Array, size: int) -> Array:
    """arXiv 2104.09864, eq. 12-13: entries i and i + size / 2 are one complex number, turned by position f_i."""
    half = size // 2
    turn = np.exp(1j * np.asarray(position)[..., None] * 10_000.0 ** (-np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:size]) * turn
    return np.concatenate([turned.real, turned.imag, x[..., size:]], axis=-1)


def multi_query_attention(p: Parameters, x: Array, reset: Array, heads: int, window: int) -> Array:
    """arXiv 2402.19427, section 2.3: local attention, one token after the other, half of a head's entries rotated."""
    projected = linear(p, "qkv", x)
    size = projected.shape[1] // (heads + 2)
    y = np.zeros((len(x), heads * size))
    keys: list[Array] = []
    values: list[Array] = []
    position = 0
    for t in range(len(x)):
        if reset[t]:
            keys, values, position = [], [], 0
        *queries, key, value = np.split(projected[t], heads + 2)
        keys = [*keys, rotary(key, position, size // 2)][-window:]
        values = [*values, value][-window:]
        for head in range(heads):
            query = rotary(queries[head], position, size // 2)
            weights = [math.exp(query @ one / math.sqrt(size)) for one in keys]
            mixed = sum(weight * one for weight, one in zip(weights, values, strict=True)) / sum(weights)
            y[t, head * size : (head + 1) * size] = mixed
        position += 1
    return linear(p, "out", y)


def episodes(reset: Array) -> Iterator[slice]:
    """The tokens of every episode in a row."""
    starts = [0, *(t for t in range(1, len(reset)) if reset[t])]
    for begin, end in zip(starts, [*starts[1:], len(reset)], strict=True):
        yield slice(begin, end)


def toeplitz(bias: Array, length: int) -> Array:
    """arXiv 2202.10447, rel_pos_bias: (L, L) of w_{j - i}; w is bias by i - j, 0 for what is ahead or too far back."""
    w = np.zeros(2 * length - 1)
    known = min(length, len(bias))
    w[length - known : length] = bias[:known][::-1]
    t = np.tile(np.pad(w, (0, length)), length)[:-length].reshape(length, 3 * length - 2)
    return t[:, length - 1 : 2 * length - 1]


def gated_attention(p: Parameters, x: Array, reset: Array, attend: Callable[[Array, Array], Array]) -> Array:
    """arXiv 2202.10447, codes 1 and 8, around attend(views (n, L, s), v (L, e)), an episode after the other."""
    gamma, beta = p["gamma"], p["beta"]
    e, s = p["out.weight"].shape[1], gamma.shape[1]
    y = np.empty_like(x)
    for episode in episodes(reset):
        u, v, z = np.split(silu(linear(p, "inner", x[episode])), [e, 2 * e], axis=1)
        views = np.einsum("lr,hr->hlr", z, gamma) + beta[:, None]
        y[episode] = linear(p, "out", u * attend(rotary(views, np.arange(len(v)), s // 2 * 2), v))
    return y


def gau(p: Parameters, x: Array, reset: Array, window: int, divisor: float | None = None) -> Array:
    """arXiv 2202.10447, code 1, causal, without the keys from ``window`` tokens back; divisor: window unless given."""

    def attend(views: Array, v: Array) -> Array:
        length = len(v)
        seen = np.tril(np.ones((length, length))) - np.tril(np.ones((length, length)), -window)
        qk = np.einsum("ns,ms->nm", *views) / (window if divisor is None else divisor)
        return seen * np.maximum(qk + toeplitz(p["bias"], length), 0.0) ** 2 @ v

    return gated_attention(p, x, reset, attend)


def flash(p: Parameters, x: Array, reset: Array, chunk: int) -> Array:
    """arXiv 2202.10447, code 8, causal, with the mean over the earlier chunks in place of their sum."""

    def attend(views: Array, v: Array) -> Array:
        length = len(v)
        padding = -length % chunk
        parts = [
            np.pad(part, ((0, padding), (0, 0))).reshape(-1, chunk, part.shape[1]) for part in (*views, v)
        ]  # (G, C, s) four times, (G, C, e)
        q_quad, k_quad, q_lin, k_lin, values = parts
        qk = np.einsum("gns,gms->gnm", q_quad, k_quad) / chunk
        kernel = np.maximum(qk + toeplitz(p["bias"], chunk), 0.0) ** 2 * np.tril(np.ones((chunk, chunk)))
        quadratic = np.einsum("gnm,gme->gne", kernel, values)
        kv = np.einsum("gns,gne->gse", k_lin, values) / chunk
        earlier = np.cumsum(kv, axis=0) - kv
        mean = earlier / np.maximum(np.arange(len(kv)), 1)[:, None, None]
        linear_part = np.einsum("gns,gse->gne", q_lin, mean)
        return (quadratic + linear_part).reshape(-1, v.shape[1])[:length]

    return gated_attention(p, x, reset, attend)
