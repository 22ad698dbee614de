"""Functions of tensors as compiled code for the CPU: traced once, gradients and all, and handed to torch's inductor.

Compiled code is kept on disk (`TORCHINDUCTOR_CACHE_DIR`) and found there by later runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["NO_COMPILER", "compile_function", "has_compiler"]

NO_COMPILER = "it needs a C++ compiler, and none is found; install g++"
"""Why nothing can be compiled where `has_compiler` is false."""


@cache
def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """The same numbers to rounding, without Python between the kernels.

    Args:
        function: of tensors; may form gradients, `Tensor.backward` included. What it decides by Python is decided once, here.
        examples: of its arguments; later ones have these shapes.
    """
    import torch
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [x.detach().clone() for x in examples]
    with torch.enable_grad():
        traced = make_fx(function)(*inputs)
    for node in traced.graph.nodes:
        node.meta.pop("val", None)  # traces of tensors, each of a world of its own, which inductor will not mix
    # A C++ wrapper calls the kernels without Python, and is compiled faster than they are one by one.
    compiled: Any = torch._inductor.compile(traced, [*inputs], options={"cpp_wrapper": True})
    run: Callable[..., tuple[Tensor, ...]] = compiled
    return run
