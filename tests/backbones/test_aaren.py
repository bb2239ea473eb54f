"""Aaren against torch's own attention with one constant query, in float64: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import aaren
from rlseq.backbones._aaren import AarenMixer
from rlseq.errors import ConfigError
from tests.oracles import against
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


def attended(mixer: AarenMixer, x: Tensor, reset: Tensor | None) -> Tensor:
    """What torch's attention makes of the tokens with the mixer's one query."""
    query = mixer.query.expand(ROWS, LENGTH, WIDTH)
    return attention_of(mixer)(query, x, x, attn_mask=hidden(reset, mixer.heads), need_weights=False)[0]


def agree(got: Tensor, expected: Tensor, weight: Tensor, wanted: list[Tensor]) -> None:
    """Values and the gradients of a weighted sum of them are the same."""
    torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["aaren features"])
    gradients = (torch.autograd.grad((one * weight).sum(), wanted) for one in (got, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=BACKBONES["aaren gradients"])


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
    agree(got, attended(mixer, x, reset), weight, wanted)


def test_values_and_gradients_of_the_published_layers_are_those_of_torchs_modules() -> None:
    torch.manual_seed(0)
    model = against.noisy(backbones.build("aaren", width=WIDTH, depth=2, heads=3))
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    reset, weight = torch.rand(ROWS, LENGTH) < 0.2, torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    p = dict(model.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    expected = x
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        expected = expected + attended(block.mixer, norm(f"{at}.mixer_norm", expected), reset)
        hidden_units = linear(f"{at}.mlp.up", norm(f"{at}.mlp_norm", expected)).relu()
        expected = expected + linear(f"{at}.mlp.down", hidden_units)
    agree(model(x, None, reset)[0], norm("last_norm", expected), weight, [x, *model.parameters()])


def test_parameters_of_one_layer_are_the_papers_and_the_state_is_constant() -> None:
    """Section 4.5: 3,152,384 for a Transformer layer of width 512, and one query more for Aaren."""
    options = {"transformer": {"window": 60}, "aaren": {}}
    layers = {name: backbones.build(name, width=512, depth=1, heads=8, **given) for name, given in options.items()}
    counts = {name: backbones.parameter_count(model.blocks[0]) for name, model in layers.items()}
    assert counts == {"transformer": 3_152_384, "aaren": 3_152_896}
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
