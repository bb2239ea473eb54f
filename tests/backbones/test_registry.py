"""The folder is the registry: names, plug-ins, options, and the errors of each; shapes that do not fit a Stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlseq import backbones
from rlseq.backbones import Backbone, Mixer
from rlseq.errors import ConfigError, ShapeError, UnknownNameError


def test_available_lists_the_public_files_of_the_folder() -> None:
    folder = Path(backbones.__file__).parent
    assert backbones.available() == sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))
    assert {"hawk", "transformer"} <= set(backbones.available())


@pytest.mark.parametrize("name", backbones.available())
def test_built_backbone_is_a_backbone_with_the_common_fields(name: str) -> None:
    config = backbones.config_class(name)(width=16, depth=2)
    assert (config.width, config.depth) == (16, 2)
    assert 0 <= config.dropout < 1
    options = {"window": 4} if hasattr(config, "window") else {}
    model = backbones.build(name, width=16, depth=2, **options)
    assert isinstance(model, Backbone)
    assert isinstance(model.blocks[0].mixer, Mixer)
    assert backbones.parameter_count(model) == sum(parameter.numel() for parameter in model.parameters())


def test_same_seed_gives_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(backbones.build("hawk", width=16, depth=1))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_backbone_or_option_names_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown backbone 'hawkk'\. Did you mean 'hawk'\? Known: .*transformer"
    ):
        backbones.build("hawkk", width=16, depth=1)
    with pytest.raises(UnknownNameError, match=r"option of backbone hawk 'drop_out'\. Did you mean 'dropout'\?"):
        backbones.build("hawk", width=16, depth=1, drop_out=0.1)


@pytest.mark.parametrize("name", ["_stack", "", "HAWK", "hawk.py", "no_such_package.mine", "rlseq.backbones.none"])
def test_name_that_is_no_backbone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        backbones.load(name)


def test_those_that_see_a_window_are_not_recurrent() -> None:
    windowed = {name for name in backbones.available() if not backbones.is_recurrent(backbones.configure(name))}
    assert windowed == {"gau", "transformer"}


@pytest.mark.parametrize("width", [10**9, 10**19])
def test_weights_that_no_memory_holds_are_one_line(width: int) -> None:
    told = rf"the weights of hawk must fit into the memory, got Config\(.*width={width}, depth=3.*\). Make it smaller."
    with pytest.raises(ConfigError, match=f"^from_config: {told}$"):
        backbones.build("hawk", width=width, depth=3)


def test_what_else_goes_wrong_in_our_own_code_is_no_matter_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(backbones.load("hawk"), "build", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        backbones.build("hawk", width=16, depth=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("griffin", {"heads": 3}, "griffin: width must be a multiple of heads, got 16 and 3"),
        (
            "transformer",
            {"heads": 4, "key_heads": 3, "window": 4},
            "transformer: heads must be a multiple of key",
        ),
        ("hybrid", {"aaren": {"heads": 3}}, "hybrid.aaren: width must be a multiple of heads, got 16 and 3"),
        ("hybrid", {"local": {"heads": 5}}, "hybrid.local: width must be a multiple of heads, got 16 and 5"),
        (
            "hybrid",
            {"pattern": ["attn"], "attn": {"heads": 3, "window": 4}},
            "hybrid.attn: width must be a multiple",
        ),
    ],
)
def test_sizes_that_do_not_fit_name_whose_option_it_is(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        backbones.build(name, width=16, depth=3, **options)


@pytest.fixture
def model() -> nn.Module:
    return backbones.build("hawk", width=16, depth=2)


def test_misfit_names_both_shapes(model: nn.Module) -> None:
    state = model.init_state(2)
    with pytest.raises(ShapeError, match=r"forward: x must be \(B, L, D\) with D = 16, got \(2, 5, 8\)"):
        model(torch.zeros(2, 5, 8))
    with pytest.raises(ShapeError, match=r"step: x must be \(B, D\) with D = 16, got \(2, 1, 16\)"):
        model.step(torch.zeros(2, 1, 16), state)
    with pytest.raises(ShapeError, match=r"reset must be bool of shape \(2, 5\), got torch.bool \(2, 4\)"):
        model(torch.zeros(2, 5, 16), None, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"reset must be bool of shape \(2,\), got torch.float32 \(2,\)"):
        model.step(torch.zeros(2, 16), state, torch.zeros(2))
    with pytest.raises(ShapeError, match="state must have one entry for each of 2 layers, got 1"):
        model.step(torch.zeros(2, 16), state[:1])


@pytest.mark.parametrize("name", backbones.available())
def test_state_of_other_rows_is_refused_in_words(name: str) -> None:
    options = {"window": 4} if hasattr(backbones.config_class(name), "window") else {}
    model = backbones.build(name, width=16, depth=3, **options)
    for rows in (1, 3):
        state = model.init_state(rows)
        with pytest.raises(
            ShapeError, match=rf"step: state must have as many rows as x, 2, got \({rows}, .*init_state\(2"
        ):
            model.step(torch.zeros(2, 16), state)
        with pytest.raises(ShapeError, match="forward: state must have as many rows as x, 2, got"):
            model(torch.zeros(2, 5, 16), state)


@pytest.mark.parametrize("name", backbones.available())
def test_step_exports_for_any_number_of_rows(name: str) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = backbones.build(name, width=16, depth=3, **options)

        def forward(self, x: torch.Tensor, state: Any) -> Any:
            return self.model.step(x, state)

    options = {"window": 4} if hasattr(backbones.config_class(name), "window") else {}
    module = Step().eval()
    args = (torch.randn(3, 16), module.model.init_state(3))
    rows = torch.export.Dim("rows", min=2)
    shapes = torch.utils._pytree.tree_map(lambda leaf: {0: rows}, args)
    program = torch.export.export(module, args, dynamic_shapes=shapes)
    args = (torch.randn(5, 16), module.model.init_state(5))
    torch.testing.assert_close(program.module()(*args), module(*args))


def test_stack_of_ones_own_mixers_is_a_backbone() -> None:
    from rlseq.backbones import Block, GatedMLP, Stack, TwoLayerMLP
    from rlseq.backbones._attention import AttentionMixer
    from rlseq.backbones._rg_lru import RecurrentMixer
    from rlseq.conformance import LAWS, Subject

    def make() -> nn.Module:
        return Stack(
            16,
            [
                Block(16, RecurrentMixer(16, heads=1), GatedMLP(16)),
                Block(16, AttentionMixer(16, heads=2, window=3), None),
                Block(16, AttentionMixer(16, heads=1, window=4), TwoLayerMLP(16), norm=nn.LayerNorm),
            ],
            norm=nn.LayerNorm,
        )

    for law in ("forward_equals_steps", "packed_row_equals_its_episodes"):
        LAWS[law](Subject(make, 16, cases=3))


def test_operations_of_a_step_are_two_for_every_weight_of_a_matrix_product() -> None:
    model = backbones.build("hawk", width=32, depth=2)
    weights = [p for name, p in model.named_parameters() if p.ndim >= 2 and "conv" not in name and "bias" not in name]
    assert backbones.step_flops(model, 32) == 2 * sum(weight.numel() for weight in weights)
    short, long = (backbones.build("transformer", width=32, depth=2, window=window) for window in (10, 20))
    # scores and sums: 2 layers, 10 more keys, 2 products of 32 entries
    assert backbones.step_flops(long, 32) - backbones.step_flops(short, 32) == 2 * 10 * 2 * 2 * 32
