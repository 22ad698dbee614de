"""Functions of tensors traced once, gradients and all: compiled by torch's inductor for a CPU, recorded on a CUDA GPU.

Compiled code is kept on disk (`TORCHINDUCTOR_CACHE_DIR`) and found there by later runs; recordings are made anew.
"""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from relax_rl.errors import SettingsError

if TYPE_CHECKING:
    import torch

__all__ = ["NO_COMPILER", "CompilationError", "Compiled", "compile_function", "has_compiler", "record", "warn_or_raise"]

Named = Mapping[str, Tensor]

NO_COMPILER = "it needs a C++ compiler and Python's headers, and one of them is missing; install g++ and python3-dev"
"""Why nothing can be compiled where `has_compiler` is false."""


class CompilationError(SettingsError):
    """The compiler is there, and fails; or a recording does."""


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


class Compiled:
    """A function of named tensors, compiled once for every set of names and shapes that it meets.

    Args:
        function: as for `compile_function`, from tensors by name to tensors by name; a 0-d tensor costs less inside a
            vector than by itself.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        self._function = function
        self._versions: dict[tuple[Any, ...], tuple[Callable[..., tuple[Tensor, ...]], tuple[str, ...]]] = {}

    def __call__(self, inputs: Named) -> dict[str, Tensor]:
        """What the function gives, without graph.

        Raises:
            CompilationError: as `compile_function`.
        """
        import torch

        tensors = [x.detach().contiguous() for x in inputs.values()]
        key = (torch.get_num_threads(), *inputs, *(x.shape for x in tensors))
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = self._compile(tuple(inputs), tensors)
        run, names = version
        with torch.inference_mode():
            return dict(zip(names, run(*tensors), strict=True))

    def _compile(
        self, names: tuple[str, ...], tensors: Sequence[Tensor]
    ) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[str, ...]]:
        outputs: list[str] = []

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = self._function(dict(zip(names, tensors, strict=True)))
            outputs[:] = found
            return tuple(x.detach() for x in found.values())

        run = compile_function(function, tensors)
        return run, tuple(outputs)


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """The same numbers to rounding, without Python between the kernels.

    Args:
        function: of tensors on one device; may form gradients, `Tensor.backward` included. What it decides by Python is
            decided once, here.
        examples: of its arguments; later ones have these shapes.

    Raises:
        CompilationError: the compiler fails; or on a GPU the recording, or it gives other numbers.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [x.detach().clone() for x in examples]
    with torch.enable_grad():
        traced = make_fx(function)(*inputs)
    return record(traced, inputs) if inputs[0].is_cuda else _compile(traced, inputs)


def _compile(traced: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Compiled code of a traced function."""
    import torch
    import torch._inductor

    for node in traced.graph.nodes:
        node.meta.pop("val", None)  # traces of tensors, each of a world of its own, which inductor will not mix
    try:
        # A C++ wrapper calls the kernels without Python, and is compiled faster than they are one by one.
        compiled: Any = torch._inductor.compile(traced, [*inputs], options={"cpp_wrapper": True})
    except Exception as error:  # whatever a tool chain can do wrong; the traced function itself has run by now
        raise CompilationError(f"compiling failed ({_reason(error)}); take --compile off") from error
    run: Callable[..., tuple[Tensor, ...]] = compiled
    return run


def record(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A function as a CUDA graph, checked against the function itself on other inputs.

    Args:
        function: without gradients; its random numbers, if any, come in as inputs.
        inputs: examples, on a GPU.

    Raises:
        CompilationError: it cannot be recorded, or the recording gives other numbers.
    """
    from relax_rl.compute.cuda_graphs import Recording, same_numbers

    try:
        recording = Recording(function, inputs)
        right = same_numbers(recording, function, inputs)
    except Exception as error:  # whatever a driver can do wrong
        raise CompilationError(f"recording a CUDA graph failed ({_reason(error)}); take --compile off") from error
    if not right:
        raise CompilationError("the CUDA graph gives other numbers than what it is a recording of; take --compile off")
    return recording


def _reason(error: Exception) -> str:
    """The line of a compiler's output that says what is wrong, or the first one there is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
