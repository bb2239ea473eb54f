"""Nanoseconds an element of every kernel beside the same in torch, after a check against the float64 reference.

python benchmarks/kernels.py [--ops rg_lru ...] [--threads 1] [--repeats 20] [--json FILE]

All contenders of a shape run in one process, in turns, on the same inputs, and allocate their outputs alike. An op
whose values or gradients on the timed inputs are wrong is not timed: the script ends with the error. It prints
Markdown tables.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlseq import kernels
from rlseq.provenance import provenance

LIMIT, RIVAL_LIMIT = 1e-5, 1e-3
"""Largest relative error of a float32 value or gradient of what is timed: ours, and what it is compared with."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TAPS, WINDOW = 4, 128
ATTENTION = (4, 3072, 4, 32)
Function = Callable[..., Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One op at one shape: its inputs, ours, and what is timed beside it."""

    op: str
    inputs: list[Tensor]
    ours: Function
    reference: Function
    """Of float64 inputs."""
    rivals: dict[str, Function]
    passes: tuple[bool, ...] = (False, True)
    """Of the rivals: False is forward, True is forward + backward."""
    rows: int | None = None
    tokens: int | None = None
    """Part that is checked, all if None: the ops are causal, and the dense float64 reference needs much memory."""


def elementwise_rg_lru(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> Tensor:
    """The same unit in torch's elementwise ops around linear_scan."""
    u = 8.0 * torch.sigmoid(gate_a) * functional.softplus(a_param)
    beta = torch.sqrt(-torch.expm1(-2.0 * u))
    return kernels.linear_scan(torch.exp(-u), beta * torch.sigmoid(gate_x) * x)[0]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same convolution with groups, its transposes included."""
    padded = functional.pad(x.transpose(1, 2), (weight.shape[0] - 1, 0))
    y = functional.conv1d(padded, weight.t()[:, None], bias, groups=weight.shape[1])
    return y.transpose(1, 2).contiguous()


def band_attention(band: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same attention as one dense call with a band mask, made beforehand."""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=band).transpose(1, 2).contiguous()


def local_reference(window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``kernels.local_attention``'s reference, without a state."""
    return _reference("local_attention")(q, k, v, window, None, None, 0.0)[0]


def _reference(op: str) -> Callable[..., tuple[Tensor, Any]]:
    function: Callable[..., tuple[Tensor, Any]] = getattr(importlib.import_module(f"rlseq.kernels.{op}.reference"), op)
    return function


def scan(op: str, shape: Sequence[int]) -> Case:
    """A case of one of the scans at (B, L, D), from a fixed seed."""
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    x, width = normal(*shape), shape[2]
    run, reference = getattr(kernels, op), _reference(op)

    def ours(*inputs: Tensor) -> Tensor:
        return run(*inputs)[0]

    if op == "linear_scan":
        inputs = [torch.rand(tuple(shape), generator=random), x]
        # a bound, not the same function: it moves the same three arrays
        return Case(op, inputs, ours, lambda *i: reference(*i, None, None)[0], {"torch.add": torch.add}, (False,))
    if op == "rg_lru":
        inputs = [x, normal(*shape), normal(*shape), normal(width) - 3.0]
        rivals: dict[str, Function] = {"torch elementwise + linear_scan": elementwise_rg_lru}
        return Case(op, inputs, ours, lambda *i: reference(*i, None, None, 8.0)[0], rivals)
    inputs = [x, normal(TAPS, width), normal(width)]
    return Case(op, inputs, ours, lambda *i: reference(*i, None, None)[0], {"conv1d with groups": conv1d})


def attention(shape: Sequence[int], window: int = WINDOW) -> Case:
    """local_attention at (B, L, H, E), from a fixed seed."""
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(tuple(shape), generator=random) for _ in range(3)]
    distance = torch.arange(shape[1])[:, None] - torch.arange(shape[1])
    band = torch.where((distance >= 0) & (distance < window), 0.0, -math.inf)
    rivals: dict[str, Function] = {"SDPA with a band mask": functools.partial(band_attention, band)}

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.local_attention(q, k, v, window)[0]

    reference = functools.partial(local_reference, window)
    return Case("local_attention", inputs, ours, reference, rivals, (True,), rows=2, tokens=8 * window)


CASES: dict[str, tuple[Callable[[], Case], ...]] = {
    "linear_scan": tuple(functools.partial(scan, "linear_scan", shape) for shape in ((64, 60, 128), (16, 4096, 256))),
    "rg_lru": tuple(functools.partial(scan, "rg_lru", shape) for shape in ((64, 60, 128), (16, 1000, 128))),
    "causal_conv": tuple(functools.partial(scan, "causal_conv", shape) for shape in ((64, 60, 128), (16, 1000, 128))),
    "local_attention": (functools.partial(attention, ATTENTION),),
}


def gradients(run: Function, inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs, the output weighted."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    output = run(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, weight)]


def error(case: Case, run: Function, dtype: torch.dtype) -> float:
    """Largest relative error of values and gradients on the case's inputs, rounded to the dtype.

    The whole inputs are run; what is outside the checked part gets no weight.
    """
    inputs = [one.to(dtype) for one in case.inputs]
    part = (slice(case.rows), slice(case.tokens))
    cut = [one[part] if one.dim() > 2 else one for one in inputs]
    weight = torch.zeros(inputs[0].shape, dtype=dtype)
    weight[part] = torch.randn(cut[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = gradients(run, inputs, weight)
    expected = gradients(case.reference, [one.double() for one in cut], weight[part].double())
    errors = []
    for one, other in zip(got, expected, strict=True):
        difference = (one[part] if one.dim() > 2 else one).double() - other
        errors.append((difference.abs().max() / other.abs().max()).item())
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def check(case: Case) -> None:
    """SystemExit where ours, or a rival that should compute the same, is too far from the float64 reference."""
    for name, run in {"rlseq": case.ours, **case.rivals}.items():
        if run is torch.add:
            continue
        found, limit = error(case, run, torch.float32), LIMIT if run is case.ours else RIVAL_LIMIT
        if not found < limit:
            raise SystemExit(
                f"check: {case.op} ({name}) must agree with the float64 reference to {limit:g} on "
                f"{tuple(case.inputs[0].shape)}, got {found:.1e}. Not timing it."
            )


def interleaved(functions: dict[str, Callable[[], object]], repeats: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each function, called in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def timed(case: Case, repeats: int) -> list[Row]:
    """A row for each pass and contender; an element is an entry of the output."""
    weight = torch.randn(case.inputs[0].shape, generator=torch.Generator().manual_seed(2))
    warm_up = 3
    if case.op == "local_attention":
        # the dense rival takes seconds a call
        repeats, warm_up = max(3, repeats // 4), 1
    rows = []
    for backward in (False, True):
        rivals = case.rivals if backward in case.passes else {}
        calls: dict[str, Callable[[], object]] = {}
        for name, run in {"rlseq": case.ours, **rivals}.items():
            calls[name] = functools.partial(gradients, run, case.inputs, weight)
            if not backward:
                calls[name] = functools.partial(run, *case.inputs)
        with torch.set_grad_enabled(backward):
            seconds = interleaved(calls, repeats, warm_up)
        ours = statistics.median(seconds["rlseq"])
        for name, times in seconds.items():
            first, median, third = (1e9 * value / weight.numel() for value in statistics.quantiles(times, n=4))
            row: Row = {"op": case.op, "shape": list(weight.shape), "backward": backward, "contender": name}
            row |= {"ns": median, "first_quartile": first, "third_quartile": third}
            rows.append(row | {"ratio": statistics.median(times) / ours})
    return rows


def print_times(rows: Sequence[Row]) -> None:
    """Lines of a Markdown table."""
    for row in rows:
        passes = "forward + backward" if row["backward"] else "forward"
        shape = ", ".join(map(str, row["shape"]))
        ratio = f"{row['ratio']:.2f}" if row["contender"] != "rlseq" else ""
        spread = f"{row['first_quartile']:.2f} to {row['third_quartile']:.2f}"
        print(f"| {row['op']} | ({shape}) | {passes} | {row['contender']} | {row['ns']:.2f} | {spread} | {ratio} |")
    sys.stdout.flush()


def main() -> None:
    """Checks, prints where, the errors and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls, a quarter of it for local_attention")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.threads < 1 or options.repeats < 2:
        parser.error("--threads must be at least 1 and --repeats at least 2.")
    torch.set_num_threads(options.threads)
    os.environ["RLSEQ_NUM_THREADS"] = str(options.threads)
    where = provenance(shlex.join(["python", "benchmarks/kernels.py", *sys.argv[1:]]))
    print(json.dumps(where))
    chosen = {row.op: row.implementation for row in kernels.status() if row.chosen and row.op in options.ops}
    print("implementations:", ", ".join(f"{op} {name}" for op, name in chosen.items()))

    errors: dict[str, dict[str, float]] = {}
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print(f"\n| op | {' | '.join(names)} |\n|---" + "|---" * len(names) + "|")
    for op in options.ops:
        case = CASES[op][0]()
        errors[op] = {name: error(case, case.ours, dtype) for name, dtype in zip(names, DTYPES, strict=True)}
        print(f"| {op} | " + " | ".join(f"{one:.0e}" for one in errors[op].values()) + " |", flush=True)

    times: list[Row] = []
    print("\n| op | shape | pass | contender | ns an element | quartiles | its time / ours |\n" + "|---" * 7 + "|")
    for op in options.ops:
        for make in CASES[op]:
            case = make()
            check(case)
            rows = timed(case, options.repeats)
            print_times(rows)
            times += rows
    if options.json is not None:
        options.json.write_text(json.dumps({**where, "errors": errors, "times": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
