"""Several processes that learn together: what they exchange, and what happens when one of them is lost.

`torchrun` starts the processes, here called workers, and tells each of them its rank by environment variables. Tensors
on the CPU are exchanged through gloo, those on a GPU through NCCL.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from relax_rl.errors import RelaxRLError, SettingsError, WorkerLost

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from torch.distributed import Store

__all__ = [
    "ALONE",
    "Group",
    "Workers",
    "check_same_settings",
    "elastic",
    "is_first",
    "joined",
    "local_count",
    "local_device",
    "run_to_resume",
]


class Workers:
    """The processes that learn together, seen from one of them; here it is alone.

    All of them call the same methods in the same order; each call waits for the others. What comes back is the same
    everywhere, bit for bit.

    Attributes:
        rank: which of them this one is, from 0.
        count: how many there are.
    """

    rank, count = 0, 1

    def average_(self, *tensors: Tensor) -> None:
        """Replace each tensor, in place, by its mean over the workers."""

    def gather(self, vector: np.ndarray) -> np.ndarray:
        """`[W, k]` float64: every worker's `[k]` vector, by rank."""
        return vector[None]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        return flag

    def from_first(self, value: Any) -> Any:
        """What the first worker gives here, which JSON must have words for."""
        return value

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite a contiguous tensor by that of the first worker."""


ALONE = Workers()


class Group(Workers):
    """Workers joined by `torch.distributed`.

    Args:
        timeout: seconds to wait for the others.
        store: keeps short notes where all workers find them, also those of workers that are gone; without one a lost
            worker's last words stay unknown.

    Raises:
        WorkerLost: from every exchange, when another worker stopped or does not answer.
    """

    def __init__(self, *, timeout: float, store: Store | None = None) -> None:
        from torch import distributed as dist

        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._timeout, self._store = timeout, store

    def average_(self, *tensors: Tensor) -> None:
        from torch import distributed as dist

        with self._exchange():
            pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in pending:
                work.wait()
        for tensor in tensors:
            tensor.div_(self.count)

    def gather(self, vector: np.ndarray) -> np.ndarray:
        import torch
        from torch import distributed as dist

        own = torch.as_tensor(vector, dtype=torch.float64).contiguous()
        found = [torch.empty_like(own) for _ in range(self.count)]
        with self._exchange():
            dist.all_gather(found, own)
        return torch.stack(found).numpy()

    def any(self, flag: bool) -> bool:
        import numpy as np

        return bool(self.gather(np.array([float(flag)])).any())

    def from_first(self, value: Any) -> Any:
        import torch

        text = json.dumps(value).encode() if self.rank == 0 else b""
        size = torch.tensor([len(text)])
        self.broadcast_(size)
        data = (
            torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(int(size), dtype=torch.uint8)
        )
        self.broadcast_(data)
        return json.loads(data.numpy().tobytes())

    def broadcast_(self, tensor: Tensor) -> None:
        from torch import distributed as dist

        with self._exchange():
            dist.broadcast(tensor, 0)

    def leave_word(self, error: BaseException) -> None:
        """Note for the others why this worker stops."""
        line = (str(error).splitlines() or [""])[0]
        what = line if isinstance(error, RelaxRLError) else f"{type(error).__name__}: {line}".rstrip(": ")
        self._note(_LAST_WORDS, f"worker {self.rank} of {self.count} stopped ({what})")

    def is_first_to_say(self, line: str) -> bool:
        """Whether no other worker has said this line to the user before."""
        key = hashlib.sha256(line.encode()).hexdigest()[:16]
        return self._note(key, str(self.rank)) == str(self.rank)

    def _note(self, key: str, text: str) -> str:
        """Leave a note unless there is one; returns the one that is there, or `text` if the store is gone."""
        if self._store is None:
            return text
        try:
            return str(self._store.compare_set(key, "", text).decode())
        except (RuntimeError, OSError):
            return text

    def _last_words(self) -> str | None:
        """Why the first worker to stop did, if it could say so."""
        if self._store is None:
            return None
        try:
            return str(self._store.get(_LAST_WORDS).decode()) if self._store.check([_LAST_WORDS]) else None
        except (RuntimeError, OSError):
            return None

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            words = self._last_words()
            if words is None and "timed out" in str(error).lower():
                words = f"a worker has not answered for {self._timeout:g} s"
            raise WorkerLost(words or "a worker was killed or can no longer be reached") from error


_LAST_WORDS = "last words"


@contextmanager
def joined(*, device: str = "cpu", timeout: float = 1800.0) -> Iterator[Workers]:
    """The workers that this process was started among; it leaves them at the end of the block.

    A process that `torchrun` did not start, or alone, or whose program has not set up `torch.distributed`, is alone.
    An error that ends the block is noted for the others; if another worker has said the same line to the user before,
    it is marked as `already_printed`.

    Args:
        device: where the networks go; NCCL is set up for a GPU only.
        timeout: seconds to wait for the others, when joining and later.

    Raises:
        WorkerLost: when not all of them join in time.
    """
    from torch import distributed as dist

    ready = dist.is_available() and dist.is_initialized()
    if not ready and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    store = None if ready else _join(device, timeout)
    group = Group(timeout=timeout, store=store)
    try:
        yield group
    except BaseException as error:
        if not isinstance(error, WorkerLost):
            group.leave_word(error)
        if isinstance(error, RelaxRLError):
            error.already_printed = not group.is_first_to_say(str(error))
        raise
    finally:
        if not ready:
            dist.destroy_process_group()


def _join(device: str, timeout: float) -> Store:
    """Set up `torch.distributed` from the environment variables of torchrun."""
    import torch
    from torch import distributed as dist

    wait, backend = timedelta(seconds=timeout), "gloo"
    if device.startswith("cuda"):
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        shared, rank, count = next(dist.rendezvous("env://", timeout=wait))
        shared.set_timeout(wait)
        store = dist.PrefixStore(_meeting(shared, rank, count, timeout), shared)
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=count, timeout=wait
        )
    except (RuntimeError, ValueError, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise WorkerLost(f"the workers did not find one another ({line}); start all of them with torchrun") from error
    return dist.PrefixStore("notes", store)


def _meeting(store: Store, rank: int, count: int, timeout: float) -> str:
    """A name for this meeting of the workers, unlike that of any before it.

    torchrun keeps one store when it starts workers anew: what earlier ones left there, such as their addresses, must
    not be taken for fresh. So each worker shows a token, and the first one answers every token that it sees with the
    name, until all have confirmed it.

    Raises:
        TimeoutError: not all of them came.
    """

    def read(key: str) -> str:
        return str(store.get(key).decode()) if store.check([key]) else ""

    token = secrets.token_hex(8)
    missing = set(range(1, count)) if rank == 0 else set()
    deadline = time.monotonic() + timeout
    if rank > 0:
        store.set(f"token {rank}", token)
    while True:
        for other in missing:
            store.set(f"answer {other}", f"{read(f'token {other}')} {token}")
        missing = {other for other in missing if read(f"confirmed {other}") != token}
        if rank == 0 and not missing:
            return token
        answered, _, name = read(f"answer {rank}").partition(" ")
        if rank > 0 and answered == token:
            store.set(f"confirmed {rank}", name)
            return name
        if time.monotonic() > deadline:
            who = f"worker {min(missing)}" if missing else "the first worker"
            raise TimeoutError(f"{who} of {count} has not come within {timeout:g} s")
        time.sleep(0.01)


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one worker that speaks for all."""
    return environ.get("RANK", "0") == "0"


def local_count(environ: Mapping[str, str] = os.environ) -> int:
    """How many workers share this machine."""
    return int(environ.get("LOCAL_WORLD_SIZE", "1"))


def elastic(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun starts the same command anew when a worker fails."""
    return int(environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def check_same_settings(settings: Mapping[str, Any], workers: Workers) -> None:
    """Raises:
    SettingsError: the workers were not all started with the same settings.
    """
    if workers.count == 1:
        return
    import numpy as np

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    found = workers.gather(np.frombuffer(digest, np.uint8).astype(np.float64))
    if (found != found[0]).any():
        raise SettingsError("the workers were started with different settings; give all machines the same command")


def run_to_resume(
    resume: str | None, run_dir: str | None, has_checkpoint: Callable[[str], bool], workers: Workers
) -> str | None:
    """The run to go on with: one that is asked for, or the one that a command had begun which torchrun starts anew.

    Args:
        resume, run_dir: as the settings have them.
        has_checkpoint: whether a run's folder holds one; the first worker's answer counts.
        workers: all of them.

    Raises:
        SettingsError: a restarted command would not find its run again.
    """
    if resume is not None or not elastic():
        return resume
    if run_dir is None:
        raise SettingsError("torchrun would start a new run after each failure; give --run-dir beside --max-restarts")
    return run_dir if workers.from_first(has_checkpoint(run_dir)) else None


def local_device(device: torch.device, environ: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this worker: of several GPUs on a machine each worker takes its own.

    Raises:
        SettingsError: when there are more workers on this machine than GPUs, or one GPU is named for several workers.
    """
    import torch

    workers = local_count(environ)
    if device.type != "cuda" or workers == 1:
        return device
    if device.index is not None:
        raise SettingsError(f"device is {str(device)!r} for {workers} workers on this machine; use --device cuda")
    if workers > torch.cuda.device_count():
        raise SettingsError(
            f"{workers} workers on a machine with {torch.cuda.device_count()} GPUs, expected one worker for each GPU; "
            "lower --nproc-per-node or use --device cpu"
        )
    return torch.device("cuda", int(environ["LOCAL_RANK"]))
