"""Which implementation runs, and what is said where none can."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rlseq import backbones
from rlseq.errors import ConfigError, KernelError, ShapeError, UnknownNameError
from rlseq.kernels import _dispatch, causal_conv, linear_scan, local_attention, rg_lru, status
from tests.kernels.cases import SCANS, arguments, public, worst


def test_every_op_folder_is_found_with_its_implementations_best_first() -> None:
    assert {*SCANS, "local_attention", "chunk_attention", "gated_projections", "geglu", "rms_norm"} == set(
        _dispatch.ops()
    )
    for op in _dispatch.ops():
        names = _dispatch.implementations(op)
        assert names[-1] == "reference"
        assert len(names) > 1


def test_the_cpu_runs_everything_without_the_reference() -> None:
    chosen = {row.op: row.implementation for row in status() if row.chosen}
    assert set(chosen) == set(_dispatch.ops())
    assert "reference" not in chosen.values()


@pytest.mark.parametrize("op", SCANS)
def test_forcing_the_reference_gives_the_same_values(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(op, 2, 9, 5)
    usual = public(op)(*args)
    monkeypatch.setenv("RLSEQ_KERNEL", "reference")
    chosen = _dispatch.choose(op, "cpu", torch.float32)
    assert chosen.__module__ == f"rlseq.kernels.{op}.reference"
    assert worst(public(op)(*args), usual) < 1e-14


def test_an_unknown_implementation_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSEQ_KERNEL", "referense")
    with pytest.raises(UnknownNameError, match="Did you mean 'reference'"):
        linear_scan(torch.ones(1, 5, 2), torch.ones(1, 5, 2))


def test_a_forced_implementation_that_cannot_run_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSEQ_KERNEL", "cpu")
    with pytest.raises(KernelError, match=r"cpu: tensors are on meta.*reference: excluded by RLSEQ_KERNEL=cpu"):
        linear_scan(torch.ones(1, 5, 2, device="meta"), torch.ones(1, 5, 2, device="meta"))
    assert {row.reason for row in status() if row.op == "geglu" and not row.chosen} == {"excluded by RLSEQ_KERNEL"}


def test_an_op_without_the_forced_implementation_chooses_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {row.op: row.implementation for row in status() if row.chosen}
    for forced in ("gpu", "cpu", "blocked", "cpu,blocked"):
        monkeypatch.setenv("RLSEQ_KERNEL", forced)
        chosen = {row.op: row.implementation for row in status() if row.chosen}
        for op in _dispatch.ops():
            if not {*_dispatch.implementations(op)} & {*forced.split(",")}:
                assert chosen[op] == usual[op]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter runs on CPU tensors")
def test_a_backbone_runs_on_the_kernels_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    model = backbones.build("hawk", width=16, depth=1)
    x = torch.randn(2, 9, 16)
    usual, _ = model(x)
    monkeypatch.setenv("RLSEQ_KERNEL", "gpu")
    assert _dispatch.choose("rg_lru", "cpu", torch.float32).__module__ == "rlseq.kernels.rg_lru.gpu"
    forced, _ = model(x)
    torch.testing.assert_close(forced, usual, rtol=1e-5, atol=1e-5)


def test_several_allowed_implementations_serve_ops_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSEQ_KERNEL", "cpu,blocked")
    chosen = {row.op: row.implementation for row in status() if row.chosen}
    assert chosen["rg_lru"] == "cpu"
    assert chosen["local_attention"] == "blocked"


def test_without_numba_the_ops_say_so_and_run_the_reference() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from rlseq.kernels import linear_scan, status\n"
        "print(linear_scan(torch.ones(1, 5, 2), torch.ones(1, 5, 2))[1].tolist())\n"
        "print([row.reason for row in status() if row.implementation == 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[[5.0, 5.0]]" in done.stdout
    assert done.stdout.count("numba is not installed") == len(SCANS) + 3


@pytest.mark.parametrize("threads", ["0", "two", "-1"])
def test_a_wrong_thread_count_is_one_clear_error(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSEQ_NUM_THREADS", threads)
    with pytest.raises(ConfigError, match=f"RLSEQ_NUM_THREADS must be a positive integer, got '{threads}'"):
        linear_scan(torch.ones(2, 200, 100), torch.ones(2, 200, 100))


def test_arguments_that_do_not_fit_show_every_shape() -> None:
    x, w = torch.ones(2, 5, 3), torch.ones(3)
    with pytest.raises(ShapeError, match=r"a \(2, 5, 3\) float32, b \(2, 4, 3\) float32, h0 None, reset None"):
        linear_scan(x, x[:, :4])
    for bad in (
        lambda: linear_scan(x, x, torch.ones(2, 4)),
        lambda: linear_scan(x, x, reset=torch.zeros(2, 5)),
        lambda: linear_scan(x[:, :0], x[:, :0]),
        lambda: linear_scan(x.long(), x.long()),
        lambda: rg_lru(x, x, x[:1], w),
        lambda: rg_lru(x, x, x, w[:2]),
        lambda: rg_lru(x, x, x, w.long()),
        lambda: rg_lru(x[..., :0], x[..., :0], x[..., :0], w[:0]),
        lambda: causal_conv(x, torch.ones(4, 2), w),
        lambda: causal_conv(x, torch.ones(4, 3), w, torch.ones(2, 4, 3)),
        lambda: causal_conv(x, torch.ones(4, 3), w[:2]),
    ):
        with pytest.raises(ShapeError, match="got "):
            bad()


def test_attention_arguments_that_do_not_fit_show_every_shape() -> None:
    q, k = torch.ones(2, 5, 4, 8), torch.ones(2, 5, 2, 8)
    _, state = local_attention(q, k, k, 3)
    for bad in (
        lambda: local_attention(q, torch.ones(2, 5, 3, 8), torch.ones(2, 5, 3, 8), 3),
        lambda: local_attention(q, k, k[:, :4], 3),
        lambda: local_attention(q, k, k.double(), 3),
        lambda: local_attention(q, k, k, 3, reset=torch.zeros(2, 4, dtype=torch.bool)),
        lambda: local_attention(q, k, k, 4, state=state),
        lambda: local_attention(q, k, k, 3, bias=torch.zeros(4)),
        lambda: local_attention(q, k, k, 3, bias=torch.zeros(3, dtype=torch.int64)),
    ):
        with pytest.raises(ShapeError, match=r"got q \(2, 5, 4, 8\) float32"):
            bad()
    with pytest.raises(ConfigError, match="window must be at least 1"):
        local_attention(q, k, k, 0)
    with pytest.raises(ConfigError, match="dropout 1.0"):
        local_attention(q, k, k, 3, dropout=1.0)


def test_one_setting_rules_the_threads_of_torch_and_of_the_kernels() -> None:
    code = (
        "import torch, rlseq.kernels\n"
        "from rlseq.kernels._threads import thread_count\n"
        "print(torch.get_num_threads(), thread_count())"
    )
    for setting in ("1", "3"):
        environment = {**os.environ, "RLSEQ_NUM_THREADS": setting}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.split() == [setting, setting]


def test_cpu_tensors_load_no_triton() -> None:
    code = (
        "import sys, torch\n"
        "from rlseq.kernels import linear_scan\n"
        "linear_scan(torch.ones(1, 5, 2), torch.ones(1, 5, 2))\n"
        "print('triton' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RLSEQ_KERNEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False"]


def test_tensors_on_several_devices_are_an_error_that_names_them() -> None:
    x, away = torch.ones(2, 5, 3), torch.ones(2, 5, 3, device="meta")
    with pytest.raises(ShapeError, match=r"a \(2, 5, 3\) float32 on meta, b \(2, 5, 3\) float32 on cpu"):
        linear_scan(away, x)
    for bad in (
        lambda: rg_lru(x, x, x, away[0, 0]),
        lambda: causal_conv(x, away[0], x[0, 0]),
        lambda: linear_scan(x, x, reset=torch.zeros(2, 5, dtype=torch.bool, device="meta")),
        lambda: local_attention(x[:, :, None], away[:, :, None], x[:, :, None], 2),
    ):
        with pytest.raises(ShapeError, match="on meta"):
            bad()
    with pytest.raises(ConfigError, match="c must be positive, got -1.0"):
        rg_lru(x, x, x, x[0, 0], c=-1.0)


def test_threads_may_make_the_first_call_together() -> None:
    code = (
        "import torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rlseq.kernels import causal_conv, linear_scan, rg_lru\n"
        "x = torch.ones(1, 5, 2)\n"
        "calls = [lambda: linear_scan(x, x), lambda: rg_lru(x, x, x, x[0, 0]), lambda: causal_conv(x, x[0], x[0, 0])]\n"
        "with ThreadPoolExecutor(3) as pool:\n"
        "    print(len([one.result() for one in [pool.submit(call) for call in calls]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]
