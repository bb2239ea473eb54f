"""Nanoseconds an element of every kernel beside the same in torch, after a check against the float64 reference.

python benchmarks/kernels.py [--ops rg_lru ...] [--threads 1 2] [--repeats 20] [--device cuda] [--json FILE]
python benchmarks/kernels.py --sweep 64 256 1024 4096 16384 65536 [--plot FILE.png]

All contenders of a shape run in one process, in turns, on the same inputs, and allocate their outputs alike. An op
whose values or gradients on the timed inputs are wrong is not timed: the script ends with the error. GB/s counts the
numbers that an op must read and write, and stands beside what a copy reaches. It prints Markdown tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import check_file, check_picture, script_provenance, set_threads, threads
from kernel_cases import CASES, SWEEP, Case, Function, chunk_attention
from torch import Tensor

from rlseq import kernels
from rlseq.progress import ProgressBar

LIMIT, RIVAL_LIMIT = 1e-5, 1e-3
"""Largest relative error of a float32 value or gradient of what is timed: ours, and what it is compared with."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SLOW = ("softmax_scan", "local_attention", "chunk_attention")
"""Ops whose rivals take seconds a call: a quarter of the repeats."""
COPY = (16, 4096, 256)
LINEAR = 2.2
"""Most time of twice the tokens."""
Row = dict[str, Any]


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
    rows, tokens = case.checked
    part = (slice(rows), slice(tokens))
    cut = [one[part] if one.dim() > 2 else one for one in inputs]
    like = inputs[case.element]
    weight = torch.zeros_like(like)
    weight[part] = torch.randn(like[part].shape, generator=torch.Generator().manual_seed(1)).to(like)
    got = gradients(run, inputs, weight)
    expected = gradients(case.reference, [one.double() for one in cut], weight[part].double())
    errors = []
    for one, other in zip(got, expected, strict=True):
        difference = (one[part] if one.dim() > 2 else one).double() - other
        errors.append((difference.abs().max() / other.abs().max()).item())
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def check(case: Case) -> None:
    """SystemExit where ours, or a rival that should compute the same, is too far from the float64 reference."""
    for name, run in {"rlseq": case.ours, **({} if case.rival_inputs else case.rivals)}.items():
        found, limit = error(case, run, torch.float32), LIMIT if run is case.ours else RIVAL_LIMIT
        if not found < limit:
            raise SystemExit(
                f"check: {case.op} ({name}) must agree with the float64 reference to {limit:g} on "
                f"{case.shape}, got {found:.1e}. Not timing it."
            )


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Of one call, until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def interleaved(functions: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each function, called in turns, after a warm-up of a fifth of the repeats."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    warm_up = max(1, repeats // 5)
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            taken = seconds_of(function, device)
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def timed(case: Case, repeats: int, device: str) -> list[Row]:
    """A row for each pass and contender."""
    like = case.inputs[case.element]
    weight = torch.randn(like.shape, generator=torch.Generator().manual_seed(2)).to(like)
    rows = []
    for backward in (False, True):
        rivals = case.rivals if backward in case.passes else {}
        calls: dict[str, Callable[[], object]] = {}
        for name, run in {"rlseq": case.ours, **rivals}.items():
            inputs = case.inputs if run is case.ours else case.rival_inputs or case.inputs
            calls[name] = functools.partial(gradients, run, inputs, weight)
            if not backward:
                calls[name] = functools.partial(run, *inputs)
        with torch.set_grad_enabled(backward):
            seconds = interleaved(calls, max(3, repeats // 4) if case.op in SLOW else repeats, device)
        ours = statistics.median(seconds["rlseq"])
        for name, times in seconds.items():
            median = statistics.median(times)
            first, _, third = statistics.quantiles(times, n=4)
            row: Row = {"op": case.op, "shape": list(case.shape), "backward": backward, "contender": name}
            row |= {key: 1e9 * value / weight.numel() for key, value in (("ns", median), ("q1", first), ("q3", third))}
            if name == "rlseq":
                row["gb_s"] = case.moved[backward] * weight.element_size() * weight.numel() / median / 1e9
            else:
                row |= {"ratio": median / ours, "bar": case.bars.get(backward)}
            rows.append(row)
    return rows


def print_times(rows: Sequence[Row], copy: float) -> None:
    """Lines of a Markdown table."""
    for row in rows:
        passes = "forward + backward" if row["backward"] else "forward"
        shape = ", ".join(map(str, row["shape"]))
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        bar = f"{row['bar']:g}" if row.get("bar") else ""
        moved = f"{row['gb_s']:.1f} ({row['gb_s'] / copy:.2f})" if "gb_s" in row else ""
        spread = f"{row['q1']:.2f} to {row['q3']:.2f}"
        print(
            f"| {row['op']} | ({shape}) | {passes} | {row['contender']} | {row['ns']:.2f} | {spread} | {moved} |"
            f" {ratio} | {bar} |"
        )
    sys.stdout.flush()


def print_errors(ops: Sequence[str], device: str) -> dict[str, dict[str, float]]:
    """A Markdown table of the errors by dtype, on the first shape of each op."""
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print(f"\n| op | {' | '.join(names)} |\n|---" + "|---" * len(names) + "|")
    errors = {}
    for op in ops:
        case = CASES[op][0]().to(device)
        errors[op] = {name: error(case, case.ours, dtype) for name, dtype in zip(names, DTYPES, strict=True)}
        print(f"| {op} | " + " | ".join(f"{one:.0e}" for one in errors[op].values()) + " |", flush=True)
    return errors


def copy_bandwidth(repeats: int, device: str) -> float:
    """GB/s of a copy of a large array, read and write counted."""
    source = torch.randn(COPY, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, repeats, device)["copy"]
    return 2 * source.numel() * source.element_size() / statistics.median(seconds) / 1e9


def compare(ops: Sequence[str], threads: int, repeats: int, device: str) -> list[Row]:
    """The table of one thread count."""
    set_threads(threads)
    copy = copy_bandwidth(repeats, device)
    print(f"\n{threads} thread{'s' * (threads > 1)}; a copy of {COPY} moves {copy:.1f} GB/s\n")
    print("| op | shape | pass | contender | ns an element | quartiles | GB/s (of a copy) | its time / ours | bar |")
    print("|---" * 9 + "|")
    rows: list[Row] = []
    for op in ops:
        for make in CASES[op]:
            case = make().to(device)
            check(case)
            found = timed(case, repeats, device)
            print_times(found, copy)
            rows += found
    if "chunk_attention" in ops:
        shape = CASES["chunk_attention"][0]().shape
        ratio = doubled(shape, repeats, device)
        print(f"\nchunk_attention, forward + backward: t({2 * shape[1]}) / t({shape[1]}) = {ratio:.2f}, bar {LINEAR}")
    return [{"threads": threads, **row} for row in rows]


def doubled(shape: Sequence[int], repeats: int, device: str) -> float:
    """Time of chunk_attention on twice the tokens over its time on a shape (B, L, e), forward + backward."""
    calls = {}
    for factor in (1, 2):
        case = chunk_attention((shape[0], factor * shape[1], shape[2]), dense=False).to(device)
        weight = torch.ones_like(case.inputs[case.element])
        calls[str(factor)] = functools.partial(gradients, case.ours, case.inputs, weight)
    seconds = interleaved(calls, repeats, device)
    return statistics.median(seconds["2"]) / statistics.median(seconds["1"])


def sweep(ops: Sequence[str], lengths: Sequence[int], repeats: int, device: str) -> list[Row]:
    """Nanoseconds an element, forward + backward, of one row of every length."""
    print(f"\nforward + backward, ns an element of one row, by its length\n\n| op | {' | '.join(map(str, lengths))} |")
    print("|---" * (len(lengths) + 1) + "|")
    rows: list[Row] = []
    with ProgressBar("kernels", len(ops) * len(lengths)) as bar:
        for op in ops:
            check(SWEEP[op](min(lengths)).to(device))
            cells = []
            for length in lengths:
                case = SWEEP[op](length).to(device)
                weight = torch.ones_like(case.inputs[case.element])
                call = functools.partial(gradients, case.ours, case.inputs, weight)
                seconds = statistics.median(interleaved({"rlseq": call}, repeats, device)["rlseq"])
                rows.append({"op": op, "length": length, "ns": 1e9 * seconds / weight.numel()})
                cells.append(f"{rows[-1]['ns']:.2f}")
                bar.update(len(rows), f"{op} {length}")
            print(f"| {op} | {' | '.join(cells)} |", flush=True)
    return rows


def plot(rows: Sequence[Row], file: Path) -> None:
    """Time an element over the length, both logarithmic: a line that does not rise is linear time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
    for op in dict.fromkeys(row["op"] for row in rows):
        points = [(row["length"], row["ns"]) for row in rows if row["op"] == op]
        axes.plot(*zip(*points, strict=True), marker="o", label=op)
    axes.set(xscale="log", yscale="log", xlabel="tokens L", ylabel="ns an element, forward + backward")
    axes.set_title("Time an element against length (flat = linear in L)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Checks, prints where, the errors and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=threads, nargs="+", default=[1, 2], help="of torch and the kernels, in turn")
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed calls; a quarter of it where rivals take seconds"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sweep", type=int, nargs="+", metavar="L", help="times by length instead of the comparison")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --sweep: draw it (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be at least 2.")
    if options.sweep and min(options.sweep) < 1:
        parser.error("--sweep takes lengths of at least 1.")
    if options.plot and not options.sweep:
        parser.error("--plot draws a sweep; add --sweep.")
    check_picture(parser, options.plot)
    check_file(parser, options.json)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none.")
    set_threads(options.threads[0])
    where = script_provenance()
    print(json.dumps(where))
    live = {
        row.op: row.implementation for row in kernels.status(options.device) if row.chosen and row.op in options.ops
    }
    print("implementations:", ", ".join(f"{op} {name}" for op, name in live.items()))

    figures: dict[str, Any] = {}
    if options.sweep:
        figures["sweep"] = sweep(options.ops, options.sweep, options.repeats, options.device)
        if options.plot:
            plot(figures["sweep"], options.plot)
    else:
        figures["errors"] = print_errors(options.ops, options.device)
        figures["times"] = [
            row for threads in options.threads for row in compare(options.ops, threads, options.repeats, options.device)
        ]
    if options.json is not None:
        options.json.write_text(json.dumps({**where, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
