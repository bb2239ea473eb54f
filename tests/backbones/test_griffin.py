"""Griffin against a float64 NumPy loop written from the paper; its attention against dense attention; its page."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import griffin
from rlseq.backbones._attention import AttentionConfig, AttentionMixer
from rlseq.backbones._rg_lru import RecurrentMixer, recurrent_width
from rlseq.backbones._rope import rotate
from rlseq.errors import ConfigError
from tests.oracles import against, dense_attention
from tests.oracles import backbones as oracle
from tests.oracles.backbones import Parameters
from tests.tolerances import BACKBONES

WIDTH, HEADS, DEPTH, WINDOW, ROWS, LENGTH = 16, 2, 4, 3, 2, 9


def paper_griffin(p: Parameters, x: np.ndarray, reset: np.ndarray) -> np.ndarray:
    """Figure 2a and section 2.3 for one row x (L, D): two recurrent blocks, one of local attention, and again."""
    local = functools.partial(oracle.multi_query_attention, heads=HEADS, window=WINDOW)
    pattern = [oracle.recurrent_block, oracle.recurrent_block, local, oracle.recurrent_block]
    return oracle.stack(p, x, reset, pattern, oracle.rms_norm)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return against.noisy(backbones.build("griffin", width=WIDTH, depth=DEPTH, heads=HEADS, window=WINDOW))


def inputs() -> tuple[Tensor, Tensor]:
    return against.inputs(ROWS, LENGTH, WIDTH, {0: [0, 4], 1: [6, 7]})


def test_features_are_the_papers_equations(model: nn.Module) -> None:
    x, reset = inputs()
    assert against.largest_difference(model, paper_griffin, x, reset) <= BACKBONES["griffin features"]
    assert against.largest_difference(model, paper_griffin, x, None) <= BACKBONES["griffin features"]


@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_differences_of_the_papers_equations(model: nn.Module, seed: int) -> None:
    relative, absolute = BACKBONES["differences"], BACKBONES["differences near 0"]
    for name, got, expected in against.directional_derivatives(model, paper_griffin, *inputs(), seed):
        assert got == pytest.approx(expected, rel=relative, abs=absolute), name


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(
    ("heads", "key_heads", "rope", "rotated", "window"),
    [
        (3, 1, 0.5, 4, 5),
        (4, 2, 0.5, 2, 4),
        (4, 4, 1.0, 6, 30),
        (2, 1, 0.0, 0, 1),
        (8, 1, 0.5, 0, 7),
        (1, 1, 0.6, 14, 17),
    ],
)
def test_attention_is_dense_attention_under_a_mask(
    heads: int, key_heads: int, rope: float, rotated: int, window: int, with_resets: bool
) -> None:
    torch.manual_seed(0)
    width = 24
    mixer = against.noisy(AttentionMixer(width, heads, window, key_heads=key_heads, rope=rope))
    assert mixer.rotated == rotated
    x = torch.randn(3, 17, width, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(3, 17) < 0.2 if with_resets else None
    weight = torch.randn_like(x)
    wanted = [x, *mixer.parameters()]

    got, _ = mixer(x, None, reset)
    got_gradients = torch.autograd.grad((got * weight).sum(), wanted)
    p = dict(mixer.named_parameters())
    expected = dense_attention.attention(p, x, reset, heads, key_heads, window, rotated)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)

    torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["attention values"])
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=BACKBONES["attention gradients"])


def test_layers_are_recurrent_recurrent_local_and_again() -> None:
    for depth in (1, 3, 7):
        model = backbones.build("griffin", width=16, depth=depth, heads=2, window=5)
        kinds = [type(block.mixer) for block in model.blocks]
        assert kinds == [RecurrentMixer, RecurrentMixer, AttentionMixer, RecurrentMixer, RecurrentMixer,
                         AttentionMixer, RecurrentMixer][:depth]  # fmt: skip
    local = model.blocks[2].mixer
    assert (local.heads, local.key_heads, local.window, local.size, local.rotated) == (2, 1, 5, 8, 4)


def test_parameter_count_is_the_sum_of_its_matrices() -> None:
    d, n, h, window = 128, 3, 4, 64
    r, e = recurrent_width(d, h), d // h
    recurrent = (d + 1) * 2 * r + (4 + 1) * r + (r * r // h + r) * 2 + r + (r + 1) * d
    local = (d + 1) * (h + 2) * e + (d + 1) * d
    mlp = (d + 1) * 6 * d + (3 * d + 1) * d
    model = backbones.build("griffin", width=d, depth=n)
    assert backbones.parameter_count(model) == 2 * recurrent + local + n * (mlp + 2 * d) + d == 675_648
    ring = 2 * window * e * 4 + 8
    assert backbones.state_bytes(model.init_state(1)) == 2 * (3 * r * 4 + r * 8) + ring == 24_072


def test_initial_values_are_the_papers() -> None:
    torch.manual_seed(0)
    model = griffin.build(griffin.Config(width=256, depth=8))
    close = BACKBONES["initial std"]
    for index in (2, 5):
        mixer = model.blocks[index].mixer
        assert mixer.qkv.weight.std().item() == pytest.approx(256**-0.5, rel=close)
        assert mixer.out.weight.std().item() == pytest.approx(0.5 * 256**-0.5, rel=close)
        assert not mixer.qkv.bias.any()
        assert not mixer.out.bias.any()


def test_rotation_is_exact_at_position_1_000_000() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 1, 6, dtype=torch.float64)
    position = torch.randint(1_000_000, 1_001_000, (50,))
    expected = oracle.rotary(x[:, 0].numpy(), position.numpy(), 4)
    for dtype, close in ((torch.float64, "rotation float64"), (torch.float32, "rotation float32")):
        got = rotate(x.to(dtype), position, 4)[:, 0].double().numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=BACKBONES[close])


def test_attention_depends_on_distances_alone_however_far_into_an_episode() -> None:
    torch.manual_seed(0)
    window = 6
    mixer = AttentionMixer(32, 2, window, key_heads=1, rope=0.5)
    x = torch.randn(2, 40, 32)
    near, _ = mixer(x)
    state = mixer.init_state(2)
    far, state = mixer(x, state._replace(count=state.count + 1_000_000))
    # before its sixth token the far episode sees the empty slots of its ring
    torch.testing.assert_close(far[:, window - 1 :], near[:, window - 1 :], rtol=0, atol=BACKBONES["far attention"])
    assert state.count.tolist() == [1_000_040] * 2


def gradients_by_token(model: nn.Module, token: int) -> Tensor:
    """(L,) largest gradient of one token's features with respect to each token."""
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64, requires_grad=True)
    model(x)[0][0, token].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().amax(-1)


def test_local_attention_sees_its_window_and_the_recurrent_layers_carry_the_rest(model: nn.Module) -> None:
    by_token = gradients_by_token(model.blocks[2].mixer, 10)
    assert (by_token > 0).tolist() == [10 - WINDOW < token <= 10 for token in range(12)]
    assert (gradients_by_token(model, 10)[:11] > 0).all()


def test_a_token_of_the_window_can_be_copied_exactly_and_no_older_one() -> None:
    """Content is matched by the half of the entries that is not rotated, at any distance."""
    width, window, marked = 8, 6, 3
    mixer = AttentionMixer(width, 1, window, key_heads=1, rope=0.5).double()
    with torch.no_grad():
        mixer.qkv.weight.zero_()
        mixer.qkv.bias[width - 1] = 100.0
        mixer.qkv.weight[2 * width - 1, width - 1] = 100.0
        mixer.qkv.weight[2 * width :] = torch.eye(width)
        mixer.out.weight.copy_(torch.eye(width))
    x = torch.randn(1, 14, width, dtype=torch.float64)
    x[..., -1] = 0.0
    x[:, marked, -1] = 1.0
    copied = (mixer(x)[0] == x[:, marked : marked + 1]).all(-1)[0]
    assert copied.tolist() == [marked <= t < marked + window for t in range(14)]


def test_multi_query_divides_the_ring_by_the_heads() -> None:
    def ring(key_heads: int) -> int:
        return backbones.state_bytes(AttentionMixer(64, 8, 10, key_heads=key_heads).init_state(1)) - 8

    assert ring(8) == 8 * ring(1)


def test_without_rotation_the_order_of_the_keys_does_not_matter() -> None:
    """What rotary positions are there for."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    shuffled = x[:, [2, 0, 3, 1, 4]]
    for rope, same in ((0.0, True), (0.5, False)):
        mixer = AttentionMixer(16, 2, 5, rope=rope).double()
        difference = (mixer(x)[0][:, -1] - mixer(shuffled)[0][:, -1]).abs().max()
        assert bool(difference < BACKBONES["attention values"]) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
        ({"window": None}, "window must be a whole number >= 1, got None"),
        ({"heads": 3}, "width must be a multiple of heads, got 16 and 3"),
        ({"heads": 0}, "griffin: heads must be a whole number >= 1, got 0. Give one."),
        ({"decay_init": "new"}, "decay_init must be one of paper, released, hold, got 'new'"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be True or False, got 1"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build("griffin", width=16, depth=3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope": 1.5}, r"rope must be in \[0, 1\], got 1.5"),
        ({"rope": float("nan")}, r"rope must be in \[0, 1\], got nan"),
        ({"rope": "x"}, r"rope must be in \[0, 1\], got 'x'"),
        ({"rope": True}, r"rope must be in \[0, 1\], got True"),
        ({"key_heads": 0}, "key_heads must be a whole number >= 1, got 0"),
        ({"heads": 2.0}, "heads must be a whole number >= 1, got 2.0"),
    ],
)
def test_option_of_attention_outside_its_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionConfig(**options)  # type: ignore[arg-type]
