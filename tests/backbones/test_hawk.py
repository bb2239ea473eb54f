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
from tests.oracles import against
from tests.oracles import backbones as oracle
from tests.oracles.backbones import Parameters
from tests.tolerances import BACKBONES

WIDTH, HEADS, DEPTH, ROWS, LENGTH = 12, 2, 2, 2, 9


def paper_hawk(p: Parameters, x: np.ndarray, reset: np.ndarray) -> np.ndarray:
    """Figure 2a for one row x (L, D)."""
    return oracle.stack(p, x, reset, [oracle.recurrent_block] * DEPTH, oracle.rms_norm)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return against.noisy(backbones.build("hawk", width=WIDTH, depth=DEPTH, heads=HEADS))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return against.inputs(ROWS, LENGTH, WIDTH, {0: [0, 4], 1: [6, 7]})


def test_features_are_the_papers_equations(model: nn.Module) -> None:
    x, reset = inputs()
    assert against.largest_difference(model, paper_hawk, x, reset) <= BACKBONES["hawk features"]
    assert against.largest_difference(model, paper_hawk, x, None) <= BACKBONES["hawk features"]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_differences_of_the_papers_equations(model: nn.Module, seed: int) -> None:
    relative, absolute = BACKBONES["differences"], BACKBONES["differences near 0"]
    for name, got, expected in against.directional_derivatives(model, paper_hawk, *inputs(), seed):
        assert got == pytest.approx(expected, rel=relative, abs=absolute), name


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


def test_every_other_entry_holds_and_the_rest_is_as_released() -> None:
    torch.manual_seed(0)
    released = initial_decay(1000, "released")
    torch.manual_seed(0)
    decay = initial_decay(1000, "hold")
    assert torch.equal(decay[::2], released[::2])
    steps = 1 / (8 * 0.5 * torch.nn.functional.softplus(decay[1::2].double()))
    torch.testing.assert_close(steps, torch.full_like(steps, 1e16), rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", ["forward", "step"])
def test_what_a_held_entry_got_first_is_there_after_1000_other_tokens(how: str) -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(16, heads=2, decay_init="hold")
    x, reset = torch.randn(1, 1001, 16), torch.zeros(1, 1001, dtype=torch.bool)
    reset[:, 0] = True
    hidden = []
    with torch.no_grad():
        for length in (1, 1001):
            state = mixer.init_state(1)
            if how == "forward":
                _, state = mixer(x[:, :length], state, reset[:, :length])
            else:
                for t in range(length):
                    _, state = mixer.step(x[:, t], state, reset[:, t])
            hidden.append(state.hidden)
    assert hidden[0][:, 1::2].abs().min() > 1e-6
    torch.testing.assert_close(hidden[1][:, 1::2], hidden[0][:, 1::2], rtol=1e-4, atol=1e-6)
    others = hidden[0][:, ::2]
    assert (hidden[1][:, ::2] - others).norm() > 0.5 * others.norm()


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
        gate_x, gate_a = mixer._gates(left.float()[None])[0, 0].double()
        u = 8 * torch.sigmoid(gate_a) * torch.nn.functional.softplus(mixer.decay.double())
        limit = torch.sqrt(-torch.expm1(-2 * u)) * torch.sigmoid(gate_x) * left / -torch.expm1(-u)
    torch.testing.assert_close(state.hidden[0], limit, rtol=0, atol=BACKBONES["hawk geometric sum"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "hawk: width must be a whole number >= 1, got 0"),
        ({"depth": 1.5}, "depth must be a whole number"),
        ({"heads": True}, "heads must be a whole number"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in"),
        ({"decay_init": "papers"}, "decay_init must be one of paper, released, hold, got 'papers'"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hawk.Config(**options)  # type: ignore[arg-type]


def test_a_bfloat16_step_rounds_no_gate() -> None:
    torch.manual_seed(0)
    mixer = RecurrentMixer(16, heads=2, decay_init="released").bfloat16()
    with torch.no_grad():
        mixer.conv_weight.zero_()
        mixer.conv_weight[-1] = 1.0
        x = torch.randn(2, 16).bfloat16()
        state = mixer.init_state(2)._replace(hidden=torch.randn(2, len(mixer.decay), dtype=torch.float64))
        _, found = mixer.step(x, state)
        left = mixer.inner(x)[:, : len(mixer.decay)]
        gates = mixer._gates(left).permute(2, 1, 0, 3).reshape(2, 2, -1).double().sigmoid()
        log_decay = -8 * gates[1] * torch.nn.functional.softplus(mixer.decay).double()
        expected = log_decay.exp() * state.hidden + torch.sqrt(-torch.expm1(2 * log_decay)) * gates[0] * left
    torch.testing.assert_close(found.hidden, expected, rtol=1e-5, atol=1e-6)
