"""One differentiable node for a pair of hand-written kernels, as eager autograd, torch.compile and torch.export see it.

``Library.define`` with the autograd.Function outside, not ``torch.library.custom_op``: that costs three times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

Like = int | Callable[..., Tensor]
_library = torch.library.Library("rlseq", "FRAGMENT")


def differentiable_node(
    name: str,
    device: str,
    forward: tuple[str, Callable[..., tuple[Tensor, ...]]],
    backward: tuple[str, Callable[..., tuple[Tensor, ...]]],
    *,
    forward_like: Sequence[Like],
    backward_like: Sequence[Like],
    kept: Sequence[int],
    gradient_of: Sequence[int],
    constants: int = 0,
    private: int = 0,
) -> Callable[..., tuple[Tensor, ...]]:
    """Register ``rlseq::name`` and ``rlseq::name_backward`` and tie them together for autograd.

    Args:
        name: of the operator.
        device: dispatch key that the two functions implement, such as "CPU".
        forward: schema and function (*inputs, *constants) -> outputs; it gets contiguous tensors, returns fresh ones.
        backward: schema and function (*gradients of outputs, *kept, *constants) -> gradients.
        forward_like: for each output, the index of the argument whose shape and dtype it has, or a function
            (*inputs, *constants) -> empty output.
        backward_like: the same for the backward function.
        kept: what backward needs, as indices into (*inputs, *constants, *outputs).
        gradient_of: for each gradient that backward returns, the index of its input.
        constants: how many trailing arguments are numbers.
        private: how many trailing outputs are for backward only; callers do not get them.

    Returns:
        The function for callers; its tensors must be contiguous.
    """
    forward_op = _register(name, device, forward, forward_like)
    backward_op = _register(f"{name}_backward", device, backward, backward_like)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = forward_op(*inputs)
            everything = (*inputs, *outputs)
            ctx.save_for_backward(*[everything[i] for i in kept])
            ctx.constants = inputs[len(inputs) - constants :]
            ctx.count = len(inputs)
            return outputs[: len(outputs) - private]

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            contiguous = [gradient.contiguous() for gradient in gradients]
            results = backward_op(*contiguous, *ctx.saved_tensors, *ctx.constants)
            out: list[Tensor | None] = [None] * ctx.count
            for i, result in zip(gradient_of, results, strict=True):
                out[i] = result
            return tuple(out)

    def function(*inputs: Any) -> tuple[Tensor, ...]:
        # only here is forward-mode differentiation refused; the operator alone would drop tangents without a word
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return Node.apply(*inputs)
        # an autograd.Function that records nothing still costs as much as a small kernel
        outputs = forward_op(*inputs)
        return outputs[: len(outputs) - private]

    return function


def _register(
    name: str, device: str, implementation: tuple[str, Callable[..., tuple[Tensor, ...]]], like: Sequence[Like]
) -> Callable[..., tuple[Tensor, ...]]:
    schema, function = implementation

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(
            torch.empty_like(arguments[each], memory_format=torch.contiguous_format)
            if isinstance(each, int)
            else each(*arguments)
            for each in like
        )

    # an operator with one output returns it bare
    alone = len(like) == 1
    _library.define(f"{name}{schema}")
    _library.impl(name, _bare(function) if alone else function, device)
    torch.library.register_fake(f"rlseq::{name}", _bare(fake) if alone else fake, lib=_library)
    op: Callable[..., Any] = getattr(torch.ops.rlseq, name).default
    return (lambda *arguments: (op(*arguments),)) if alone else op


def _bare(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    return lambda *arguments: function(*arguments)[0]
