"""Worker processes: how they live through signals, die, and are closed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import time

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.backends import workers
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import RelaxRLError, SettingsError, notes_of
from tests.fakes import GoldenEnv, vector_of


def test_workers_are_daemons_and_their_factories_can_be_sent_to_a_new_process():
    """Where processes are spawned instead of forked, a factory is all they get."""
    with make_envs("Acrobot-v1", num_envs=2, vectorization="async") as envs:
        assert all(process.daemon for process in envs.vector_env.processes)
        assert envs.vector_env.shared_memory
        factory = cloudpickle.loads(cloudpickle.dumps(envs.vector_env.env_fns[1]))
    assert factory().observation_space == envs.single_observation_space


def test_a_worker_that_dies_is_one_line_and_no_wait():
    envs = make_envs("tests.fakes:relax_rl_fakes/Dying-v0", num_envs=2, vectorization="async")
    envs.step(np.zeros(2, int))
    with pytest.raises(RelaxRLError, match=r"a worker process of .*Dying-v0 died") as caught:
        envs.step(np.zeros(2, int))
    assert "\n" not in str(caught.value)
    began = time.monotonic()
    envs.close()
    envs.close()
    assert time.monotonic() - began < 5
    assert not any(process.is_alive() for process in envs.vector_env.processes)


def test_a_worker_that_was_killed_between_steps_is_reported_at_the_next():
    envs = make_envs("Acrobot-v1", num_envs=2, vectorization="async")
    os.kill(envs.vector_env.processes[1].pid, signal.SIGKILL)
    envs.vector_env.processes[1].join()
    with pytest.raises(RelaxRLError, match="died"):
        envs.step(np.zeros(2, int))
    envs.close()
    assert not envs.vector_env.processes[0].is_alive()


def test_workers_leave_ctrl_c_to_the_main_process():
    """Ctrl-C reaches the whole process group; the main process still has a checkpoint to write."""
    before = signal.getsignal(signal.SIGINT)
    with make_envs("Acrobot-v1", num_envs=2, vectorization="async") as envs:
        for process in envs.vector_env.processes:
            os.kill(process.pid, signal.SIGINT)
        for _ in range(3):
            envs.step(np.zeros(2, int))
        assert all(process.is_alive() for process in envs.vector_env.processes)
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_can_be_closed_when_a_step_was_interrupted():
    """An interrupt in the middle of a step leaves answers in the pipes that nobody will read."""
    envs = make_envs("Acrobot-v1", num_envs=2, vectorization="async")
    envs.vector_env.step_async(np.zeros(2, int))
    envs.vector_env.parent_pipes[0].recv()
    envs.close()
    assert not any(process.is_alive() for process in envs.vector_env.processes)


class GlobalDrawsEnv(GoldenEnv):
    """A golden environment that pays what NumPy's and Python's global generators say."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.random.random() + 10 * random.random(), *rest


gym.register("relax_rl_fakes/GlobalDraws-v0", GlobalDrawsEnv, kwargs={"cycle": ((20, "truncated"),)})


def test_workers_draw_their_own_numbers_from_global_generators():
    """Forked, they would all begin with those of the main process."""

    def rewards(seed):
        np.random.seed(0)
        random.seed(0)
        with make_envs("relax_rl_fakes/GlobalDraws-v0", num_envs=3, vectorization="async", seed=seed) as envs:
            return np.stack([envs.step(np.zeros(3, int)).reward for _ in range(4)])

    first = rewards(1)
    assert len(np.unique(first)) == first.size
    np.testing.assert_array_equal(rewards(1), first)
    assert not (rewards(2) == first).any()


def test_an_error_inside_an_environment_keeps_its_own_name():
    """Only a broken pipe is a dead worker; and in one process nothing is one."""

    class Offline(GoldenEnv):
        def step(self, action):
            raise ConnectionError("the robot is offline")

    with VectorEnvs(SyncVectorEnv([Offline])) as envs, pytest.raises(ConnectionError, match="robot"):
        envs.step(np.zeros(1, int))


def test_environments_that_cannot_be_reset_are_closed_again():
    before = set(multiprocessing.active_children())
    with pytest.raises(SettingsError, match="seed") as caught:
        make_envs("Acrobot-v1", num_envs=2, vectorization="async", seed=-1)
    # the traceback keeps the environments alive, so that nobody else has closed them
    assert caught.tb is not None and set(multiprocessing.active_children()) == before


quietly = pytest.mark.filterwarnings("ignore:.*ERROR")
"""Gymnasium warns of what its workers raise."""


class Unsendable(GoldenEnv):
    """Raises what no other process can be sent."""

    def step(self, action):
        class Here(Exception):
            pass

        raise Here("only here")


@quietly
@pytest.mark.timeout(60)
def test_an_error_that_cannot_be_sent_keeps_nobody_waiting():
    gym.register("relax_rl_fakes/Unsendable-v0", Unsendable)
    envs = make_envs("relax_rl_fakes/Unsendable-v0", num_envs=2, vectorization="async")
    with envs, pytest.raises(RuntimeError, match="Here: only here"):
        envs.step(np.zeros(2, int))


class Wrong(GoldenEnv):
    """Gives something else from its second step on."""

    def __init__(self, gives):
        super().__init__()
        self.gives = gives

    def step(self, action):
        right = super().step(action)
        return self.gives(right) if self.t > 1 else right


class WrongAtReset(GoldenEnv):
    def reset(self, **kwargs):
        raise OSError("no robot")


@quietly
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "gives",
    [
        lambda right: right[:4],
        lambda right: None,
        lambda right: (*right[:4], None),
        lambda right: (np.zeros(9), *right[1:]),
        lambda right: (right[0], np.ones(2), *right[2:]),
        lambda right: (right[0], "good", *right[2:]),
    ],
    ids=["short", "none", "no info", "shape", "two rewards", "words"],
)
def test_the_environment_that_an_error_came_from_has_a_number(kind, gives):
    each = [GoldenEnv, GoldenEnv, lambda: Wrong(gives)]
    with VectorEnvs(vector_of(each, AutoresetMode.NEXT_STEP, kind), env_id="Golden") as envs:
        envs.step(np.zeros(3, int))
        with pytest.raises(Exception) as caught:
            envs.step(np.zeros(3, int))
    assert notes_of(caught.value) == ["raised by environment 2 of Golden in step 2 of its episode"]


@quietly
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_at_a_reset_says_so(kind):
    with pytest.raises(OSError, match="no robot") as caught:
        VectorEnvs(vector_of([GoldenEnv, WrongAtReset], AutoresetMode.NEXT_STEP, kind), env_id="Golden")
    assert notes_of(caught.value) == ["raised by environment 1 of Golden at its reset"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads of native code are seen on Linux alone")
def test_workers_are_no_forks_where_drivers_have_threads():
    """A fork waits for ever for locks that such threads held."""
    before = workers._has_threads_of_drivers()  # of what other tests have left
    with make_envs("Acrobot-v1", num_envs=1, vectorization="async") as envs:
        assert (type(envs.vector_env.processes[0]).__name__ == "ForkProcess") != before
    c, thread = ctypes.CDLL(None), ctypes.c_ulong()
    assert c.pthread_create(ctypes.byref(thread), None, ctypes.cast(c.sleep, ctypes.c_void_p), ctypes.c_void_p(60)) == 0
    c.pthread_setname_np(thread, b"llvmpipe-0")
    try:
        assert workers._has_threads_of_drivers()
        with make_envs("tests.fakes:relax_rl_fakes/Golden-v0", num_envs=2, vectorization="async") as envs:
            assert {type(process).__name__ for process in envs.vector_env.processes} == {"ForkServerProcess"}
            for _ in range(3):
                envs.step(np.zeros(2, int))
    finally:
        c.pthread_cancel(thread)
        c.pthread_join(thread, None)
    assert workers._has_threads_of_drivers() == before
