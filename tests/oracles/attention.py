"""float64 NumPy loops of the attention ops, written from their equations: for every query a loop over what it sees."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def local_attention(
    q: Array, k: Array, v: Array, window: int, activation: str, bias: Array | None, reset: Array
) -> Array:
    """Causal attention over the last ``window`` tokens of the episode; relu2 is arXiv 2202.10447, eq. 5-6."""
    batch, length, heads, size = q.shape
    group = heads // k.shape[2]
    o = np.empty((batch, length, heads, v.shape[3]))
    for row in range(batch):
        begin = 0
        for t in range(length):
            begin = t if reset[row, t] else begin
            first = max(begin, t - window + 1)
            offset = np.zeros(t + 1 - first) if bias is None else bias[t - np.arange(first, t + 1)]
            for head in range(heads):
                scores = k[row, first : t + 1, head // group] @ q[row, t, head]
                if activation == "softmax":
                    scores = scores / np.sqrt(size) + offset
                    weights = np.exp(scores - scores.max())
                    weights = weights / weights.sum()
                else:
                    weights = np.maximum(scores / window + offset, 0.0) ** 2
                o[row, t, head] = weights @ v[row, first : t + 1, head // group]
    return o


def chunk_attention(
    q_quad: Array, k_quad: Array, q_lin: Array, k_lin: Array, v: Array, chunk: int, bias: Array | None, reset: Array
) -> tuple[Array, ...]:
    """arXiv 2202.10447, section 3, with the mean over earlier chunks; o, mean, key_quad, key_lin, value and count."""
    batch, length, size = q_quad.shape
    o = np.zeros(v.shape)
    mean, value = np.zeros((batch, size, v.shape[2])), np.zeros((batch, chunk, v.shape[2]))
    key, key_lin = np.zeros((2, batch, chunk, size))
    count = np.zeros(batch, dtype=np.int64)

    def sum_of(row: int, first: int, end: int) -> Array:
        total = np.zeros((size, v.shape[2]))
        for j in range(first, end):
            total += np.outer(k_lin[row, j], v[row, j]) / chunk
        return total

    def mean_of(row: int, begin: int, chunks: int) -> Array:
        sums = [sum_of(row, begin + n * chunk, begin + (n + 1) * chunk) for n in range(chunks)]
        return np.mean(sums, axis=0) if sums else np.zeros((size, v.shape[2]))

    for row in range(batch):
        begin = 0
        for t in range(length):
            begin = t if reset[row, t] else begin
            n = (t - begin) // chunk
            for j in range(begin + n * chunk, t + 1):
                score = q_quad[row, t] @ k_quad[row, j] / chunk + (0.0 if bias is None else bias[t - j])
                o[row, t] += max(score, 0.0) ** 2 * v[row, j]
            o[row, t] += q_lin[row, t] @ mean_of(row, begin, n)
        count[row] = length - begin
        n, left = divmod(length - begin, chunk)
        mean[row] = mean_of(row, begin, n)
        for buffer, tokens in ((key, k_quad), (key_lin, k_lin), (value, v)):
            buffer[row, :left] = tokens[row, length - left :]
    return o, mean, key, key_lin, value, count
