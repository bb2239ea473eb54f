"""What torch sees of the ops: registered operators, one node in a compiled graph, steps that export."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlseq.kernels import (
    AttentionState,
    ChunkState,
    SoftmaxState,
    causal_conv,
    chunk_attention,
    linear_scan,
    local_attention,
    rg_lru,
    softmax_scan,
)
from tests.kernels.cases import SCANS, STATE, arguments, cast, implementation, public, with_gradients, worst
from tests.tolerances import KERNELS


def _operator(op: str, suffix: str = "") -> Any:
    implementation(op, "cpu")
    return getattr(torch.ops.rlseq, f"{op}_cpu{suffix}").default


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("resets", [0.2, None])
def test_opcheck_passes_on_forward_and_backward(op: str, resets: float | None) -> None:
    args = cast(arguments(op, 2, 5, 7, resets=resets), torch.float32)
    # the dtypes that the node gets: states, and scores, in float64
    for i in () if op == "causal_conv" else (*STATE[op], *((0,) if op == "softmax_scan" else ())):
        args[i] = args[i].double()
    outputs = _operator(op)(*args)
    gradients = [torch.ones_like(one) for one in outputs]
    backward = {
        "causal_conv": lambda y, last: [*gradients, *args],
        "linear_scan": lambda h, last: [*gradients, args[0], h, args[2], args[3]],
        "rg_lru": lambda h, last: [*gradients, *args[:4], h, *args[4:]],
        "softmax_scan": lambda o, z, last, *weights: [*gradients[:3], args[1], args[3], o, last, *weights],
    }[op](*outputs)
    torch.library.opcheck(_operator(op), tuple(args))
    torch.library.opcheck(_operator(op, "_backward"), tuple(backward))


class Layer(nn.Module):
    """One layer that uses every op."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.conv = nn.Parameter(torch.randn(4, 8))
        self.a_param = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, reset: Tensor) -> Tensor:
        x, gate_x, gate_a = self.project(x).chunk(3, dim=-1)
        x, _ = causal_conv(x, self.conv, self.a_param, reset=reset)
        x, _ = rg_lru(x, gate_x, gate_a, self.a_param, reset=reset)
        x, last = linear_scan(torch.sigmoid(gate_a), x, reset=reset)
        heads = x.unflatten(-1, (2, 4))
        o, _ = local_attention(heads, heads, heads, 3, reset=reset)
        o, _ = softmax_scan(o[..., 0], o, reset=reset)
        x = o.flatten(2)
        o, _ = chunk_attention(x, x, x, x, x, 3, reset=reset)
        return o + last[:, None].to(x.dtype)


# torch.compile itself makes an object of the class when it traces an autograd.Function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_layer_is_one_graph_and_equals_eager_forward_and_backward() -> None:
    torch.manual_seed(0)
    layer, x = Layer(), torch.randn(2, 11, 8)
    # aot_eager traces forward and backward as the default backend does, without a minute of C++ compilation
    reset = torch.rand(2, 11) < 0.2
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(function: Any) -> list[Tensor]:
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = function(leaf, reset)
        out.square().sum().backward()
        return [out.detach(), leaf.grad, *[parameter.grad.clone() for parameter in layer.parameters()]]

    assert worst(run(compiled), run(layer)) < KERNELS["rg_lru"][torch.float32]


@pytest.mark.parametrize("op", SCANS)
def test_a_second_derivative_is_an_error_and_not_a_wrong_number(op: str) -> None:
    x = arguments(op, 1, 5, 2)
    leaf = x[0].requires_grad_()
    (gradient,) = torch.autograd.grad(public(op)(*x)[0].square().sum(), [leaf], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Step(nn.Module):
    """One token through every op, states in and out."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        h: Tensor,
        buffer: Tensor,
        ring: AttentionState,
        mean: SoftmaxState,
        chunk: ChunkState,
    ) -> tuple[Any, ...]:
        y, buffer = causal_conv(x, weight, weight[0], buffer)
        y, h = rg_lru(y, y, y, weight[0], h)
        heads = y.unflatten(-1, (2, 4))
        o, ring = local_attention(heads, heads, heads, 3, state=ring)
        o, mean = softmax_scan(o[..., 0], o, mean)
        x = o.flatten(2)
        o, chunk = chunk_attention(x, x, x, x, x, 3, state=chunk)
        return o, h, buffer, ring, mean, chunk


def test_a_step_exports_without_custom_operators() -> None:
    args = (
        torch.randn(2, 1, 8),
        torch.randn(4, 8),
        torch.zeros(2, 8, dtype=torch.float64),
        torch.zeros(2, 3, 8),
        AttentionState.zeros(2, 3, 2, 4),
        SoftmaxState.empty(2, 2, 4),
        ChunkState.zeros(2, 3, 8, 8),
    )
    program = torch.export.export(Step(), args)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if target.startswith("rlseq")]
    assert torch.allclose(program.module()(*args)[0], Step()(*args)[0])


def test_a_long_sequence_exports_as_one_node() -> None:
    class Scan(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return linear_scan(a, b)[0]

    args = (torch.rand(2, 9, 4), torch.randn(2, 9, 4))
    program = torch.export.export(Scan(), args)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("rlseq.linear_scan_cpu.default") == 1
    assert torch.equal(program.module()(*args), linear_scan(*args)[0])


def test_kernels_that_are_first_loaded_by_an_export_run_afterwards() -> None:
    code = (
        "import torch\n"
        "from rlseq.kernels import linear_scan\n"
        "class Scan(torch.nn.Module):\n"
        "    def forward(self, a, b):\n"
        "        return linear_scan(a, b)[0]\n"
        "args = (torch.rand(2, 9, 4), torch.randn(2, 9, 4))\n"
        "program = torch.export.export(Scan(), args)\n"
        "assert torch.equal(program.module()(*args), linear_scan(*args)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("op", SCANS)
def test_inference_mode_and_frozen_inputs_work(op: str) -> None:
    args = arguments(op, 2, 9, 4)
    with torch.inference_mode():
        inside = public(op)(*args)[0].clone()
    assert torch.equal(inside, public(op)(*args)[0])
    leaves = list(args)
    leaves[0] = args[0].clone().requires_grad_()
    public(op)(*leaves)[0].sum().backward()
    full = with_gradients(lambda *a: public(op)(*a)[:1], args)
    assert leaves[0].grad.shape == full[1].shape


@pytest.mark.parametrize("op", SCANS)
# torch's forward mode itself uses torch.jit.script
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_is_an_error_and_not_a_tangent_of_zero(op: str) -> None:
    args = arguments(op, 1, 5, 2)
    with torch.autograd.forward_ad.dual_level():
        args[0] = torch.autograd.forward_ad.make_dual(args[0], torch.ones_like(args[0]))
        with pytest.raises(RuntimeError, match="jvp"):
            public(op)(*args)
