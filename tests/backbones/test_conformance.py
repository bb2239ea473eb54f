"""Every backbone in the folder keeps the contract; ``python -m rlseq.conformance NAME`` runs the long form."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from rlseq import backbones, conformance
from rlseq.conformance.__main__ import main
from rlseq.conformance._subject import cases
from tests.tolerances import BF16_GRADIENT_COSINE


@functools.cache
def subject(name: str, **options: Any) -> conformance.Subject:
    return conformance.subject(name, options, cases=6, steps=300, compiler="aot_eager")


@pytest.mark.parametrize("law", conformance.LAWS)
@pytest.mark.parametrize("name", backbones.available())
def test_backbone_keeps_the_law(name: str, law: str) -> None:
    conformance.LAWS[law](subject(name))


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("transformer", {"preset": "modern"}),
    ("gau", {"norm": "scale"}),
    ("hawk", {"decay_init": "hold"}),
    ("griffin", {"decay_init": "hold"}),
    ("aaren", {"norm": "rms", "mlp": "gated"}),
    ("hybrid", {"pattern": ["attn", "gau", "rec"]}),
]


@pytest.mark.parametrize("law", [law for law in conformance.LAWS if "compiled" not in law])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_other_options_keep_the_law(name: str, options: dict[str, Any], law: str) -> None:
    conformance.LAWS[law](conformance.subject(name, options, cases=2, steps=100))


@pytest.mark.parametrize("name", backbones.available())
def test_bfloat16_gradients_point_where_those_of_float32_do(name: str) -> None:
    """Of a bfloat16 model, and of a float32 model under autocast; the cosine over all parameters."""
    for case in cases(conformance.subject(name, cases=4), torch.bfloat16):
        weight, found = torch.randn(case.x.shape, generator=case.generator), []
        for dtype, autocast in ((torch.bfloat16, False), (torch.float32, False), (torch.float32, True)):
            case.model.to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y, _ = case.model(case.x.to(dtype), None, case.reset)
            gradients = torch.autograd.grad((y.float() * weight).sum(), list(case.model.parameters()))
            found.append(torch.cat([gradient.float().flatten() for gradient in gradients]))
        half, whole, mixed = found
        for one in (half, mixed):
            assert torch.nn.functional.cosine_similarity(one, whole, dim=0) > BF16_GRADIENT_COSINE


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler does
@pytest.mark.parametrize("name", backbones.available())
def test_a_compiled_forward_and_its_gradients_equal_eager(name: str) -> None:
    torch.compiler.reset()
    (case,) = cases(conformance.subject(name, cases=1), resets=True)
    compiled = torch.compile(case.model, fullgraph=True, dynamic=False, backend="aot_eager")
    weight, found = torch.randn_like(case.x), []
    for model in (compiled, case.model):
        y, _ = model(case.x, None, case.reset)
        found.append([y, *torch.autograd.grad((y * weight).sum(), list(case.model.parameters()))])
    for got, expected in zip(*found, strict=True):
        close = conformance.TOLERANCE[torch.float64] * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(got, expected, rtol=0, atol=close)


@pytest.mark.parametrize("law", ["forward_equals_steps", "packed_row_equals_its_episodes"])
@pytest.mark.parametrize("options", [{"heads": 1, "window": 1}, {"window": 24}, {"window": 7, "heads": 4}], ids=str)
def test_attention_keeps_the_law_in_windows_of_any_size(options: dict[str, int], law: str) -> None:
    conformance.LAWS[law](subject("transformer", **options))


def test_half_open_gates_and_released_decays_keep_the_law() -> None:
    conformance.LAWS["forward_equals_steps"](subject("hawk", decay_init="released", heads=1, depth=1))


@pytest.mark.parametrize("name", backbones.available())
def test_initial_state_has_the_rows_and_dtype_asked_for(name: str) -> None:
    model = subject(name).model(torch.float32)
    for rows in (1, 3):
        leaves = torch.utils._pytree.tree_leaves(model.init_state(rows, dtype=torch.bfloat16, device="cpu"))
        assert {len(leaf) for leaf in leaves} == {rows}
        means = [leaf for leaf in leaves if leaf.dtype is torch.float32]
        # the mean of chunks, one matrix a layer
        assert [leaf.shape for leaf in means] == [(rows, 16, 32)] * (3 if name == "flash" else 0)
        assert {leaf.dtype for leaf in leaves} <= {torch.bfloat16, torch.float32, torch.float64, torch.int64}
        # a state of scans alone is float64 throughout
        assert {leaf.dtype for leaf in leaves} & {torch.bfloat16} or {leaf.dtype for leaf in leaves} == {torch.float64}
        _, state = model.step(torch.randn(rows, 16), model.init_state(rows, dtype=torch.bfloat16))
        assert [leaf.dtype for leaf in torch.utils._pytree.tree_leaves(state)] == [leaf.dtype for leaf in leaves]


@pytest.mark.parametrize("name", backbones.available())
def test_dropout_acts_in_training_only(name: str) -> None:
    model = conformance.subject(name, {"dropout": 0.5}).model(torch.float32)
    x = torch.randn(2, 9, 16)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
    state = model.init_state(2)
    assert not torch.equal(model.step(x[:, 0], state)[0], model.step(x[:, 0], state)[0])


def test_command_line_prints_a_line_a_law(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {name: law for name, law in conformance.LAWS.items() if name not in ("compiled_step_equals_eager",)}
    monkeypatch.setattr(conformance, "LAWS", quick)
    assert main(["hawk", "--cases", "1", "--steps", "5", "--option", "heads=1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("kept") == len(quick)
    assert "heads=1" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hwak"], "Did you mean 'hawk'?"),
        (["hawk", "--option", "head=1"], "Did you mean 'heads'?"),
        (["hawk", "--option", "heads"], "--option must be NAME=JSON"),
        (["hawk", "--option", "heads=0"], "heads must be a whole number >= 1, got 0"),
        (["hawk", "--option", "cases=3"], "unknown option of backbone hawk 'cases'"),
        (["hawk", "--option", "name=3"], "unknown option of backbone hawk 'name'"),
        (
            ["transformer", "--option", "window=1000000000000"],
            "a state of transformer must fit into the memory, got win",
        ),
        (
            ["transformer", "--option", f"window={10**20}"],
            "a state of transformer must fit into the memory, got window=",
        ),
        (["hawk", "--cases", "0"], "cases must be a whole number >= 1, got 0"),
        (["hawk", "--steps", "0"], "steps must be a whole number >= 1, got 0"),
        (["hawk", "--compiler", "induktor"], "Did you mean 'inductor'?"),
    ],
)
def test_command_line_says_what_is_wrong_and_exits_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
