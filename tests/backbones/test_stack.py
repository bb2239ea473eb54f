"""The stack: gradient checkpointing gives the same numbers from less memory; options, norms and MLPs by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from rlseq import backbones
from rlseq.backbones import Block, GatedMLP, RMSNorm, Stack, TwoLayerMLP
from rlseq.backbones._attention import AttentionMixer
from rlseq.backbones._gated_attention import GauMixer
from rlseq.backbones._pattern import MLPS, NORMS, stack
from rlseq.backbones._rg_lru import RecurrentConfig
from rlseq.backbones._stack import MixerConfig, ScaleNorm, StackConfig, WindowConfig, fan_in_linear
from rlseq.errors import ConfigError, ShapeError
from tests.oracles import against
from tests.oracles import backbones as oracle
from tests.tolerances import BACKBONES, CHECKPOINTING

WIDTH, DEPTH, ROWS, LENGTH = 16, 3, 3, 19


def built(name: str, again: bool, dropout: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small backbone, the same weights whether it is checkpointed or not."""
    options = {"width": WIDTH, "depth": DEPTH, "dropout": dropout, "gradient_checkpointing": again}
    configured = backbones.for_tokens(backbones.configure(name, **options), 5)
    torch.manual_seed(0)
    return against.noisy(backbones.load(name).build(configured)).to(dtype)


def loss_and_gradients(model: nn.Module, carried: bool = True) -> tuple[Tensor, list[Tensor], Any]:
    """A loss over two calls, the state carried from one to the other with its gradient where ``carried``."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    x = torch.randn(ROWS, 2 * LENGTH, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(ROWS, 2 * LENGTH, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    reset = torch.rand(ROWS, 2 * LENGTH, generator=generator) < 0.1
    torch.manual_seed(2)
    first, state = model(x[:, :LENGTH], None, reset[:, :LENGTH])
    if not carried:
        state = _pytree.tree_map(torch.Tensor.detach, state)
    second, state = model(x[:, LENGTH:], state, reset[:, LENGTH:])
    loss = (torch.cat([first, second], dim=1) * weight).sum()
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    return loss, list(gradients), state


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", backbones.available())
def test_checkpointing_changes_neither_loss_nor_gradients_nor_state(name: str, dropout: float) -> None:
    for dtype, close in CHECKPOINTING.items():
        plain = loss_and_gradients(built(name, False, dropout, dtype).train())
        again = loss_and_gradients(built(name, True, dropout, dtype).train())
        expected = [plain[0], *plain[1], *_pytree.tree_leaves(plain[2])]
        got = [again[0], *again[1], *_pytree.tree_leaves(again[2])]
        for a, b in zip(got, expected, strict=True):
            scale = b.detach().abs().max().clamp_min(1e-30)
            torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=close)


def test_gradient_flows_through_a_carried_state_of_a_checkpointed_stack() -> None:
    model = built("hawk", True, 0.0).train()
    flowing, stopped = (loss_and_gradients(model, carried)[1][0] for carried in (True, False))
    assert not torch.allclose(flowing[:, :LENGTH], stopped[:, :LENGTH])
    assert torch.equal(flowing[:, LENGTH:], stopped[:, LENGTH:])


def runs_of_blocks(model: nn.Module, work: Callable[[], Any]) -> int:
    """How many times a block runs forward while work is done."""
    runs: list[nn.Module] = []
    hooks = [block.register_forward_pre_hook(lambda block, _: runs.append(block)) for block in model.blocks]
    work()
    for hook in hooks:
        hook.remove()
    return len(runs)


@pytest.mark.parametrize("name", backbones.available())
def test_checkpointing_runs_a_block_again_in_training_only(name: str) -> None:
    x = torch.randn(1, 4, WIDTH)
    for again, times in ((True, 2), (False, 1)):
        model = built(name, again, 0.0, torch.float32)
        assert runs_of_blocks(model.train(), lambda m=model: m(x)[0].sum().backward()) == times * DEPTH
        assert runs_of_blocks(model.eval(), lambda m=model: m(x)[0].sum().backward()) == DEPTH


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of what a forward pass keeps for the backward pass, the parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = model(x)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", backbones.available())
def test_checkpointing_keeps_little_more_than_the_layers_inputs(name: str) -> None:
    x = torch.randn(2, 200, WIDTH)
    plain, again = (saved_bytes(built(name, flag, 0.0, torch.float32).train(), x) for flag in (False, True))
    one = x.numel() * x.element_size()
    # the inputs of three layers, and what the last norm keeps
    assert DEPTH * one <= again <= (DEPTH + 3) * one
    assert plain > 3 * again


def test_a_step_of_a_checkpointed_stack_is_a_step() -> None:
    plain, again = built("griffin", False, 0.0), built("griffin", True, 0.0).train()
    x, state = torch.randn(2, WIDTH, dtype=torch.float64), plain.init_state(2)
    assert torch.equal(again.step(x, state)[0], plain.step(x, state)[0])


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_their_equations(norm: str) -> None:
    torch.manual_seed(0)
    module = against.noisy(NORMS[norm](WIDTH))
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    equation = {"rms": oracle.rms_norm, "layer": oracle.layer_norm, "scale": oracle.scale_norm}[norm]
    expected = equation(against.as_numpy(module), x.numpy())
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=0, atol=BACKBONES["norms"])


@pytest.mark.parametrize("norm", NORMS)
def test_norms_start_with_unit_mean_square_and_take_zeros(norm: str) -> None:
    module = NORMS[norm](WIDTH)
    y = module(7 * torch.randn(64, WIDTH))
    torch.testing.assert_close(y.square().mean(-1), torch.ones(64), rtol=0, atol=BACKBONES["unit mean square"])
    zeros = torch.zeros(2, WIDTH, requires_grad=True)
    module(zeros).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
    assert not module(zeros).any()


def test_mlps_are_their_equations() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    gated, plain = against.noisy(GatedMLP(WIDTH)), against.noisy(TwoLayerMLP(WIDTH))
    expected = oracle.gated_mlp(against.as_numpy(gated), x.numpy())
    np.testing.assert_allclose(gated(x).detach().numpy(), expected, rtol=0, atol=BACKBONES["mlps"])
    p = against.as_numpy(plain)
    expected = oracle.linear(p, "down", np.maximum(oracle.linear(p, "up", x.numpy()), 0.0))
    np.testing.assert_allclose(plain(x).detach().numpy(), expected, rtol=0, atol=BACKBONES["mlps"])
    assert gated.down.in_features == 3 * WIDTH
    assert plain.down.in_features == 4 * WIDTH
    assert gated.up.out_features == 6 * WIDTH


def test_linear_of_a_fan_in_starts_as_it_says() -> None:
    torch.manual_seed(0)
    linear = fan_in_linear(400, 600, 0.5)
    assert linear.weight.std().item() == pytest.approx(0.5 * 400**-0.5, rel=BACKBONES["initial std"])
    assert not linear.bias.any()


def test_block_without_an_mlp_is_its_mixer_alone() -> None:
    torch.manual_seed(0)
    block = Block(WIDTH, RecurrentConfig(heads=1).mixer(WIDTH, 0.0, 1.0), None, norm=ScaleNorm)
    assert not [name for name, _ in block.named_parameters() if name.startswith("mlp")]
    x = torch.randn(2, 7, WIDTH)
    assert torch.equal(block(x)[0], x + block.mixer(block.mixer_norm(x))[0])


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("norm", NORMS)
def test_pattern_gives_every_layer_the_norm_and_mlp_asked_for(norm: str, mlp: str) -> None:
    model = stack(StackConfig(width=WIDTH, depth=None), [RecurrentConfig(heads=1)] * 2, norm=norm, mlp=mlp)
    kinds = {"rms": RMSNorm, "layer": nn.LayerNorm, "scale": ScaleNorm}
    norms = [model.last_norm, *(part for block in model.blocks for part in (block.mixer_norm, block.mlp_norm))]
    assert {type(part) for part in norms} == {kinds[norm]}
    assert [type(block.mlp) for block in model.blocks] == 2 * [{"gated": GatedMLP, "relu": TwoLayerMLP}[mlp]]


def test_depth_none_is_one_time_through_the_pattern() -> None:
    for name, layers in (("hawk", 1), ("griffin", 3), ("hybrid", 3), ("flash", 1)):
        model = backbones.build(name, width=WIDTH, depth=None)  # type: ignore[arg-type]
        assert len(model.blocks) == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_checkpointing": None}, "gradient_checkpointing must be True or False, got None"),
        ({"dropout": "0.1"}, r"dropout must be in \[0, 1\), got '0.1'"),
        ({"dropout": True}, r"dropout must be in \[0, 1\), got True"),
        ({"width": 2.0}, "width must be a whole number >= 1, got 2.0"),
        ({"depth": 0}, "depth must be a whole number >= 1, got 0"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StackConfig(**options)


@pytest.mark.parametrize("mlp", [GatedMLP, TwoLayerMLP])
def test_an_mlp_without_units_is_refused(mlp: type[GatedMLP] | type[TwoLayerMLP]) -> None:
    with pytest.raises(ConfigError, match=f"{mlp.__name__}: width must be a whole number >= 1, got 0. Give one."):
        mlp(0)
    with pytest.raises(ConfigError, match="expansion must be a whole number >= 1, got 0.5"):
        mlp(8, 0.5)  # type: ignore[arg-type]


def test_window_is_filled_in_once_and_needed_at_the_end() -> None:
    options = WindowConfig()
    assert not options.recurrent
    assert options.for_tokens(60).known_window() == 60
    assert options.for_tokens(60).for_tokens(9).known_window() == 60
    assert WindowConfig(window=7).for_tokens(60) == WindowConfig(window=7)
    with pytest.raises(ConfigError, match="window must be a number of tokens, got None"):
        options.known_window()
    with pytest.raises(ConfigError, match="window must be a whole number >= 1, got -1"):
        WindowConfig(window=-1)
    with pytest.raises(NotImplementedError):
        MixerConfig().mixer(WIDTH, 0.0, 1.0)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), None], ids=str)
@pytest.mark.parametrize("few", [1, 3, 4])
@torch.no_grad()
def test_a_few_tokens_after_a_state_are_those_of_the_whole(heads: tuple[int, int] | None, few: int) -> None:
    torch.manual_seed(0)
    if heads is None:
        mixer = GauMixer(WIDTH, 5).double()
    else:
        mixer = AttentionMixer(WIDTH, heads[0], 5, key_heads=heads[1], rope=1.0).double()
    x, reset = torch.randn(ROWS, 18, WIDTH, dtype=torch.float64), torch.rand(ROWS, 18) < 0.1
    whole, last = mixer(x, None, reset)
    state, parts = mixer.init_state(ROWS), []
    for piece, flags in zip(x.split(few, 1), reset.split(few, 1), strict=True):
        o, state = mixer(piece, state, flags)
        parts.append(o)
    for got, expected in zip((torch.cat(parts, 1), *state), (whole, *last), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=BACKBONES["few tokens"])


def test_a_state_of_another_depth_is_refused_by_a_checkpointed_stack_too() -> None:
    model = built("hawk", True, 0.0, torch.float32).train()
    with pytest.raises(ShapeError, match="state must have one entry for each of 3 layers, got 2"):
        model(torch.zeros(2, 4, WIDTH), model.init_state(2)[:2])


def test_initial_state_goes_to_the_device_and_dtype_of_the_parameters() -> None:
    model = Stack(WIDTH, [Block(WIDTH, RecurrentConfig(heads=1).mixer(WIDTH, 0.0, 1.0), None)]).to(
        "meta", torch.bfloat16
    )
    conv, hidden = model.init_state(2)[0]
    assert (conv.device.type, conv.dtype) == ("meta", torch.bfloat16)
    assert (hidden.device.type, hidden.dtype) == ("meta", torch.float64)
