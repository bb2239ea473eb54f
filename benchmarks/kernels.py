"""Time the kernels beside torch: python benchmarks/kernels.py [--threads N] [--repeats N] [--op NAME].

All contenders of a shape run in one process, in turns, and allocate their outputs alike; a figure is the median over
the repeats, with the quickest and the upper quartile. An op is timed only after its values and gradients pass a check
against the float64 reference.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numba
import torch
from torch import Tensor
from torch.nn import functional

import rlseq
from rlseq.kernels import causal_conv, linear_scan, local_attention, rg_lru, status

SHAPES = ((64, 60, 128), (16, 1000, 128), (6, 200, 176), (64, 20, 176))
LIMIT = 1e-5
Function = Callable[..., Tensor]


def elementwise_rg_lru(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> Tensor:
    """The same unit in torch's elementwise ops around linear_scan."""
    u = 8.0 * torch.sigmoid(gate_a) * functional.softplus(a_param)
    beta = torch.sqrt(-torch.expm1(-2.0 * u))
    return linear_scan(torch.exp(-u), beta * torch.sigmoid(gate_x) * x)[0]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same convolution with groups, its transposes included."""
    padded = functional.pad(x.transpose(1, 2), (weight.shape[0] - 1, 0))
    y = functional.conv1d(padded, weight.t()[:, None], bias, groups=weight.shape[1])
    return y.transpose(1, 2).contiguous()


def contenders(shape: Sequence[int]) -> dict[str, tuple[list[Tensor], dict[str, Function]]]:
    """For each op its arguments and the functions to compare, ours first."""
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    x, width = normal(*shape), shape[2]
    return {
        "linear_scan": (
            [torch.rand(tuple(shape), generator=random), x],
            {"ours": lambda a, b: linear_scan(a, b)[0], "torch.add": torch.add},
        ),
        "rg_lru": (
            [x, normal(*shape), normal(*shape), normal(width) - 3.0],
            {"ours": lambda *args: rg_lru(*args)[0], "torch elementwise + linear_scan": elementwise_rg_lru},
        ),
        "causal_conv": (
            [x, normal(4, width), normal(width)],
            {"ours": lambda *args: causal_conv(*args)[0], "conv1d with groups": conv1d},
        ),
    }


def gradients(run: Function, args: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Output and the gradients of all arguments."""
    leaves = [arg.detach().requires_grad_() for arg in args]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def check(op: str, args: Sequence[Tensor]) -> None:
    """Refuse to time an op whose values or gradients are wrong."""
    reference = getattr(importlib.import_module(f"rlseq.kernels.{op}.reference"), op)
    rest = {"linear_scan": (None, None), "rg_lru": (None, None, 8.0), "causal_conv": (None, None)}[op]
    ours = {"linear_scan": linear_scan, "rg_lru": rg_lru, "causal_conv": causal_conv}[op]
    few = [arg[:2, :50] if arg.dim() == 3 else arg for arg in args]
    weight = torch.randn(few[0].shape, generator=torch.Generator().manual_seed(1))
    got = gradients(lambda *a: ours(*a)[0], few, weight)
    expected = gradients(lambda *a: reference(*a, *rest)[0], [arg.double() for arg in few], weight.double())
    for one, other in zip(got, expected, strict=True):
        wrong = ((one - other).abs().max() / other.abs().max()).item()
        if not wrong < LIMIT:
            sys.exit(f"{op}: relative error {wrong:.1e} against the float64 reference, limit {LIMIT:.0e}: not timed")


def interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function, called in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def report(title: str, elements: int, seconds: dict[str, list[float]]) -> None:
    """One line for each contender, in ns an element, and how it compares with ours."""
    ours = statistics.median(seconds["ours"])
    for name, times in seconds.items():
        _, middle, high = (1e9 * value / elements for value in statistics.quantiles(times, n=4))
        low = 1e9 * min(times) / elements
        ratio = statistics.median(times) / ours
        print(f"{title:44} {name:32} {middle:8.3f} ns [{low:.3f}, {high:.3f}]  {ratio:6.2f} x ours")


def scans(op: str, repeats: int) -> None:
    """Forward, and forward with backward, of one scan over all shapes."""
    for shape in SHAPES:
        args, functions = contenders(shape)[op]
        check(op, args)
        elements = shape[0] * shape[1] * shape[2]
        with torch.no_grad():
            forward = {name: functools.partial(run, *args) for name, run in functions.items()}
            report(f"{op} forward {shape}", elements, interleaved(forward, repeats))
        weight = torch.randn(shape)
        both = {name: functools.partial(gradients, run, args, weight) for name, run in functions.items()}
        report(f"{op} forward + backward {shape}", elements, interleaved(both, repeats))


def attention_step(repeats: int) -> None:
    """One step of acting: one token with a ring of 60."""
    q = torch.randn(1, 1, 1, 128)
    _, state = local_attention(q, q, q, 60)
    reset = torch.zeros(1, 1, dtype=torch.bool)
    with torch.no_grad():
        steps = {
            "ours": lambda: local_attention(q, q, q, 60, state),
            "with reset": lambda: local_attention(q, q, q, 60, state, reset),
        }
        report("local_attention step, W = 60, E = 128", 1, interleaved(steps, 10 * repeats))


def main() -> None:
    """Print the machine, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--op", choices=["linear_scan", "rg_lru", "causal_conv", "local_attention"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"rlseq {rlseq.__version__}, torch {torch.__version__}, numba {numba.__version__}, {platform.python_version()}"
    )
    print(f"{platform.machine()} {platform.processor() or platform.platform()}, {options.threads} thread(s), float32")
    for row in status():
        print(f"  {row.op}: {row.implementation} {'chosen' if row.chosen else row.reason or 'live'}")
    for op in [options.op] if options.op else ["linear_scan", "rg_lru", "causal_conv", "local_attention"]:
        if op == "local_attention":
            attention_step(options.repeats)
        else:
            scans(op, options.repeats)


if __name__ == "__main__":
    main()
