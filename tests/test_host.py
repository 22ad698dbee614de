"""What the C libraries are asked for: threads end when asked to, and come back with the next parallel loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch

from relax_rl.compute.host import retire_threads

TASKS = "/proc/self/task"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads that Linux lists")
def test_threads_end_and_come_back(two_threads: None) -> None:
    x = torch.linspace(-1.0, 1.0, 2**20)
    expected = torch.relu(x)
    working = len(os.listdir(TASKS))
    retire_threads()
    assert len(os.listdir(TASKS)) < working
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.relu(x), expected)
    assert len(os.listdir(TASKS)) == working


def test_nothing_happens_where_no_threads_are() -> None:
    retire_threads()
    retire_threads()
    assert torch.get_num_threads() >= 1
