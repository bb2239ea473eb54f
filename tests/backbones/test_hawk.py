"""Hawk against a float64 NumPy loop written from the paper's equations, its initial values, and what its page says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from rlseq import backbones
from rlseq.backbones import hawk
from rlseq.backbones._rg_lru import RecurrentMixer, initial_decay, recurrent_width
from rlseq.errors import ConfigError
from tests.tolerances import BACKBONES

WIDTH, HEADS, DEPTH, ROWS, LENGTH = 12, 2, 2, 2, 9


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms_norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + 1e-6) * (1 + scale)


def block_diagonal(blocks: np.ndarray) -> np.ndarray:
    heads, size, _ = blocks.shape
    matrix = np.zeros((heads * size, heads * size))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        matrix[part, part] = blocks[head]
    return matrix


def paper_recurrent_block(p: dict[str, np.ndarray], x: np.ndarray, reset: np.ndarray) -> np.ndarray:
    """Figure 2c and eq. 1-4 for one row x (L, D), one token after the other."""
    both = x @ p["inner.weight"].T + p["inner.bias"]
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
    return y @ p["out.weight"].T + p["out.bias"]


def paper_hawk(p: dict[str, np.ndarray], x: np.ndarray, reset: np.ndarray) -> np.ndarray:
    """Figure 2a for one row x (L, D)."""
    for layer in range(DEPTH):
        q = {name.removeprefix(f"blocks.{layer}."): value for name, value in p.items() if f"blocks.{layer}." in name}
        mixer = {name.removeprefix("mixer."): value for name, value in q.items() if name.startswith("mixer.")}
        x = x + paper_recurrent_block(mixer, np.stack([rms_norm(t, q["mixer_norm.scale"]) for t in x]), reset)
        gate, value = np.split(
            np.stack([rms_norm(t, q["mlp_norm.scale"]) for t in x]) @ q["mlp.up.weight"].T + q["mlp.up.bias"], 2, axis=1
        )
        x = x + (gelu(gate) * value) @ q["mlp.down.weight"].T + q["mlp.down.bias"]
    return np.stack([rms_norm(t, p["last_norm.scale"]) for t in x])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = backbones.build("hawk", width=WIDTH, depth=DEPTH, heads=HEADS).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    reset = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    reset[0, 0] = reset[0, 4] = reset[1, 6] = reset[1, 7] = True
    return x, reset


def as_numpy(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def paper_rows(p: dict[str, np.ndarray], x: np.ndarray, reset: np.ndarray) -> np.ndarray:
    return np.stack([paper_hawk(p, x[row], reset[row]) for row in range(len(x))])


def test_features_are_the_papers_equations(model: nn.Module) -> None:
    x, reset = inputs()
    exact = BACKBONES["hawk features"]
    expected = paper_rows(as_numpy(model), x.numpy(), reset.numpy())
    np.testing.assert_allclose(model(x, None, reset)[0].detach().numpy(), expected, rtol=0, atol=exact)
    expected = paper_rows(as_numpy(model), x.numpy(), np.zeros_like(reset.numpy()))
    np.testing.assert_allclose(model(x)[0].detach().numpy(), expected, rtol=0, atol=exact)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_differences_of_the_papers_equations(model: nn.Module, seed: int) -> None:
    x, reset = inputs()
    x.requires_grad_()
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=tuple(x.shape))
    (model(x, None, reset)[0] * torch.from_numpy(weight)).sum().backward()
    gradients = {"x": x.grad} | {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {"x": x.detach().numpy()} | as_numpy(model)
    relative, absolute = BACKBONES["hawk differences"], BACKBONES["hawk differences near 0"]
    for name, gradient in gradients.items():
        assert gradient is not None
        direction = rng.normal(size=values[name].shape)
        losses = []
        for sign in (1, -1):
            moved = values | {name: values[name] + sign * 1e-5 * direction}
            losses.append((paper_rows(moved, moved["x"], reset.numpy()) * weight).sum())
        expected = (losses[0] - losses[1]) / 2e-5
        assert float((gradient.numpy() * direction).sum()) == pytest.approx(expected, rel=relative, abs=absolute), name


def test_parameter_count_is_the_sum_of_its_matrices() -> None:
    d, n, h = 128, 3, 4
    r = recurrent_width(d, h)
    assert r == 192
    recurrent = (d + 1) * 2 * r + (4 + 1) * r + (r * r // h + r) * 2 + r + (r + 1) * d
    mlp = (d + 1) * 6 * d + (3 * d + 1) * d
    model = backbones.build("hawk", width=d, depth=n)
    assert backbones.parameter_count(model) == n * (recurrent + mlp + 2 * d) + d == 728_576
    assert backbones.state_bytes(model.init_state(1)) == n * (3 * r * 4 + r * 8) == 11_520


@pytest.mark.parametrize(
    ("width", "heads", "expected"), [(128, 4, 192), (96, 4, 128), (64, 1, 88), (16, 2, 32), (3, 1, 8)]
)
def test_recurrent_width_is_four_thirds_rounded_up_to_whole_blocks(width: int, heads: int, expected: int) -> None:
    assert recurrent_width(width, heads) == expected


@pytest.mark.parametrize(("decay_init", "low", "high"), [("paper", 18.9, 2000.0), ("released", 2.37, 250.0)])
def test_initial_time_constants_are_those_of_the_page(decay_init: str, low: float, high: float) -> None:
    torch.manual_seed(0)
    decay = initial_decay(100_000, decay_init).double()  # type: ignore[arg-type]
    steps = 1 / (8 * 0.5 * torch.nn.functional.softplus(decay))
    assert steps.min() == pytest.approx(low, rel=BACKBONES["shortest of 100,000"])
    assert steps.max() == pytest.approx(high, rel=BACKBONES["longest of 100,000"])
    a = torch.sigmoid(-decay)
    uniform = a**8 if decay_init == "paper" else a**2
    assert uniform.mean() == pytest.approx((uniform.min() + uniform.max()).item() / 2, rel=BACKBONES["mean of 100,000"])


def test_initial_values_are_the_papers() -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(256, heads=2, output_std_scale=0.5)
    block = mixer.gate_weight.shape[1]
    for weight, std in (
        (mixer.inner.weight, 256**-0.5),
        (mixer.out.weight, 0.5 * recurrent_width(256, 2) ** -0.5),
        (mixer.gate_weight, block**-0.5),
        (mixer.conv_weight, math.sqrt(0.01 / 4)),
    ):
        assert weight.std().item() == pytest.approx(std, rel=BACKBONES["initial std"])
        assert abs(weight.mean().item()) < 0.1 * std
    for bias in (mixer.inner.bias, mixer.out.bias, mixer.gate_bias, mixer.conv_bias):
        assert not bias.any()


def test_outputs_of_every_half_layer_shrink_with_the_depth() -> None:
    torch.manual_seed(0)
    model = hawk.build(hawk.Config(width=256, depth=8))
    close = BACKBONES["initial std"]
    for block in model.blocks:
        assert block.mixer.out.weight.std().item() == pytest.approx(0.5 * recurrent_width(256, 4) ** -0.5, rel=close)
        assert block.mlp.down.weight.std().item() == pytest.approx(0.5 * (3 * 256) ** -0.5, rel=close)


def test_closed_recurrence_gate_holds_the_state_and_ignores_the_input() -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(16, heads=1)
    with torch.no_grad():
        mixer.gate_weight.zero_()
        mixer.gate_bias[..., mixer.gate_bias.shape[-1] // 2 :] = -60.0
        state = mixer.init_state(2)._replace(hidden=torch.randn(2, 24, dtype=torch.float64))
        _, after = mixer(torch.randn(2, 2000, 16), state)
    torch.testing.assert_close(after.hidden, state.hidden, rtol=0, atol=BACKBONES["hawk held state"])


def test_no_gate_drops_the_state_in_one_step() -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(16, heads=1)
    with torch.no_grad():
        mixer.gate_weight.zero_()
        mixer.gate_bias[..., mixer.gate_bias.shape[-1] // 2 :] = 60.0
        past = torch.ones(1, 24, dtype=torch.float64)
        x = torch.zeros(1, 16)
        _, after = mixer.step(x, mixer.init_state(1)._replace(hidden=past))
        _, zero = mixer.step(x, mixer.init_state(1))
    kept = (after.hidden - zero.hidden) / past
    assert kept.min() > 0.899, "a^c > 0.9 is the fastest forgetting that the initial decays allow"


def test_state_of_constant_tokens_is_the_geometric_sum() -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(8, heads=1)
    with torch.no_grad():
        x = torch.ones(1, 8192, 8)
        state = mixer.init_state(1)
        for _ in range(4):
            _, state = mixer(x, state)
        left = (mixer.inner(x[0, 0])[: len(mixer.decay)] * mixer.conv_weight.sum(0) + mixer.conv_bias).double()
        gate_x, gate_a = mixer._gates(left.float()[None])[:, 0].double()
        u = 8 * torch.sigmoid(gate_a) * torch.nn.functional.softplus(mixer.decay.double())
        limit = torch.sqrt(-torch.expm1(-2 * u)) * torch.sigmoid(gate_x) * left / -torch.expm1(-u)
    torch.testing.assert_close(state.hidden[0], limit, rtol=0, atol=BACKBONES["hawk geometric sum"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a whole number >= 1, got 0"),
        ({"depth": 1.5}, "depth must be a whole number"),
        ({"heads": True}, "heads must be a whole number"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in"),
        ({"decay_init": "papers"}, "decay_init must be one of paper, released, got 'papers'"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hawk.Config(**options)  # type: ignore[arg-type]
