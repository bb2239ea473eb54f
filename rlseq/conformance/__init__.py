"""The checker of a backbone's contract: ``python -m rlseq.conformance NAME | my.module``.

A law of ``rlseq.backbones.Backbone`` is a function of a Subject: it returns nothing, or raises ContractError. The cases
are small random models, lengths, splits and resets from fixed seeds; dropout is off. In a test of one's own backbone:

    @pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
    def test_my_backbone_keeps_the_contract(law):
        law(subject("my.module"))
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from rlseq.backbones import State
from rlseq.conformance._subject import Case, Subject, cases, subject
from rlseq.errors import RlseqError

__all__ = ["LAWS", "TOLERANCE", "Case", "ContractError", "Subject", "check", "subject"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.11}
"""Largest difference allowed, relative to the largest feature or 1; bfloat16: four times the 0.027 measured over 40
cases of each backbone but FLASH, whose worst token is off by 0.079."""

Law: TypeAlias = Callable[["Subject"], None]
Run: TypeAlias = Callable[[Any, Tensor, State, Tensor | None], tuple[Tensor, State]]


class ContractError(RlseqError, AssertionError):
    """A backbone that does not keep a law of the contract; the message names law, case and difference."""


LAWS: dict[str, Law] = {}
"""Every law of the contract by its name."""


def _law(function: Law) -> Law:
    @functools.wraps(function)
    def law(subject: Subject) -> None:
        try:
            function(subject)
        except ContractError as error:
            raise ContractError(f"{function.__name__}: {error}") from None

    LAWS[function.__name__] = law
    return law


@_law
def forward_equals_any_split(subject: Subject) -> None:
    """Running over L tokens from no state = running from init_state over any pieces of them, the state carried."""
    for dtype in (torch.float64, torch.float32):
        for case in cases(subject, dtype):
            expected, _ = case.model(case.x, None, case.reset)
            cuts = (torch.rand(case.x.shape[1] - 1, generator=case.generator) < 0.3).nonzero()[:, 0] + 1
            state, pieces = case.model.init_state(len(case.x)), []
            for start, end in itertools.pairwise([0, *cuts.tolist(), case.x.shape[1]]):
                piece, state = case.model(case.x[:, start:end], state, _part(case.reset, start, end))
                pieces.append(piece)
            _agree(torch.cat(pieces, 1), expected, f"{case.name}, cut at {cuts.tolist()}")
            _agree(expected, expected.to(case.x.dtype).reshape(case.x.shape), case.name)


@_law
def forward_equals_steps(subject: Subject) -> None:
    """One forward over L tokens = L calls of step, from zeros, and from the state that forward left."""
    for dtype in (torch.float64, torch.float32):
        for case in cases(subject, dtype):
            expected, _ = case.model(case.x, None, case.reset)
            got, _ = _steps(case.model, case.x, case.model.init_state(len(case.x)), case.reset)
            _agree(got, expected, case.name)
            got = _split(case, case.x, _forward, _steps)
            _agree(got, expected[:, case.cut :], f"{case.name}, steps from token {case.cut}")


@_law
def no_output_sees_a_later_token(subject: Subject) -> None:
    """Changing token t, its reset included, changes no output before t."""
    for case in cases(subject):
        expected, _ = case.model(case.x, None, case.reset)
        x = case.x.clone()
        x[:, case.cut :] = torch.randn(x[:, case.cut :].shape, generator=case.generator, dtype=x.dtype) * 100
        reset = None if case.reset is None else torch.cat((case.reset[:, : case.cut], ~case.reset[:, case.cut :]), 1)
        got, _ = case.model(x, None, reset)
        _agree(got[:, : case.cut], expected[:, : case.cut], f"{case.name}, changed from {case.cut}")


@_law
def rows_do_not_mix(subject: Subject) -> None:
    """A row of a batch gives what it gives alone, in forward and in step, whatever the rows beside it."""
    for case in cases(subject):
        together, _ = case.model(case.x, None, case.reset)
        stepped, _ = _steps(case.model, case.x, case.model.init_state(len(case.x)), case.reset)
        for row in range(len(case.x)):
            own = slice(row, row + 1)
            alone, _ = case.model(case.x[own], None, None if case.reset is None else case.reset[own])
            _agree(together[own], alone, f"{case.name}, forward, row {row}")
            _agree(stepped[own], alone, f"{case.name}, step, row {row}")


@_law
def packed_row_equals_its_episodes(subject: Subject) -> None:
    """A row with resets = its episodes run apart, each with reset on its first token, whatever came before."""
    for dtype in (torch.float64, torch.float32):
        for case in cases(subject, dtype, resets=True):
            assert case.reset is not None
            case.reset[:, 0] = True
            _, before = case.model(case.x.flip(1), None, None)
            packed, _ = case.model(case.x, before, case.reset)
            stepped, _ = _steps(case.model, case.x, before, case.reset)
            for row, reset in enumerate(case.reset):
                starts = [*reset.nonzero()[:, 0].tolist(), len(reset)]
                for start, end in itertools.pairwise(starts):
                    first = torch.arange(end - start)[None] == 0
                    alone, _ = case.model(case.x[row : row + 1, start:end], None, first)
                    for how, got in (("forward", packed), ("steps", stepped)):
                        _agree(got[row : row + 1, start:end], alone, f"{case.name}, {how}, row {row}, from {start}")


@_law
def reset_forgets_even_nan(subject: Subject) -> None:
    """A state of NaN and infinity leaves no trace in outputs or states after a reset."""
    for case in cases(subject):
        reset = torch.zeros(case.x.shape[:2], dtype=torch.bool)
        reset[:, 0] = True
        expected, clean = case.model(case.x, None, reset)
        expected_next, _ = case.model(case.x, clean)
        for poison in (float("nan"), float("inf")):
            _, state = case.model(case.x)
            state = _pytree.tree_map(lambda old, p=poison: old + p if old.is_floating_point() else old, state)
            got, after = case.model(case.x, state, reset)
            _agree(got, expected, f"{case.name}, forward after {poison}")
            got, _ = case.model(case.x, after)
            _agree(got, expected_next, f"{case.name}, the state after {poison}")
            got, _ = _steps(case.model, case.x, state, reset)
            _agree(got, expected, f"{case.name}, steps after {poison}")


@_law
def inputs_are_not_changed(subject: Subject) -> None:
    """Neither method changes tokens, resets or the state that it was given."""
    for case in cases(subject):
        _, state = case.model(case.x, None, case.reset)
        for run in (_forward, _steps):
            given = [leaf for leaf in (case.x, case.reset, *_pytree.tree_leaves(state)) if leaf is not None]
            copies = [leaf.clone() for leaf in given]
            run(case.model, case.x, state, case.reset)
            _demand(all(map(torch.equal, given, copies)), "inputs", f"others ({case.name}, {run.__name__[1:]})")


@_law
def state_keeps_its_form(subject: Subject) -> None:
    """A state has batch first and keeps structure, shapes, dtypes and bytes for as many steps as are taken."""
    model = subject.model(torch.float32)
    state = model.init_state(3)
    form = _form(state)
    _demand(all(shape[:1] == (3,) for shape, _ in form[1]), "batch 3 first in every leaf", str(form))
    for length in (1, 2, 7, 30):
        got = _form(model(torch.randn(3, length, subject.width))[1])
        _demand(got == form, f"the form {form} of init_state", f"{got} after forward over {length} tokens")
    with torch.inference_mode():
        for step in range(subject.steps):
            reset = torch.zeros(3, dtype=torch.bool) if step % 2 else None
            features, state = model.step(torch.randn(3, subject.width), state, reset)
            if _form(state) != form or not features.isfinite().all():
                break
    _demand(_form(state) == form, f"the form {form} of init_state", f"{_form(state)} after {step + 1} steps")
    _demand(features.isfinite().all(), "finite features", f"others after {step + 1} steps")


@_law
def every_parameter_learns(subject: Subject) -> None:
    """Every parameter gets a finite gradient, in forward and in steps, and one that is not all zeros in some case."""
    for run in (_forward, _steps):
        idle: set[str] | None = None
        for case in cases(subject, torch.float32):
            case.model.zero_grad()
            features, _ = run(case.model, case.x, case.model.init_state(len(case.x)), case.reset)
            (features * torch.randn(features.shape, generator=case.generator)).sum().backward()
            zeros = set()
            for name, parameter in case.model.named_parameters():
                good = parameter.grad is not None and parameter.grad.isfinite().all()
                _demand(good, "a finite gradient", f"{parameter.grad} for {name} ({case.name}, {run.__name__[1:]})")
                if not parameter.grad.any():
                    zeros.add(name)
            idle = zeros if idle is None else idle & zeros
        _demand(not idle, "gradients that are not zero", f"zeros alone for {sorted(idle or ())} ({run.__name__[1:]})")


@_law
def gradients_flow_through_states(subject: Subject) -> None:
    """Tokens and parameters get the same gradients in one forward, in a split with the state carried, and in steps."""
    for case in cases(subject):
        weight = torch.randn(case.x[:, case.cut :].shape, generator=case.generator, dtype=case.x.dtype)
        expected: dict[str, Tensor] = {}
        for first, second in ((None, _forward), (_forward, _forward), (_forward, _steps), (_steps, _forward)):
            x = case.x.clone().requires_grad_()
            wanted = {"x": x, **dict(case.model.named_parameters())}
            features = _split(case, x, first, second) if first else _forward(case.model, x, None, case.reset)[0]
            loss = (features[:, -weight.shape[1] :] * weight).sum()
            found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
            expected = expected or dict(zip(wanted, found, strict=True))
            for name, gradient in zip(wanted, found, strict=True):
                _agree(gradient, expected[name], f"{case.name}, cut at {case.cut}, gradient of {name}")


@_law
def compiled_step_equals_eager(subject: Subject) -> None:
    """torch.compile(step, fullgraph=True) = step."""
    torch.compiler.reset()
    model = subject.model(torch.float32)
    compiled = torch.compile(model.step, fullgraph=True, dynamic=False, backend=subject.compiler)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler imports what torch deprecates
        state = other = model.init_state(2)
        for index in range(8):
            x = torch.randn(2, subject.width, generator=torch.Generator().manual_seed(index))
            reset = torch.tensor([index == 0, index == 5])
            expected, state = model.step(x, state, reset)
            got, other = compiled(x, other, reset)
            _agree(got, expected, f"step {index}")


@_law
def bfloat16_is_close(subject: Subject) -> None:
    """A bfloat16 model, and a float32 model under autocast, give the float32 model's features within the tolerance."""
    for case in cases(subject, torch.bfloat16):
        got, _ = case.model(case.x, None, case.reset)
        stepped, _ = _steps(case.model, case.x, case.model.init_state(len(case.x)), case.reset)
        case.model.float()
        expected = case.model(case.x.float(), None, case.reset)[0].bfloat16()
        _agree(got, expected, f"{case.name}, forward")
        _agree(stepped, expected, f"{case.name}, steps")
        with torch.autocast("cpu", torch.bfloat16):
            got, _ = case.model(case.x.float(), None, case.reset)
            stepped, _ = _steps(case.model, case.x.float(), case.model.init_state(len(case.x)), case.reset)
        _agree(got.bfloat16(), expected, f"{case.name}, forward, autocast")
        _agree(stepped.bfloat16(), expected, f"{case.name}, steps, autocast")


@_law
def config_survives_json(subject: Subject) -> None:
    """A Config, where there is one, is a frozen dataclass that equals itself after JSON."""
    if (config := subject.config) is not None:
        text = json.dumps(dataclasses.asdict(config))
        back = type(config)(**json.loads(text))
        _demand(back == config, f"{config}", f"{back} from {text}")
        _demand(type(config).__dataclass_params__.frozen, "a frozen dataclass", type(config).__name__)


def check(subject: Subject) -> Iterator[tuple[str, str | None, float]]:
    """Run every law; yields its name, what broke it (None: kept), and seconds. A backbone that raises breaks it too."""
    for name, law in LAWS.items():
        start = time.perf_counter()
        try:
            law(subject)
            broken = None
        except Exception as error:  # noqa: BLE001 (whatever a backbone raises is a finding)
            broken = str(error) if isinstance(error, ContractError) else f"{name}: got {type(error).__name__}: {error}"
        yield name, broken, time.perf_counter() - start


def _forward(model: Any, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
    return model(x, state, reset)


def _steps(model: Any, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
    features = []
    for token in range(x.shape[1]):
        y, state = model.step(x[:, token], state, None if reset is None else reset[:, token])
        features.append(y)
    return torch.stack(features, dim=1), state


def _split(case: Case, x: Tensor, first: Run, second: Run) -> Tensor:
    _, state = first(case.model, x[:, : case.cut], case.model.init_state(len(x)), _part(case.reset, 0, case.cut))
    return second(case.model, x[:, case.cut :], state, _part(case.reset, case.cut, None))[0]


def _part(reset: Tensor | None, start: int, end: int | None) -> Tensor | None:
    return None if reset is None else reset[:, start:end]


def _form(state: State) -> tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]:
    leaves, structure = _pytree.tree_flatten(state)
    return str(structure), [(tuple(leaf.shape), leaf.dtype) for leaf in leaves]


def _agree(got: Tensor, expected: Tensor, case: str) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        form = f"{tuple(expected.shape)} {expected.dtype}"
        raise ContractError(f"must give {form}, got {tuple(got.shape)} {got.dtype} ({case}).")
    scale = expected.detach().abs().max().clamp_min(1.0)
    difference = float((got - expected).detach().abs().max() / scale)
    if not difference <= TOLERANCE[got.dtype]:
        raise ContractError(f"must agree to {TOLERANCE[got.dtype]:g}, got a difference of {difference:.2e} ({case}).")


def _demand(kept: bool | Tensor, must: str, got: str) -> None:
    if not kept:
        raise ContractError(f"must keep {must}, got {got}.")
