"""Aaren against torch's own attention with one constant query, in float64: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import aaren
from rlseq.backbones._aaren import AarenMixer
from rlseq.backbones._stack import Block, TwoLayerMLP
from rlseq.errors import ConfigError
from tests.tolerances import BACKBONES

WIDTH, ROWS, LENGTH = 12, 3, 17


def attention_of(mixer: AarenMixer) -> nn.MultiheadAttention:
    """torch's attention with the mixer's weights."""
    attention = nn.MultiheadAttention(WIDTH, mixer.heads, batch_first=True).double()
    parts = (mixer.to_query, mixer.to_key, mixer.to_value)
    del attention.in_proj_weight, attention.in_proj_bias
    attention.in_proj_weight = torch.cat([part.weight for part in parts])
    attention.in_proj_bias = torch.cat([part.bias for part in parts])
    attention.out_proj = mixer.out
    return attention


def hidden(reset: Tensor | None, heads: int) -> Tensor:
    """(B * heads, L, L) bool, True where attention must not look: the future, and other episodes."""
    seen = torch.ones(LENGTH, LENGTH).tril().bool().expand(ROWS, -1, -1)
    if reset is not None:
        episode = reset.long().cumsum(1)
        seen = seen & (episode[:, :, None] == episode[:, None, :])
    return ~seen.repeat_interleave(heads, dim=0)


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_values_and_gradients_are_those_of_attention_with_one_learned_query(heads: int, with_resets: bool) -> None:
    torch.manual_seed(0)
    mixer = AarenMixer(WIDTH, heads).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(ROWS, LENGTH) < 0.2 if with_resets else None
    weight = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    wanted = [x, *mixer.parameters()]

    got, _ = mixer(x, None, reset)
    got_gradients = torch.autograd.grad((got * weight).sum(), wanted)
    query = mixer.query.expand(ROWS, LENGTH, WIDTH)
    expected, _ = attention_of(mixer)(query, x, x, attn_mask=hidden(reset, heads), need_weights=False)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)

    torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["aaren features"])
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=BACKBONES["aaren gradients"])


def test_parameters_of_one_layer_are_the_papers_and_the_state_is_constant() -> None:
    """Section 4.5: 3,152,384 for a Transformer layer of width 512, and one query more for Aaren."""
    transformer = nn.TransformerEncoderLayer(512, 8, 2048)
    layer = Block(512, AarenMixer(512, 8), TwoLayerMLP(512, 4), norm=nn.LayerNorm)
    assert backbones.parameter_count(transformer) == 3_152_384
    assert backbones.parameter_count(layer) == 3_152_896
    model = backbones.build("aaren", width=128, depth=3, heads=4)
    assert backbones.state_bytes(model.init_state(1)) == 3 * 8 * (4 + 128) == 3_168


def test_a_cue_survives_a_distance_if_its_score_is_larger_by_the_logarithm() -> None:
    """T equal distractors of score 0 and a cue of score ln T weigh the same: what the page says of Aaren's memory."""
    mixer = AarenMixer(WIDTH, 1).double()
    distractors = 1_000
    z, o = torch.tensor([[math.log(distractors)]], dtype=torch.float64), torch.ones(1, 1, WIDTH, dtype=torch.float64)
    nn.init.zeros_(mixer.to_key.weight)
    nn.init.zeros_(mixer.to_key.bias)
    nn.init.zeros_(mixer.to_value.weight)
    nn.init.zeros_(mixer.to_value.bias)
    nn.init.eye_(mixer.out.weight)
    nn.init.zeros_(mixer.out.bias)
    state = type(mixer.init_state(1))(z, o)
    y, _ = mixer(torch.randn(1, distractors, WIDTH, dtype=torch.float64), state)
    torch.testing.assert_close(y[0, -1], torch.full((WIDTH,), 0.5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_query_starts_small_and_the_option_outside_its_range_is_refused() -> None:
    torch.manual_seed(0)
    queries = torch.cat([AarenMixer(128, 4).query for _ in range(80)])
    assert queries.std().item() == pytest.approx(0.02, rel=BACKBONES["initial std"])
    with pytest.raises(ConfigError, match="width must be a multiple of heads, got 128 and 3. Change one"):
        aaren.build(aaren.Config(heads=3))
    with pytest.raises(ConfigError, match="width must be a multiple of heads, got 12 and 5"):
        AarenMixer(12, 5)
    with pytest.raises(ConfigError, match=r"aaren: norm must be one of rms, layer, scale, got \[\]"):
        aaren.Config(norm=[])  # type: ignore[arg-type]
