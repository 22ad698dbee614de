"""A trained policy as a file that other programs run: ONNX, or a program of `torch.export`."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.errors import RelaxRLError, SettingsError

if TYPE_CHECKING:
    from relax_rl.agents.actor import Actor
    from relax_rl.agents.exported import ExportedPolicy

__all__ = ["FORMATS", "export_policy"]

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats, and how the names of their files end."""
_OPSET = 20
_LARGEST_BATCH = 2**16


def export_policy(
    agent: Actor, path: Path, *, form: str = "onnx", about: Mapping[str, Any] | None = None
) -> ExportedPolicy:
    """Write what `agent.predict(deterministic=True)` computes into one file, for batches of any size.

    Args:
        agent: whose policy; see `ExportedPolicy` for what the file takes and gives.
        path: of the file.
        form: "onnx", which nothing but an ONNX runtime is needed for and which carries no code, or "torch", for
            `torch.export.load`.
        about: what the file says of itself, JSON-able; an ONNX file keeps each entry as metadata.

    Returns:
        The policy that was written, with the names of its inputs and outputs.

    Raises:
        SettingsError: another form, the extra `export` is missing, or spaces with numbers that torch does not have.
        RelaxRLError: the networks cannot be traced, or the file cannot be written.
    """
    if form not in FORMATS:
        raise SettingsError(f"format is {form!r}, expected one of {', '.join(FORMATS)}")
    missing = [name for name in ("onnx", "onnxscript") if form == "onnx" and find_spec(name) is None]
    if missing:
        raise SettingsError(f"--format onnx needs {missing[0]}, which is missing: {install_line('export')}")
    import torch

    from relax_rl.agents.exported import ExportedPolicy
    from relax_rl.agents.factory import evaluating

    policy = ExportedPolicy(agent)
    write = _onnx if form == "onnx" else _program
    try:
        with _silent(), torch.no_grad(), evaluating(policy):
            data = write(policy, about or {})
    except SettingsError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise RelaxRLError(
            f"the policy cannot be exported ({_reason(error)}); networks of your own must be ones that torch.export can trace"
        ) from error
    write_bytes_atomic(path, data)
    return policy


def _shapes(policy: ExportedPolicy) -> tuple[Any, ...]:
    """What torch is told of the inputs: the first dimension of each may be anything."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    return (tuple({0: batch} for _ in policy.inputs),)


def _onnx(policy: ExportedPolicy, about: Mapping[str, Any]) -> bytes:
    import torch

    program = torch.onnx.export(
        policy,
        policy.examples(),
        dynamo=True,
        dynamic_shapes=_shapes(policy),
        opset_version=_OPSET,
        verbose=False,
        input_names=policy.inputs,
        output_names=policy.outputs,
    )
    assert program is not None
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    data: bytes = model.SerializeToString()
    return data


def _program(policy: ExportedPolicy, about: Mapping[str, Any]) -> bytes:
    import torch

    traced = torch.export.export(policy, policy.examples(), dynamic_shapes=_shapes(policy), strict=False)
    buffer = io.BytesIO()
    torch.export.save(traced, buffer, extra_files={"about.json": json.dumps(dict(about))})
    return buffer.getvalue()


def _reason(error: BaseException) -> str:
    """The first line of what was at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _silent() -> Iterator[None]:
    """What exporters log and warn of is theirs; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
