"""Hybrid: the named backbones are patterns of it; options of a kind, their errors, JSON and the command line; laws."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlseq import backbones, config, conformance, recipes, run
from rlseq.backbones import hybrid
from rlseq.backbones._aaren import AarenMixer
from rlseq.backbones._attention import AttentionConfig, AttentionMixer, LocalAttentionConfig
from rlseq.backbones._gated_attention import FlashMixer, GauMixer
from rlseq.backbones._rg_lru import RecurrentMixer
from rlseq.cli import main
from rlseq.errors import ConfigError, UnknownNameError

KINDS = ("rec", "attn", "local", "aaren", "gau", "flash")
MIXERS = {
    "rec": RecurrentMixer,
    "attn": AttentionMixer,
    "local": AttentionMixer,
    "aaren": AarenMixer,
    "gau": GauMixer,
    "flash": FlashMixer,
}

# a backbone and its options, and the same as a pattern
SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "hawk": (
        "hawk",
        {"heads": 2, "depth": 3},
        {"pattern": ["rec"], "depth": 3, "rec": {"heads": 2, "decay_init": "paper"}},
    ),
    "griffin": (
        "griffin",
        {"depth": 7, "window": 5},
        {"pattern": ["rec", "rec", "local"], "local": {"window": 5}, "rec": {"decay_init": "paper"}},
    ),
    "aaren": ("aaren", {"depth": 2}, {"pattern": ["aaren"], "norm": "layer", "mlp": "relu"}),
    "transformer": (
        "transformer",
        {"depth": 2, "window": 5, "heads": 2},
        {"pattern": ["attn"], "norm": "layer", "mlp": "relu", "attn": {"window": 5, "heads": 2, "rope": 0.0}},
    ),
    "modern": (
        "transformer",
        {"depth": 2, "window": 5, "heads": 4, "key_heads": 2, "preset": "modern"},
        {"pattern": ["attn"], "attn": {"window": 5, "key_heads": 2}},
    ),
    "gau": ("gau", {"depth": 3, "window": 5}, {"pattern": ["gau"], "norm": "layer", "gau": {"window": 5}}),
    "gau-scale": ("gau", {"depth": 2, "window": 5, "norm": "scale"}, {"pattern": ["gau"], "norm": "scale"}),
    "flash": ("flash", {"depth": 3, "chunk": 4}, {"pattern": ["flash"], "norm": "layer", "flash": {"chunk": 4}}),
}


@pytest.mark.parametrize(("name", "options", "pattern"), SAME.values(), ids=SAME)
def test_named_backbone_is_a_pattern(name: str, options: dict[str, Any], pattern: dict[str, Any]) -> None:
    torch.manual_seed(0)
    named = backbones.build(name, width=16, **options).eval()
    configured = backbones.configure("hybrid", width=16, **{"depth": options["depth"], **pattern})
    same = hybrid.build(backbones.for_tokens(configured, 5)).eval()
    same.load_state_dict(named.state_dict(), strict=True)
    x, reset = torch.randn(2, 21, 16), torch.rand(2, 21) < 0.2
    for got, expected in zip(same(x, None, reset), named(x, None, reset), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    state = named.init_state(2)
    assert torch.equal(same.step(x[:, 0], state)[0], named.step(x[:, 0], state)[0])


@pytest.mark.parametrize("name", sorted(SAME.keys() - {"transformer", "gau-scale"}))
def test_pattern_has_the_initial_values_of_the_named_backbone(name: str) -> None:
    backbone, options, pattern = SAME[name]
    torch.manual_seed(0)
    named = backbones.build(backbone, width=16, **options).state_dict()
    torch.manual_seed(0)
    same = backbones.build("hybrid", width=16, **{"depth": options["depth"], **pattern}).state_dict()
    assert named.keys() == same.keys()
    assert all(torch.equal(named[key], same[key]) for key in named)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_reaches_every_layer(dropout: float) -> None:
    model = backbones.build("hybrid", width=16, depth=None, pattern=["attn", "local"], dropout=dropout,
                            attn={"window": 4}, local={"window": 4})  # fmt: skip
    assert [block.dropout for block in model.blocks] == [block.mixer.dropout for block in model.blocks] == 2 * [dropout]


def test_pattern_repeats_to_the_depth() -> None:
    for depth, expected in ((None, KINDS), (2, KINDS[:2]), (8, (*KINDS, *KINDS[:2]))):
        options = backbones.configure("hybrid", width=16, depth=depth, pattern=KINDS)
        model = hybrid.build(backbones.for_tokens(options, 4))
        assert [type(block.mixer) for block in model.blocks] == [MIXERS[kind] for kind in expected]
        assert [block.mlp is None for block in model.blocks] == [kind in ("gau", "flash") for kind in expected]


def test_part_of_a_kinds_options_leaves_the_others_at_their_defaults() -> None:
    options = hybrid.Config(local={"window": 5}, rec={"heads": 2}, flash={})  # type: ignore[arg-type]
    assert options.local == LocalAttentionConfig(window=5, heads=4, key_heads=1, rope=0.5)
    assert (options.rec.decay_init, options.rec.heads) == ("released", 2)
    assert options.flash == hybrid.Config().flash
    assert options.pattern == ("rec", "aaren", "local")
    assert hybrid.Config().local.window == 64
    assert hybrid.Config().attn == AttentionConfig(window=None, heads=4, key_heads=None, rope=1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": ["rec", "recc"]}, UnknownNameError, r"unknown kind of layer 'recc'\. Did you mean 'rec'\?"),
        ({"pattern": None}, ConfigError, "pattern must be a list of kinds of layers, got None"),
        ({"pattern": 5}, ConfigError, "pattern must be a list of kinds of layers, got 5"),
        ({"pattern": "rec"}, ConfigError, "pattern must be a list of kinds of layers, got 'rec'"),
        ({"pattern": [5]}, UnknownNameError, "unknown kind of layer '5'"),
        ({"norm": []}, ConfigError, r"hybrid: norm must be one of rms, layer, scale, got \[\]"),
        ({"pattern": []}, ConfigError, "pattern must name at least one kind of layer, got none"),
        ({"local": {"windw": 5}}, UnknownNameError, r"option of hybrid.local 'windw'\. Did you mean 'window'\?"),
        ({"local": {"window": 0}}, ConfigError, "hybrid.local: window must be a whole number >= 1, got 0"),
        ({"gau": {"heads": 2}}, UnknownNameError, "unknown option of hybrid.gau 'heads'"),
        ({"attn": {"rope": 2.0}}, ConfigError, r"hybrid.attn: rope must be in \[0, 1\], got 2.0"),
        ({"local": 5}, ConfigError, "local must be a dictionary or LocalAttentionConfig, got 5"),
        ({"rec": AttentionConfig()}, ConfigError, "rec must be a dictionary or RecurrentConfig, got AttentionConfig"),
        ({"norm": "batch"}, ConfigError, "norm must be one of rms, layer, scale, got 'batch'"),
        ({"mlp": "none"}, ConfigError, "mlp must be one of gated, relu, got 'none'"),
        ({"aaren": {"heads": 3}}, ConfigError, "width must be a multiple of heads, got 16 and 3"),
        ({"pattern": ["rec", "gau"]}, ConfigError, "window must be a number of tokens, got None"),
        ({"ret": {}}, UnknownNameError, "option of backbone hybrid 'ret'"),
    ],
    ids=str,
)
def test_wrong_option_is_one_clear_error(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        backbones.build("hybrid", width=16, depth=3, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flash": {"chunk": 5}}, "flash must be a layer for its options to count, got the layers rec aaren local"),
        ({"pattern": ["rec"], "local": {"window": 3}}, "local must be a layer for its options to count"),
        ({"pattern": ["rec", "local"], "depth": 1, "local": {"window": 3}}, "local must be a layer"),
        ({"pattern": ["flash"], "mlp": "relu"}, "mlp must be gated where no layer has an MLP, got flash"),
        ({"pattern": ["flash", "rec"], "depth": 1, "mlp": "relu"}, "mlp must be gated where no layer has an MLP"),
    ],
    ids=str,
)
def test_options_that_no_layer_has_are_refused_where_a_training_begins(options: dict[str, Any], message: str) -> None:
    given = backbones.configure("hybrid", width=16, **options)
    with pytest.raises(ConfigError, match=f"hybrid: {message}"):
        backbones.for_tokens(given, 5)
    assert hybrid.build(given)  # a run from before the check


def test_layers_that_are_not_built_count_for_nothing() -> None:
    given = backbones.configure("hybrid", pattern=["attn", "rec"], depth=1)
    assert not backbones.is_recurrent(given)
    assert given.kinds == ("attn",)
    assert backbones.configure("hybrid", pattern=["attn", "rec"], depth=5).kinds == (
        "attn",
        "rec",
        "attn",
        "rec",
        "attn",
    )


@pytest.mark.parametrize(
    ("pattern", "recurrent"),
    [(["attn"], False), (["gau", "local"], False), (["attn", "rec"], True), (["aaren"], True), (["flash"], True)],
)
def test_it_is_recurrent_if_a_layer_carries_what_is_older_than_any_window(pattern: list[str], recurrent: bool) -> None:
    assert backbones.is_recurrent(backbones.configure("hybrid", pattern=pattern)) == recurrent


def test_tokens_fill_in_the_windows_that_are_open_and_no_other() -> None:
    pattern = ("attn", "gau", "local")
    options = backbones.for_tokens(backbones.configure("hybrid", pattern=pattern, gau={"window": 7}), 60)
    assert (options.attn.window, options.gau.window, options.local.window) == (60, 7, 64)
    assert options.pattern == pattern
    assert backbones.for_tokens(hybrid.Config(), 60) == hybrid.Config()  # no layer of it has an open window


@pytest.mark.parametrize(
    ("kind", "parameters", "state"),
    [
        ("rec", 242_816, 3_840),
        ("attn", 214_656, 61_448),
        ("local", 189_888, 16_392),
        ("aaren", 214_784, 1_056),
        ("gau", 116_156, 92_168),
        ("flash", 116_672, 262_152),
    ],
)
def test_layer_of_a_kind_has_the_size_of_the_page(kind: str, parameters: int, state: int) -> None:
    model = hybrid.build(backbones.for_tokens(backbones.configure("hybrid", pattern=[kind]), 60))
    assert backbones.parameter_count(model.blocks[0]) == parameters
    assert backbones.state_bytes(model.init_state(1)) == state


def test_parameters_and_state_are_those_of_the_page() -> None:
    model = hybrid.build(hybrid.Config())
    assert backbones.parameter_count(model) == 647_616
    assert backbones.state_bytes(model.init_state(1)) == 3_840 + 1_056 + 16_392 == 21_288


def test_experiment_survives_json() -> None:
    options = backbones.configure(
        "hybrid", width=32, pattern=["rec", "flash", "gau"], flash={"chunk": 8}, rec={"decay_init": "paper"}
    )
    experiment = config.settle(config.Experiment(backbone="hybrid", backbone_options=options, window=10))
    text = json.dumps(config.to_json(experiment))
    again = config.from_json(json.loads(text))
    assert again == experiment
    assert type(again.backbone_options.flash) is type(options.flash)
    assert again.backbone_options.gau.window is not None

    broken = json.loads(text)
    broken["backbone_options"]["flash"]["chunks"] = 3
    with pytest.raises(ConfigError, match=r"unknown option of hybrid.flash 'chunks'"):
        config.from_json(broken)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., config.Experiment]:
    """What ``rlseq train`` would train; nothing is trained."""
    found: list[config.Experiment] = []

    def train_experiment(experiment: config.Experiment, *_: Any, **__: Any) -> None:
        found.append(experiment)
        raise ConfigError("nothing is trained here")

    monkeypatch.setattr(run, "train_experiment", train_experiment)

    def parse(options: str) -> config.Experiment:
        main(["train", "--backbone", "hybrid", "--out", str(tmp_path / "run"), *options.split()])
        return found[-1]

    return parse


def test_command_line_takes_a_pattern_and_the_options_of_its_kinds(parsed: Callable[..., config.Experiment]) -> None:
    experiment = parsed(
        "--backbone.pattern rec rec aaren flash local --backbone.local.window 8 --backbone.flash.chunk 16 "
        "--backbone.width 32 --backbone.norm layer --backbone.rec.decay-init released --window 20"
    )
    options = experiment.backbone_options
    assert options == backbones.configure(
        "hybrid",
        width=32,
        pattern=["rec", "rec", "aaren", "flash", "local"],
        norm="layer",
        local={"window": 8},
        flash={"chunk": 16},
        rec={"decay_init": "released"},
    )
    model = hybrid.build(config.settle(experiment).backbone_options)
    assert [type(block.mixer) for block in model.blocks] == [MIXERS[kind] for kind in options.pattern]


def test_command_line_without_options_takes_the_recipe(parsed: Callable[..., config.Experiment]) -> None:
    assert parsed("").backbone_options == recipes.recipe("hybrid").backbone_options
    assert parsed("--recipe default").backbone_options == hybrid.Config()


@pytest.mark.parametrize(
    ("arguments", "word"), [("--backbone.pattern rec recc", "recc"), ("--backbone.local.chunk 3", "local.chunk")]
)
def test_command_line_refuses_what_is_no_kind_or_option(
    arguments: str, word: str, parsed: Callable[..., config.Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(arguments)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


@functools.cache
def subject(*pattern: str) -> conformance.Subject:
    return conformance.subject("hybrid", {"pattern": pattern}, cases=6, steps=300, compiler="aot_eager")


@pytest.mark.parametrize(
    "law",
    ["forward_equals_steps", "packed_row_equals_its_episodes", "bfloat16_is_close", "compiled_step_equals_eager"],
)
@pytest.mark.parametrize("pattern", [("attn", "gau", "rec"), ("flash", "local", "aaren")], ids="-".join)
def test_pattern_keeps_the_law(pattern: tuple[str, ...], law: str) -> None:
    conformance.LAWS[law](subject(*pattern))
