"""What workers that learn together are made of: their seeds, their devices, and what they tell each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from relax_rl.compute import distributed
from relax_rl.envs import make_envs
from relax_rl.errors import SettingsError
from tests.workers import run_workers


def test_native_environments_of_workers_differ() -> None:
    native = [make_envs("CartPole-v1", num_envs=2, seed=5, first_env=n).obs for n in (0, 2)]
    assert not (native[0] == native[1]).any()


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cpu, any_gpu, named = (torch.device(name) for name in ("cpu", "cuda", "cuda:1"))
    second = {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert distributed.local_device(cpu, second) == cpu
    assert distributed.local_device(any_gpu, {}) == any_gpu and distributed.local_device(named, {}) == named
    assert distributed.local_device(any_gpu, second) == torch.device("cuda", 1)
    with pytest.raises(SettingsError, match="--device cuda"):
        distributed.local_device(named, second)
    with pytest.raises(SettingsError, match="3 workers on a machine with 2 GPUs"):
        distributed.local_device(any_gpu, {"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"})


def test_a_process_without_torchrun_is_alone() -> None:
    with distributed.joined() as workers:
        assert workers is distributed.ALONE
    vector = np.array([1.0, 2.0])
    np.testing.assert_array_equal(workers.gather(vector), [[1.0, 2.0]])
    assert workers.from_first({"a": 1}) == {"a": 1} and workers.any(True) and not workers.any(False)


def test_exchanges() -> None:
    def work(rank: int) -> Any:
        with distributed.joined(timeout=30.0) as workers:
            a, b = torch.tensor([float(rank), 4.0]), torch.full((2, 2), 10.0 * rank)
            workers.average_(a, b)
            sent = torch.full((3,), rank, dtype=torch.int64)
            workers.broadcast_(sent)
            return (
                a.tolist(),
                b.tolist(),
                sent.tolist(),
                workers.gather(np.array([rank, 0.5])).tolist(),
                workers.from_first({"text": f"from {rank}, ±∞"}),
                workers.from_first(None if rank else []),
                [workers.any(rank == 2), workers.any(False)],
            )

    expected = (
        [1.0, 4.0],
        [[10.0, 10.0], [10.0, 10.0]],
        [0, 0, 0],
        [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]],
        {"text": "from 0, ±∞"},
        [],
        [True, False],
    )
    assert run_workers(3, work) == [("done", expected)] * 3
