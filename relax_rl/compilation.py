"""Functions of tensors as compiled code for the CPU: traced once, gradients and all, and handed to torch's inductor.

Compiled code is kept on disk (`TORCHINDUCTOR_CACHE_DIR`) and found there by later runs.
"""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from relax_rl.errors import SettingsError

__all__ = ["NO_COMPILER", "CompilationError", "compile_function", "has_compiler", "warn_or_raise"]

NO_COMPILER = "it needs a C++ compiler and Python's headers, and one of them is missing; install g++ and python3-dev"
"""Why nothing can be compiled where `has_compiler` is false."""


class CompilationError(SettingsError):
    """The compiler is there, and fails."""


@cache
def has_compiler() -> bool:
    """Whether there are a C++ compiler and the headers that compiled code includes."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False
    return found and Path(sysconfig.get_path("include"), "Python.h").exists()


def warn_or_raise(error: CompilationError, wanted: str) -> None:
    """What follows from a failure: the error itself if compiled code was asked for ("on"), else a warning."""
    if wanted == "on":
        raise error
    warnings.warn(f"{error}; going on with eager code", UserWarning, stacklevel=2)


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """The same numbers to rounding, without Python between the kernels.

    Args:
        function: of tensors; may form gradients, `Tensor.backward` included. What it decides by Python is decided once, here.
        examples: of its arguments; later ones have these shapes.

    Raises:
        CompilationError: the compiler fails.
    """
    import torch
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [x.detach().clone() for x in examples]
    with torch.enable_grad():
        traced = make_fx(function)(*inputs)
    for node in traced.graph.nodes:
        node.meta.pop("val", None)  # traces of tensors, each of a world of its own, which inductor will not mix
    try:
        # A C++ wrapper calls the kernels without Python, and is compiled faster than they are one by one.
        compiled: Any = torch._inductor.compile(traced, [*inputs], options={"cpp_wrapper": True})
    except Exception as error:  # whatever a tool chain can do wrong; the traced function itself has run by now
        raise CompilationError(f"compiling failed ({_reason(error)}); take --compile off") from error
    run: Callable[..., tuple[Tensor, ...]] = compiled
    return run


def _reason(error: Exception) -> str:
    """The line of a compiler's output that says what is wrong, or the first one there is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
