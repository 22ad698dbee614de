"""Functions of tensors traced once, gradients and all: compiled by torch's inductor for a CPU, recorded on a CUDA GPU.

Machine code for a CPU is kept between runs; see `relax_rl.compute.code_cache`. Recordings are made anew.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from relax_rl.compute import code_cache
from relax_rl.errors import SettingsError

if TYPE_CHECKING:
    import torch

__all__ = [
    "NO_COMPILER",
    "CompilationError",
    "Compiled",
    "NotKept",
    "agree",
    "announced",
    "compile_function",
    "has_compiler",
    "record",
    "warn_or_raise",
]

NO_COMPILER = "it needs a C++ compiler and Python's headers, and one of them is missing; install g++ and python3-dev"
"""Why nothing can be compiled where `has_compiler` is false."""


_TOLERANCE = 0.01
"""Of the norm of an output, far above the rounding of sums in another order."""

_around: ContextVar[Callable[[], AbstractContextManager[object]]] = ContextVar("around", default=nullcontext)

Function = Callable[..., "tuple[Tensor, ...]"]


class CompilationError(SettingsError):
    """The compiler is there, and fails; or a recording does."""


class NotKept(Exception):
    """There is no machine code yet, and none is to be made."""


@contextmanager
def announced(around: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Within the block, machine code is made within `around()`, which may say so: it takes from seconds to a minute.

    What is entered may end it early by raising NotKept; then there is no code.
    """
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)


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

    Whatever is compiled, or comes from the cache, is checked against the function itself on the first inputs it meets.

    Args:
        function: of tensors on one device, from tensors by name to tensors by name; may form gradients. What it decides
            by Python is decided once. A 0-d tensor costs less inside a vector than by itself.
        identity: what tells the function from all others that this package's code could make; None to keep no code.
        only_kept: take code that is there already, and compile nothing.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        *,
        identity: str | None = None,
        only_kept: bool = False,
    ) -> None:
        self._function, self._identity, self._only_kept = function, identity, only_kept
        self._versions: dict[tuple[Any, ...], tuple[Function, tuple[str, ...]]] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the function gives, without graph.

        Raises:
            CompilationError: the compiler fails, or a GPU's recording, or its code gives other numbers.
            NotKept: there is no code, and none is to be made.
        """
        import torch

        tensors = [x.detach().contiguous() for x in inputs.values()]
        key = (torch.get_num_threads(), *inputs, *(x.shape for x in tensors))
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = self._version(tuple(inputs), tensors)
        run, names = version
        with torch.inference_mode():
            return dict(zip(names, run(*tensors), strict=True))

    def _version(self, names: tuple[str, ...], tensors: Sequence[Tensor]) -> tuple[Function, tuple[str, ...]]:

        outputs: list[str] = []

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = self._function(dict(zip(names, tensors, strict=True)))
            outputs[:] = found
            return tuple(x.detach() for x in found.values())

        if tensors[0].is_cuda:
            return compile_function(function, tensors), tuple(outputs)
        key = None if self._identity is None else _key(self._identity, names, tensors)
        expected = function(*(x.clone() for x in tensors))
        kept = None if key is None else _load_kept(key)
        if kept is not None and agree(_call(kept, tensors), expected):
            return kept, tuple(outputs)
        if self._only_kept:
            raise NotKept("no code is kept for this function")
        with _around.get()():
            run = compile_function(function, tensors, key=key)
        if not agree(_call(run, tensors), expected):
            raise CompilationError("compiled code gives other numbers than eager code; take --compile off")
        return run, tuple(outputs)


def compile_function(function: Function, examples: Sequence[Tensor], *, key: str | None = None) -> Function:
    """The same numbers to rounding, without Python between the kernels.

    Args:
        function: of tensors on one device; may form gradients, `Tensor.backward` included. What it decides by Python is
            decided once, here.
        examples: of its arguments; later ones have these shapes.
        key: under which machine code for a CPU is kept; None to keep none.

    Raises:
        CompilationError: the compiler fails; or on a GPU the recording, or it gives other numbers.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [x.detach().clone() for x in examples]
    with torch.enable_grad():
        traced = make_fx(function)(*inputs)
    return record(traced, inputs) if inputs[0].is_cuda else _compile(traced, inputs, key)


def _compile(traced: torch.fx.GraphModule, inputs: Sequence[Tensor], key: str | None) -> Function:
    """Machine code of a traced function, which nothing of Python stands between any more."""
    import torch
    import torch._inductor

    for node in traced.graph.nodes:
        node.meta.pop("val", None)  # traces of tensors, each of a world of its own, which inductor will not mix
    try:
        with code_cache.workshop(key) as path, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch._inductor.aot_compile(traced, tuple(inputs), options={"aot_inductor.output_path": str(path)})
            return _load(path)
    except Exception as error:  # whatever a tool chain can do wrong; the traced function itself has run by now
        raise CompilationError(f"compiling failed ({_reason(error)}); take --compile off") from error


def _load(path: Path) -> Function:
    """The function that a file of machine code holds."""
    import torch

    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(runner.run(list(tensors)))

    return run


def _load_kept(key: str) -> Function | None:
    path = code_cache.find(key)
    try:
        return None if path is None else _load(path)
    except Exception:  # whatever a loader can do wrong: code that cannot be had from the cache is made anew
        return None


def _key(identity: str, names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    """What code depends on: the function, its inputs, this package, torch, and the machine."""
    import torch

    described = [
        identity,
        *(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in zip(names, tensors, strict=True)),
        code_cache.package_digest(),
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        platform.machine(),
        str(torch.get_num_threads()),
    ]
    return hashlib.sha256("\0".join(described).encode()).hexdigest()[:32]


def _call(run: Function, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    import torch

    with torch.inference_mode():
        return run(*tensors)


def agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether some outputs are others to rounding, those of sums in another order included."""
    pairs = list(zip(found, expected, strict=True))
    return all(x.shape == y.shape and _alike(x, y) for x, y in pairs)


def _alike(found: Tensor, expected: Tensor) -> bool:
    import torch

    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return False
    x, y = (torch.where(finite, each, 0.0).double() for each in (found, expected))
    return bool((x - y).norm() <= _TOLERANCE * y.norm() + 1e-7)


def record(function: Function, inputs: Sequence[Tensor]) -> Function:
    """A function as a CUDA graph, checked against the function itself on other inputs.

    Args:
        function: without gradients; its random numbers, if any, come in as inputs.
        inputs: examples, on a GPU.

    Raises:
        CompilationError: it cannot be recorded, or the recording gives other numbers.
    """
    import torch

    from relax_rl.compute.cuda_graphs import Recording, others_like

    try:
        recording, others = Recording(function, inputs), others_like(inputs)
        with torch.no_grad():
            right = agree(recording(*others), function(*others))
    except Exception as error:  # whatever a driver can do wrong
        raise CompilationError(f"recording a CUDA graph failed ({_reason(error)}); take --compile off") from error
    if not right:
        raise CompilationError("the CUDA graph gives other numbers than what it is a recording of; take --compile off")
    return recording


def _reason(error: Exception) -> str:
    """The line of a compiler's output that says what is wrong, or the first one there is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
