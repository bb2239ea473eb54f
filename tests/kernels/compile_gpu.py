"""Compiles every Triton kernel for GPUs that are not there and reads registers, spills and loops off the machine code.

``python -m tests.kernels.compile_gpu`` prints a Markdown table; no GPU and no driver are needed. The launches of each
op's forward and backward are recorded on CPU tensors, so what is compiled is what would run.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from rlseq.kernels import _triton
from tests.kernels.cases import SCANS, arguments, cast, implementation, with_gradients

CAPABILITIES = (80, 90, 100)
DTYPES = (torch.float32, torch.bfloat16)
_TOOLS = Path(driver.__file__).parent / "bin"
_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.bool: "i1",
}


class Launch(NamedTuple):
    """One kernel with the types of its arguments and its constants."""

    op: str
    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]


class Row(NamedTuple):
    """What a compiled kernel needs; ``loop`` is instructions per element in its longest loop, or in all."""

    op: str
    kernel: str
    dtype: str
    capability: int
    registers: int
    spilled: int
    shared: int
    loop: float


def launches(dtype: torch.dtype) -> list[Launch]:
    """The kernels that the ops launch forward and backward, in one piece and in chunks, each once."""
    found: dict[str, Launch] = {}
    whole, op = _triton.span_of, ""

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        signature, constants = {}, {}
        for name in self.arg_names:
            value = values[name]
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + _NAMES[value.dtype]
            elif name in kwargs or value is None:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
        launch = Launch(op, self, signature, constants, options)
        shown = _label(launch)
        found.setdefault(f"{shown} {signature} {constants} {options}", launch)

    run = JITFunction.run
    JITFunction.run = record
    try:
        for op in SCANS:
            for span in (None, 4 * _triton.GROUP):
                _triton.span_of = whole if span is None else lambda *_, span=span: span
                with_gradients(implementation(op, "gpu"), cast(arguments(op, 2, 64, 128), dtype))
    finally:
        JITFunction.run = run
        _triton.span_of = whole
    return list(found.values())


def compiled(launch: Launch, capability: int, **options: Any) -> Any:
    pointers = [i for i, kind in enumerate(launch.signature.values()) if kind.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={**launch.options, **options})


def measured(launch: Launch, dtype: torch.dtype, capability: int, **options: Any) -> Row:
    """Compile and read the cubin.

    ``spilled`` counts bytes of stack and local memory, and the instructions that go there.
    """
    kernel = compiled(launch, capability, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("--dump-resource-usage", file.name)
        lines = _tool("-sass", file.name)
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", lines)]
    assert {"REG", "STACK", "LOCAL"} <= used.keys(), f"cuobjdump said: {usage[:200]}"
    assert len(code) > 20, f"cuobjdump said: {lines[:200]}"
    moves = sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code)
    elements = launch.constants["BLOCK"] * launch.constants.get("GROUP", 1)
    loop = (_longest_loop(code) or len(code)) * 32 * launch.options["num_warps"] / elements
    spilled = used["STACK"] + used["LOCAL"] + moves
    return Row(
        launch.op,
        _label(launch),
        _NAMES[dtype],
        capability,
        used["REG"],
        spilled,
        kernel.metadata.shared,
        round(loop, 1),
    )


def rows(*, full: bool) -> list[Row]:
    """All kernels, dtypes and chips; the small kernels that only chunks need for one chip unless ``full``.

    On all processors: Triton takes seconds for a kernel, nearly all of it in its pass that coalesces memory accesses.
    """
    _all.extend((launch, dtype) for dtype in DTYPES for launch in launches(dtype))
    work = [
        (i, capability)
        for i, (launch, _) in enumerate(_all)
        for capability in CAPABILITIES
        if full or capability == 90 or not re.search("summary|prefix", _label(launch))
    ]
    # fork: a JITFunction cannot be pickled, but the children have the list
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.starmap(_row, work, chunksize=1)


_all: list[tuple[Launch, torch.dtype]] = []


def _row(i: int, capability: int) -> Row:
    return measured(*_all[i], capability)


def table(found: list[Row]) -> str:
    """One line a kernel and dtype; registers and instructions of the three chips side by side."""
    lines = collections.defaultdict(list)
    for row in found:
        lines[row.op, row.kernel, row.dtype].append(row)
    chips = " / ".join(f"sm_{capability}" for capability in CAPABILITIES)
    out = [
        f"| op | kernel | dtype | registers ({chips}) | spills | shared bytes | instructions per element in the loop |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (op, kernel, dtype), of in lines.items():
        columns = [" / ".join(str(getattr(row, name)) for row in of) for name in ("registers", "loop")]
        spilled, shared = max(row.spilled for row in of), max(row.shared for row in of)
        out.append(f"| {op} | {kernel} | {dtype} | {columns[0]} | {spilled} | {shared} | {columns[1]} |")
    return "\n".join(out)


def _label(launch: Launch) -> str:
    name = launch.kernel.fn.__name__.strip("_").removesuffix("_kernel")
    if launch.constants.get("SUMMARY"):
        return f"{name} summary"
    return f"{name} reversed" if launch.constants.get("REVERSE") else name


def _longest_loop(code: list[tuple[int, str]]) -> int:
    """Instructions between the branch that goes furthest back and its target."""
    longest = 0
    for at, text in code:
        found = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if found and int(found[1], 16) < at:
            longest = max(longest, sum(int(found[1], 16) <= other <= at for other, _ in code))
    return longest


def _tool(*arguments: str) -> str:
    done = subprocess.run([_TOOLS / "cuobjdump", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    """Print the table, or with --json the rows and what a kernel that must spill measures."""
    found = rows(full="--json" not in sys.argv)
    if "--json" in sys.argv:
        forced = measured(launches(torch.float32)[0], torch.float32, CAPABILITIES[0], maxnreg=32)
        print(json.dumps({"rows": [row._asdict() for row in found], "forced": forced._asdict(), "table": table(found)}))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
