"""The checker fails where it must: every law has backbones that break it, one line away from one that keeps all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlseq.conformance import LAWS, ContractError, Subject, check

WIDTH = 4


class Leaky(nn.Module):
    """h_t = 0.9 h_{t-1} + W x_t; y_t = x_t + tanh(h_t): the shortest backbone that keeps the contract."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def init_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return {"hidden": torch.zeros(batch_size, WIDTH, dtype=torch.float64, device=device)}

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        state = self.init_state(len(x)) if state is None else state
        features = []
        for token in range(x.shape[1]):
            y, state = Leaky.step(self, x[:, token], state, None if reset is None else reset[:, token])
            features.append(y)
        return torch.stack(features, 1), state

    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        hidden = state["hidden"]
        if reset is not None:
            hidden = torch.where(reset[:, None], 0.0, hidden)
        hidden = 0.9 * hidden + self.linear(x)
        return x + hidden.to(x.dtype).tanh(), {"hidden": hidden}


class ForgetsBetweenCalls(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().forward(x, None, reset)


class TakesNoStateForAReset(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return (2 * y if state is None else y), after


class StepsWithAnotherDecay(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x, {"hidden": state["hidden"] * 0.999}, reset)


class StepsWithoutResets(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x, state)


class SeesTheFuture(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().forward(x + 1e-3 * x.roll(-1, 1), state, reset)


class CentresOverTime(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().forward(x - x.mean(1, keepdim=True), state, reset)


class ScansOverTheBatch(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, _ = super().forward(x.transpose(0, 1), None, None if reset is None else reset.T)
        return y.transpose(0, 1), self.init_state(len(x))


class NormsOverTheBatch(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x - x.mean(0), state, reset)


class IgnoresResets(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().forward(x, state)


class ResetsAllRows(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x, state, None if reset is None else reset.any().expand(len(x)))


class MultipliesAtAReset(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        kept = 1.0 if reset is None else (~reset[:, None]).double()
        return super().step(x, {"hidden": state["hidden"] * kept})


class WritesIntoItsState(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state, reset)
        with torch.no_grad():
            state["hidden"].copy_(after["hidden"])
        return y, state


class WritesIntoItsTokens(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        with torch.no_grad():
            x[:, -1] = y[:, -1]
        return y, after


class KeepsEveryToken(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state, reset)
        return y, after | {"past": torch.cat((state.get("past", x[:, None, :]), x[:, None, :]), 1)}


class GrowsAfterAThousandSteps(Leaky):
    def init_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return super().init_state(batch_size) | {"time": torch.zeros(batch_size, 1)}

    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state, reset)
        time = state["time"] + 1
        return y, after | {"time": time.double() if time[0, 0] > 1000 else time}

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y, after | {"time": torch.zeros(len(x), 1)}


class PutsTimeFirst(Leaky):
    def init_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return super().init_state(batch_size) | {"time": torch.zeros(1, batch_size)}

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y, after | {"time": torch.zeros(1, len(x))}


class Explodes(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state, reset)
        return y * after["hidden"].square().sum().exp().to(x.dtype), {"hidden": after["hidden"] * 2.0}


class HasAnIdleParameter(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class CountsAParameterForNothing(HasAnIdleParameter):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y + 0.0 * self.idle.sum(), after


class HasAnInfiniteGradient(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y + (self.linear.weight * 0.0).sum().abs().sqrt(), after


class DetachesItsState(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y, {"hidden": after["hidden"].detach()}


class StepsWithoutGradient(Leaky):
    @torch.no_grad()
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x, state, reset)


class BreaksTheGraph(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        if reset is not None and reset.any().item():
            return super().step(x, state, reset)
        return super().step(x, state)


class CompilesDifferently(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x * (1.1 if torch.compiler.is_compiling() else 1.0), state, reset)


class LosesItsHiddenStateInBfloat16(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return (y.round() if x.dtype == torch.bfloat16 else y), after


class StepsWrongUnderAutocast(Leaky):
    def step(self, x: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        return super().step(x.round() if torch.is_autocast_enabled("cpu") else x, state, reset)


class ReturnsFloat32(Leaky):
    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, reset)
        return y.float(), after


@dataclass(frozen=True)
class ListConfig:
    pattern: tuple[str, ...] = ("rec", "attn")


@dataclass
class OpenConfig:
    width: int = WIDTH


@dataclass(frozen=True)
class DtypeConfig:
    dtype: torch.dtype = field(default=torch.float32)


def subject(make: Callable[[], nn.Module], config: Any = None, steps: int = 20) -> Subject:
    return Subject(make, WIDTH, config, cases=4, steps=steps, compiler="aot_eager")


BREAKERS: dict[str, list[type[nn.Module]]] = {
    "forward_equals_any_split": [ForgetsBetweenCalls, TakesNoStateForAReset, CentresOverTime, ReturnsFloat32],
    "forward_equals_steps": [StepsWithAnotherDecay, StepsWithoutResets, ResetsAllRows],
    "no_output_sees_a_later_token": [SeesTheFuture, CentresOverTime],
    "rows_do_not_mix": [ScansOverTheBatch, NormsOverTheBatch],
    "packed_row_equals_its_episodes": [IgnoresResets, StepsWithoutResets, ResetsAllRows],
    "reset_forgets_even_nan": [IgnoresResets, MultipliesAtAReset],
    "inputs_are_not_changed": [WritesIntoItsState, WritesIntoItsTokens],
    "state_keeps_its_form": [KeepsEveryToken, PutsTimeFirst, Explodes],
    "every_parameter_learns": [HasAnIdleParameter, CountsAParameterForNothing, HasAnInfiniteGradient],
    "gradients_flow_through_states": [DetachesItsState],
    "compiled_step_equals_eager": [CompilesDifferently],
    "bfloat16_is_close": [LosesItsHiddenStateInBfloat16, StepsWrongUnderAutocast, ReturnsFloat32],
}


@pytest.mark.parametrize("law", LAWS)
def test_the_shortest_backbone_keeps_the_law(law: str) -> None:
    LAWS[law](subject(Leaky))


@pytest.mark.parametrize(("law", "make"), [(law, make) for law, makes in BREAKERS.items() for make in makes])
def test_law_catches(law: str, make: type[nn.Module]) -> None:
    with pytest.raises(ContractError, match=law):
        LAWS[law](subject(make))


def test_every_law_has_a_backbone_that_breaks_it() -> None:
    assert {*BREAKERS, "config_survives_json"} == set(LAWS)


def test_state_that_grows_late_is_caught_in_a_long_run_only() -> None:
    LAWS["state_keeps_its_form"](subject(GrowsAfterAThousandSteps, steps=900))
    with pytest.raises(ContractError, match=re.escape("after 1001 steps")):
        LAWS["state_keeps_its_form"](subject(GrowsAfterAThousandSteps, steps=1100))


@pytest.mark.parametrize("config", [ListConfig(), OpenConfig()], ids=lambda config: type(config).__name__)
def test_config_that_changes_in_json_or_is_open_is_caught(config: Any) -> None:
    with pytest.raises(ContractError, match="config_survives_json"):
        LAWS["config_survives_json"](subject(Leaky, config=config))


@pytest.mark.parametrize(
    ("make", "config", "law"),
    [
        (StepsWithoutGradient, None, "every_parameter_learns"),
        (BreaksTheGraph, None, "compiled_step_equals_eager"),
        (Leaky, DtypeConfig(), "config_survives_json"),
    ],
    ids=["no-gradient", "graph-break", "not-json"],
)
def test_exception_in_a_law_breaks_it(make: type[nn.Module], config: Any, law: str) -> None:
    broken = {name: message for name, message, _ in check(subject(make, config=config)) if message is not None}
    assert law in broken
    assert broken[law].startswith(law)
