"""FLASH against the paper's pseudo-code in float64 NumPy: values, gradients, initial values, and what its page says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import flash
from rlseq.backbones._gated_attention import FlashMixer, GauMixer
from rlseq.errors import ConfigError
from tests.oracles import against
from tests.oracles import backbones as oracle
from tests.oracles.backbones import Parameters
from tests.tolerances import BACKBONES

WIDTH, DEPTH, ROWS, LENGTH = 10, 2, 2, 13
NORMS = {"layer": oracle.layer_norm, "scale": oracle.scale_norm}


def built(chunk: int, norm: str = "layer") -> nn.Module:
    torch.manual_seed(0)
    return against.noisy(backbones.build("flash", width=WIDTH, depth=DEPTH, chunk=chunk, norm=norm))


def paper_flash(chunk: int, norm: str = "layer") -> against.Oracle:
    """Code 8 for one row x (L, D)."""
    unit = functools.partial(oracle.flash, chunk=chunk)

    def row(p: Parameters, x: np.ndarray, reset: np.ndarray) -> np.ndarray:
        return oracle.stack(p, x, reset, [unit] * DEPTH, NORMS[norm])

    return row


def inputs() -> tuple[Tensor, Tensor]:
    return against.inputs(ROWS, LENGTH, WIDTH, {0: [0, 2], 1: [9, 10]})


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("chunk", [1, 3, LENGTH, 40])
def test_features_are_the_papers_pseudo_code(chunk: int, norm: str) -> None:
    model, expected = built(chunk, norm), paper_flash(chunk, norm)
    x, reset = inputs()
    assert against.largest_difference(model, expected, x, reset) <= BACKBONES["flash features"]
    assert against.largest_difference(model, expected, x, None) <= BACKBONES["flash features"]


@pytest.mark.parametrize(("chunk", "norm"), [(3, "layer"), (40, "scale")])
def test_gradients_are_differences_of_the_papers_pseudo_code(chunk: int, norm: str) -> None:
    model, expected = built(chunk, norm), paper_flash(chunk, norm)
    relative, absolute = BACKBONES["differences"], BACKBONES["differences near 0"]
    for name, got, difference in against.directional_derivatives(model, expected, *inputs(), seed=0):
        assert got == pytest.approx(difference, rel=relative, abs=absolute), name


def test_parameter_count_and_state_are_those_of_the_page() -> None:
    d, n, chunk = 128, 6, 64
    e, s = 2 * d, 128
    model = flash.build(flash.Config())
    layer = (d + 1) * (2 * e + s) + 2 * 4 * s + chunk + (e + 1) * d + 2 * d
    assert backbones.parameter_count(model) == n * layer + 2 * d == 701_056
    state = n * (s * e * 4 + chunk * (2 * s + e) * 4 + 8)
    assert backbones.state_bytes(model.init_state(1)) == state == 1_572_912


def test_initial_values_are_those_of_gau() -> None:
    torch.manual_seed(0)
    mixers = [block.mixer for block in backbones.build("flash", width=128, depth=8, chunk=16).blocks]
    close = BACKBONES["initial std"]
    for name, std in (("inner.weight", 128**-0.5), ("out.weight", 0.5 * 256**-0.5)):
        values = torch.cat([mixer.get_parameter(name).flatten() for mixer in mixers])
        assert values.std().item() == pytest.approx(std, rel=close), name
    gammas = torch.cat([FlashMixer(128, 4).gamma.flatten() for _ in range(40)])
    assert gammas.std().item() == pytest.approx(1.0, rel=close)
    for mixer in mixers:
        assert mixer.gamma.shape == mixer.beta.shape == (4, 128)
        assert not mixer.beta.any()
        assert (mixer.bias == 0.25).all()


def test_inside_an_episodes_first_chunk_it_is_gau() -> None:
    torch.manual_seed(0)
    chunk = 8
    mixer, unit = against.noisy(FlashMixer(WIDTH, chunk)), GauMixer(WIDTH, chunk).double()
    values = mixer.state_dict()
    # q_quad and k_quad are the first two views
    unit.load_state_dict(values | {name: values[name][:2] for name in ("gamma", "beta")})
    x = torch.randn(2, 2 * chunk, WIDTH, dtype=torch.float64)
    reset = torch.zeros(2, 2 * chunk, dtype=torch.bool)
    reset[1, 3] = reset[1, 3 + chunk] = True
    got, expected = mixer(x, None, reset)[0], unit(x, None, reset)[0]
    first = slice(0, chunk), slice(3, 3 + chunk)
    for row, tokens in enumerate(first):
        torch.testing.assert_close(got[row, tokens], expected[row, tokens], rtol=0, atol=BACKBONES["flash features"])
    assert not torch.allclose(got[0, chunk:], expected[0, chunk:])


def test_an_earlier_chunk_reaches_a_token_by_the_mean_alone() -> None:
    """Two pasts with one mean cannot be told apart, whatever their tokens were."""
    torch.manual_seed(0)
    chunk = 4
    mixer = against.noisy(FlashMixer(WIDTH, chunk))
    _, state = mixer(torch.randn(2, 3 * chunk, WIDTH, dtype=torch.float64))
    _, other = mixer(torch.randn(2, 3 * chunk, WIDTH, dtype=torch.float64))
    x = torch.randn(2, 2 * chunk, WIDTH, dtype=torch.float64)
    assert not torch.allclose(mixer(x, other)[0], mixer(x, state)[0])
    assert torch.equal(mixer(x, other._replace(mean=state.mean))[0], mixer(x, state)[0])


def test_the_weight_of_one_old_token_falls_as_one_over_the_number_of_chunks() -> None:
    """Why it cannot hold one cue over a long episode."""
    torch.manual_seed(0)
    chunk, chunks = 4, 50
    mixer = against.noisy(FlashMixer(WIDTH, chunk))
    x = torch.randn(1, chunks * chunk + 1, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 1] = torch.randn(WIDTH, dtype=torch.float64)
    difference = mixer(changed)[0] - mixer(x)[0]
    one, two = (mixer(tokens[:, :chunk])[1].mean for tokens in (x, changed))
    for n in (1, 2, 10, chunks):
        token = x[:, n * chunk]
        state = mixer.init_state(1)._replace(count=torch.tensor([n * chunk]))
        alone = [mixer.step(token, state._replace(mean=mean))[0] for mean in (one, two)]
        torch.testing.assert_close(
            n * difference[:, n * chunk], alone[1] - alone[0], rtol=0, atol=BACKBONES["one over chunks"]
        )


def test_chunk_is_part_of_the_weights() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        FlashMixer(8, 5).load_state_dict(FlashMixer(8, 6).state_dict())


def test_state_does_not_grow_with_the_episode_and_its_mean_is_float32() -> None:
    mixer = FlashMixer(WIDTH, 4)
    _, state = mixer(torch.randn(1, 101, WIDTH))
    assert backbones.state_bytes(state) == backbones.state_bytes(mixer.init_state(1))
    assert state.mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk must be a whole number >= 1, got 0"),
        ({"chunk": 2.0}, "chunk must be a whole number >= 1, got 2.0"),
        ({"norm": "rms"}, "norm must be one of layer, scale, got 'rms'"),
        ({"depth": 0}, "depth must be a whole number >= 1, got 0"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flash.Config(**options)  # type: ignore[arg-type]
