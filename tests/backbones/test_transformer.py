"""The Transformer against torch's own layers and dense attention, under a mask, in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlseq import backbones
from rlseq.backbones import transformer
from rlseq.errors import ConfigError
from tests.oracles import against, dense_attention
from tests.tolerances import BACKBONES

WIDTH, DEPTH, ROWS, LENGTH = 12, 2, 3, 17


def torch_stack(model: nn.Module, heads: int) -> tuple[list[nn.TransformerEncoderLayer], nn.LayerNorm]:
    """Layers of torch with the model's weights."""
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, heads, 4 * WIDTH, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        ).double()
        attention = block.mixer
        layer.self_attn.in_proj_weight = attention.qkv.weight
        layer.self_attn.in_proj_bias = attention.qkv.bias
        layer.self_attn.out_proj = attention.out
        layer.linear1, layer.linear2 = block.mlp.up, block.mlp.down
        layer.norm1, layer.norm2 = block.mixer_norm, block.mlp_norm
        layers.append(layer)
    return layers, model.last_norm


def hidden_keys(window: int, reset: Tensor | None, heads: int) -> Tensor:
    """(B * heads, L, L) bool, True where torch's attention must not look."""
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = ((distance >= 0) & (distance < window)).expand(ROWS, -1, -1)
    if reset is not None:
        episode = reset.long().cumsum(1)
        seen = seen & (episode[:, :, None] == episode[:, None, :])
    return ~seen.repeat_interleave(heads, dim=0)


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(("window", "heads"), [(LENGTH, 1), (5, 1), (5, 3), (1, 2), (40, 4)])
def test_values_and_gradients_are_those_of_torchs_layers(window: int, heads: int, with_resets: bool) -> None:
    torch.manual_seed(0)
    model = against.noisy(
        backbones.build("transformer", width=WIDTH, depth=DEPTH, window=window, heads=heads, dropout=0.0)
    )
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(ROWS, LENGTH) < 0.2 if with_resets else None
    weight = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    wanted = [x, *model.parameters()]

    got = model(x, None, reset)[0]
    got_gradients = torch.autograd.grad((got * weight).sum(), wanted)
    layers, last_norm = torch_stack(model, heads)
    expected = x
    for layer in layers:
        expected = layer(expected, src_mask=hidden_keys(window, reset, heads))
    expected = last_norm(expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)

    torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["transformer features"])
    close = BACKBONES["transformer gradients"]
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=close)


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(
    ("window", "heads", "key_heads"), [(LENGTH, 1, None), (5, 3, None), (5, 3, 1), (40, 2, 1), (1, 2, 2), (7, 4, 2)]
)
def test_modern_values_and_gradients_are_those_of_dense_attention(
    window: int, heads: int, key_heads: int | None, with_resets: bool
) -> None:
    torch.manual_seed(0)
    options = {"window": window, "heads": heads, "key_heads": key_heads, "preset": "modern", "dropout": 0.0}
    model = against.noisy(backbones.build("transformer", width=WIDTH, depth=DEPTH, **options))
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(ROWS, LENGTH) < 0.2 if with_resets else None
    weight = torch.randn_like(x)
    p = dict(model.named_parameters())
    wanted = [x, *p.values()]

    got = model(x, None, reset)[0]
    got_gradients = torch.autograd.grad((got * weight).sum(), wanted)
    expected = dense_attention.modern_transformer(p, x, reset, DEPTH, heads, key_heads or heads, window)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)

    torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["modern features"])
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=BACKBONES["modern gradients"])


def test_key_heads_shrink_the_published_preset_too() -> None:
    torch.manual_seed(0)
    model = against.noisy(backbones.build("transformer", width=12, depth=1, window=5, heads=4, key_heads=2)).eval()
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    block = model.blocks[0]
    p = dict(block.mixer.named_parameters())
    y = x + dense_attention.attention(p, block.mixer_norm(x), None, 4, 2, 5, 0)
    expected = model.last_norm(y + block.mlp(block.mlp_norm(y)))
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=BACKBONES["modern features"])


def test_parameter_count_and_state_of_the_modern_preset() -> None:
    d, n, window, heads = 128, 3, 60, 4
    options = {"window": window, "heads": heads, "preset": "modern"}
    mlp = (d + 1) * 6 * d + (3 * d + 1) * d
    for key_heads, parameters, state in ((4, 644_096, 184_344), (1, 569_792, 46_104)):
        model = backbones.build("transformer", width=d, depth=n, key_heads=key_heads, **options)
        layer = (d + 1) * (heads + 2 * key_heads) * d // heads + (d + 1) * d + mlp + 2 * d
        assert backbones.parameter_count(model) == n * layer + d == parameters
        ring = 2 * window * d * key_heads // heads * 4 + 8
        assert backbones.state_bytes(model.init_state(1)) == n * ring == state


def test_modern_initial_values_shrink_with_the_depth() -> None:
    torch.manual_seed(0)
    model = backbones.build("transformer", width=256, depth=8, window=4, preset="modern")
    close = BACKBONES["initial std"]
    for block in model.blocks:
        for linear, std in (
            (block.mixer.qkv, 256**-0.5),
            (block.mixer.out, 0.5 * 256**-0.5),
            (block.mlp.up, 256**-0.5),
            (block.mlp.down, 0.5 * (3 * 256) ** -0.5),
        ):
            assert linear.weight.std().item() == pytest.approx(std, rel=close)
            assert not linear.bias.any()


def test_parameter_count_and_state_are_those_of_the_published_model() -> None:
    d, n, window = 128, 3, 60
    model = backbones.build("transformer", width=d, depth=n, window=window)
    layer = (d + 1) * 3 * d + (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d + 4 * d
    assert backbones.parameter_count(model) == n * layer + 2 * d == 595_072
    assert backbones.state_bytes(model.init_state(1)) == n * (2 * window * d * 4 + 8) == 184_344


def test_initial_values_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    model = backbones.build("transformer", width=128, depth=2, window=4)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 8
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=BACKBONES["initial std"])
        assert not linear.bias.any()


def test_dropout_reaches_weights_attention_and_residuals() -> None:
    model = backbones.build("transformer", width=8, depth=1, window=4, dropout=0.25)
    assert model.blocks[0].dropout == model.blocks[0].mixer.dropout == 0.25
    x = torch.ones(400, 1, 8)
    dropped = model.blocks[0]._drop(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=BACKBONES["dropped share"])
    assert dropped.max().item() == pytest.approx(1 / 0.75)


def test_missing_window_is_refused_when_built_not_when_configured() -> None:
    config = transformer.Config()
    with pytest.raises(ConfigError, match="window must be a number of tokens, got None"):
        transformer.build(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width must be a multiple of heads, got 128 and 3"),
        ({"heads": 4, "key_heads": 3}, "heads must be a multiple of key_heads, got 4 and 3"),
        ({"key_heads": 0}, "transformer: key_heads must be a whole number >= 1, got 0"),
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
        ({"preset": "new"}, "preset must be one of decision-transformer, modern, got 'new'"),
        ({"dropout": 2}, "dropout must be in"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build("transformer", width=128, depth=1, **{"window": 4, **options})
