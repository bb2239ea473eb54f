"""What an exported graph has of our own: operations in better words than the exporter's, and what may overlap."""

from __future__ import annotations

import math
from typing import Any

import torch


def translations() -> dict[Any, Any]:
    """For `torch.onnx.export`: operations of PyTorch -> functions that write them in ONNX."""
    own = torch.ops.aten
    return {
        own.index_put.default: _scatter,
        own.rms_norm.default: _rms_norm,
        own.scaled_dot_product_attention.default: _attention,
        own.sigmoid.default: _sigmoid,
    }


def in_place(model: Any, names: list[str]) -> list[str]:
    """The arrays of the state whose next one may be written over them.

    Where one scatter makes it of the old one, and all else that reads the old one is a copy of some rows on which that
    scatter waits.
    """
    nodes = list(model.graph.node)
    maker = {output: node for node in nodes for output in node.output}
    found = []
    for name in names:
        scatter = maker.get(f"next.{name}")
        if scatter is None or scatter.op_type != "ScatterND" or scatter.input[0] != f"state.{name}":
            continue
        readers = [node for node in nodes if f"state.{name}" in node.input and node.op_type != "Shape"]
        readers.remove(scatter)
        waited, queue = set(), [*scatter.input[1:]]
        while queue:
            value = queue.pop()
            if value in maker and value not in waited:
                waited.add(value)
                queue.extend(maker[value].input)
        if all(node.op_type == "Gather" and node.output[0] in waited for node in readers):
            found.append(name)
    return found


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """One query a row to the keys that a mask shows it: the exporter's own scales, copies and transposes all keys.

    A query that sees no key gets NaN.
    """
    from onnx_ir import DataType
    from onnxscript import opset20
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    op: Any = opset20
    masked = attn_mask is not None and attn_mask.dtype == DataType.BOOL
    alone = len(query.shape) == 4 and query.shape[-2] == 1
    if not alone or not masked or is_causal or enable_gqa or dropout_p:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    hidden = op.CastLike(op.Constant(value_float=-math.inf), scores)
    return op.MatMul(op.Softmax(op.Where(attn_mask, scores, hidden), axis=-1), value)


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Weight x / sqrt(mean(x^2) + eps) over the last axes, in words that onnxruntime fuses."""
    import onnxscript

    op: Any = onnxscript.opset20
    mean = op.ReduceMean(op.Pow(x, 2.0), list(range(-len(shape), 0)), keepdims=1)
    y = op.Div(x, op.Sqrt(op.Add(mean, torch.finfo(torch.float32).eps if eps is None else eps)))
    return y if weight is None else op.Mul(y, weight)


def _sigmoid(x: Any) -> Any:
    """Near 0 onnxruntime's own has eight digits after the point, not seven in all: a closed gate would not hold."""
    import onnxscript

    op: Any = onnxscript.opset20
    return op.Reciprocal(op.Add(op.Exp(op.Neg(x)), 1.0))


def _scatter(data: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """index_put of whole entries at lists of as many indices is one ScatterND; the exporter's own is twenty nodes."""
    from onnxscript import opset20
    from onnxscript.function_libs.torch_lib.ops.core import aten_index_put

    op: Any = opset20
    lists = [index for index in indices if index is not None and len(index.shape) == 1]
    one_length = len({str(index.shape) for index in lists}) == 1 and None not in lists[0].shape
    whole = len(values.shape) == len(data.shape) - len(lists) + 1 and values.shape[0] == lists[0].shape[0]
    whole = whole and tuple(values.shape[1:]) == tuple(data.shape[len(lists) :])
    if accumulate or len(lists) < len(indices) or not one_length or not whole:
        return aten_index_put(data, indices, values, accumulate)
    columns = [op.Unsqueeze(index, op.Constant(value_ints=[-1])) for index in lists]
    return op.ScatterND(data, columns[0] if len(columns) == 1 else op.Concat(*columns, axis=-1), values)
