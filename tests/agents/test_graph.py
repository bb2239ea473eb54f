"""Operations of PyTorch that an exported graph has in words of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlseq.agents.engines import onnx as onnx_engine
from rlseq.agents.engines._graph import translations


def run(module: nn.Module, *given: Tensor) -> np.ndarray[Any, Any]:
    """What onnxruntime makes of a module."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    with onnx_engine._quiet():
        program = torch.onnx.export(
            module.eval(), given, dynamo=True, verbose=False, custom_translation_table=translations()
        )
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, (one.numpy() for one in given), strict=True)))[0]


def test_a_sigmoid_keeps_its_digits_near_zero() -> None:
    x = torch.linspace(-80.0, 20.0, 1001)
    np.testing.assert_allclose(run(nn.Sigmoid(), x), x.double().sigmoid().numpy(), rtol=2e-6)


class Attention(nn.Module):
    """Softmax attention under a mask."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("flags", "scale"), [(True, None), (True, 0.3), (False, None)])
def test_attention_is_pytorchs(queries: int, dtype: torch.dtype, flags: bool, scale: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, 8, dtype=dtype) for length in (queries, 7, 7))
    seen = torch.rand(3, 1, 1, 7) < 0.6
    seen[..., 0] = True
    mask = seen if flags else torch.randn(3, 1, 1, 7, dtype=dtype)
    attention = Attention(scale)
    expected = attention(query, key, value, mask).numpy()
    np.testing.assert_allclose(run(attention, query, key, value, mask), expected, atol=1e-6)
