"""GAU against the paper's pseudo-code in float64 NumPy: values, gradients, initial values, and what its page says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import gau
from rlseq.backbones._gated_attention import GauMixer
from rlseq.backbones._stack import ScaleNorm
from rlseq.errors import ConfigError
from tests.oracles import against
from tests.oracles import backbones as oracle
from tests.oracles.backbones import Parameters
from tests.tolerances import BACKBONES

WIDTH, DEPTH, ROWS, LENGTH = 10, 2, 2, 13
NORMS = {"layer": oracle.layer_norm, "scale": oracle.scale_norm}


def built(window: int, norm: str = "layer") -> nn.Module:
    torch.manual_seed(0)
    return against.noisy(backbones.build("gau", width=WIDTH, depth=DEPTH, window=window, norm=norm))


def paper_gau(window: int, norm: str = "layer", divisor: float | None = None) -> against.Oracle:
    """Code 1 for one row x (L, D)."""
    unit = functools.partial(oracle.gau, window=window, divisor=divisor)

    def row(p: Parameters, x: np.ndarray, reset: np.ndarray) -> np.ndarray:
        return oracle.stack(p, x, reset, [unit] * DEPTH, NORMS[norm])

    return row


def inputs() -> tuple[Tensor, Tensor]:
    return against.inputs(ROWS, LENGTH, WIDTH, {0: [0, 4], 1: [9, 10]})


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("window", [1, 4, LENGTH, 40])
def test_features_are_the_papers_pseudo_code(window: int, norm: str) -> None:
    model, expected = built(window, norm), paper_gau(window, norm)
    x, reset = inputs()
    assert against.largest_difference(model, expected, x, reset) <= BACKBONES["gau features"]
    assert against.largest_difference(model, expected, x, None) <= BACKBONES["gau features"]


@pytest.mark.parametrize(("window", "norm"), [(4, "layer"), (40, "scale")])
def test_gradients_are_differences_of_the_papers_pseudo_code(window: int, norm: str) -> None:
    model, expected = built(window, norm), paper_gau(window, norm)
    relative, absolute = BACKBONES["differences"], BACKBONES["differences near 0"]
    for name, got, difference in against.directional_derivatives(model, expected, *inputs(), seed=0):
        assert got == pytest.approx(difference, rel=relative, abs=absolute), name


def test_where_the_sequence_fits_the_window_it_is_the_papers_attention_up_to_the_divisor() -> None:
    """The paper divides by the length: queries that are larger by window / length make up for it."""
    model = built(40)
    x, _ = inputs()
    expected = against.of_rows(
        paper_gau(40, divisor=LENGTH), against.as_numpy(model), x.numpy(), np.zeros((ROWS, LENGTH), bool)
    )
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.gamma[0] *= 40 / LENGTH
            block.mixer.beta[0] *= 40 / LENGTH
    np.testing.assert_allclose(model(x)[0].detach().numpy(), expected, rtol=0, atol=BACKBONES["gau features"])


def test_parameter_count_and_state_are_those_of_the_page() -> None:
    d, n, window = 128, 6, 60
    e, s = 2 * d, 128
    model = gau.build(gau.Config(window=window))
    layer = (d + 1) * (2 * e + s) + 2 * 2 * s + window + (e + 1) * d + 2 * d
    assert backbones.parameter_count(model) == n * layer + 2 * d == 697_960
    assert backbones.state_bytes(model.init_state(1)) == n * (window * (s + e) * 4 + 8) == 553_008
    assert GauMixer(200, 4).size == 128
    assert GauMixer(20, 4).size == 20


def test_state_is_three_times_the_transformers_at_as_many_parameters() -> None:
    models = (
        backbones.build("gau", width=128, depth=6, window=60),
        backbones.build("transformer", width=128, depth=3, window=60),
    )
    large, small = (backbones.state_bytes(model.init_state(1)) for model in models)
    assert large / small == pytest.approx(3.0, rel=1e-3)


def test_two_layers_have_about_the_parameters_of_an_attention_layer_and_its_mlp() -> None:
    pair = backbones.parameter_count(backbones.build("gau", width=128, depth=2, window=60))
    layer = backbones.parameter_count(backbones.build("transformer", width=128, depth=1, window=60))
    assert 1.0 < pair / layer < 1.2


def test_initial_values_are_those_of_the_page() -> None:
    torch.manual_seed(0)
    mixers = [block.mixer for block in backbones.build("gau", width=128, depth=8, window=16).blocks]
    close = BACKBONES["initial std"]
    for name, std in (("inner.weight", 128**-0.5), ("out.weight", 0.5 * 256**-0.5)):
        values = torch.cat([mixer.get_parameter(name).flatten() for mixer in mixers])
        assert values.std().item() == pytest.approx(std, rel=close), name
        assert abs(values.mean().item()) < 0.01 * std
    gammas = torch.cat([GauMixer(128, 4).gamma.flatten() for _ in range(80)])
    assert gammas.std().item() == pytest.approx(1.0, rel=close)
    for mixer in mixers:
        assert not mixer.inner.bias.any()
        assert not mixer.out.bias.any()
        assert not mixer.beta.any()
        assert (mixer.bias == 0.25).all()


def test_window_is_part_of_the_weights() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        GauMixer(8, 5).load_state_dict(GauMixer(8, 6).state_dict())


def attended(mixer: GauMixer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first D entries of what the gate multiplies, and of the values v, (L, D) each, of one row x (L, D)."""
    with torch.no_grad():
        # a gate that is the same everywhere, and no projection
        mixer.inner.weight[: mixer.expanded] = 0.0
        mixer.inner.bias[: mixer.expanded] = 1.0
    nn.init.eye_(mixer.out.weight)
    nn.init.zeros_(mixer.out.bias)
    u, v, _ = mixer.project(x[None], torch.arange(len(x))[None])
    return mixer(x[None])[0][0] / u[0, 0, 0], v[0, :, : x.shape[1]]


def test_at_first_a_unit_averages_over_its_window() -> None:
    """The bias alone, relu(bias)^2 = 1 / window: a mean once the window is full, less before."""
    torch.manual_seed(0)
    mixer = GauMixer(8, 4).double()
    nn.init.zeros_(mixer.gamma)
    o, v = attended(mixer, torch.randn(9, 8, dtype=torch.float64))
    expected = torch.stack([v[max(0, t - 3) : t + 1].sum(0) / 4 for t in range(9)])
    torch.testing.assert_close(o, expected, rtol=0, atol=BACKBONES["averages"])


def test_weights_do_not_sum_to_one_and_a_key_that_does_not_match_costs_nothing() -> None:
    torch.manual_seed(0)
    mixer = against.noisy(GauMixer(8, 1000))
    x = torch.randn(1000, 8, dtype=torch.float64)
    with torch.no_grad():
        # no scores, and a bias below 0 for all but the token itself
        nn.init.zeros_(mixer.gamma)
        nn.init.zeros_(mixer.beta)
        mixer.bias.fill_(-0.5)
        mixer.bias[0] = 1.0
    o, v = attended(mixer, x)
    torch.testing.assert_close(o, v, rtol=0, atol=BACKBONES["averages"])
    with torch.no_grad():
        mixer.bias.fill_(1.0)
    o, v = attended(mixer, x[:1].expand(5, 8))
    torch.testing.assert_close(o, v * torch.arange(1, 6)[:, None], rtol=0, atol=BACKBONES["averages"])


def test_unit_whose_scores_are_below_zero_learns_nothing_from_its_keys() -> None:
    torch.manual_seed(0)
    mixer = GauMixer(8, 6)
    nn.init.zeros_(mixer.gamma)
    for bias, learns in ((-0.1, False), (6**-0.5, True)):
        nn.init.constant_(mixer.bias, bias)
        y, _ = mixer(torch.randn(2, 9, 8))
        gradients = torch.autograd.grad(y.square().sum(), [mixer.bias, mixer.beta, mixer.inner.weight])
        assert [bool(gradient.any()) for gradient in gradients] == [learns, False, learns]


@pytest.mark.parametrize("magnitude", [1e-2, 1.0, 1e3])
def test_scale_norm_is_its_equation_and_flashs_form_of_it(magnitude: float) -> None:
    torch.manual_seed(0)
    norm = against.noisy(ScaleNorm(16))
    x = magnitude * torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    root_mean_square = x.square().mean(-1, keepdim=True).sqrt()
    for expected in (
        norm.scale * x / x.square().sum(-1, keepdim=True).sqrt(),
        norm.scale / 4 * x / root_mean_square,
    ):
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=BACKBONES["scale norm"])
        gradients = [
            torch.autograd.grad((y * weight).sum(), [x, norm.scale], retain_graph=True) for y in (norm(x), expected)
        ]
        for got, wanted in zip(*gradients, strict=True):
            scale = wanted.abs().max()
            torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=BACKBONES["scale norm"])


def test_scale_norm_starts_as_rms_norm_and_takes_zeros() -> None:
    x = torch.randn(4, 16)
    expected = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(ScaleNorm(16)(x), expected, rtol=0, atol=BACKBONES["scale norm float32"])
    zeros = torch.zeros(2, 16, requires_grad=True)
    y = ScaleNorm(16)(zeros)
    y.sum().backward()
    assert not y.any()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
    assert backbones.parameter_count(ScaleNorm(16)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
        ({"window": None}, "window must be a number of tokens, got None"),
        ({"norm": "rms"}, "norm must be one of layer, scale, got 'rms'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build("gau", width=16, depth=1, **{"window": 4, **options})
