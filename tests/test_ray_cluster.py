"""Runs on a Ray cluster: mistakes, what travels, and the real thing on two nodes with folders of their own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from relax_rl.cli import main
from relax_rl.comparison import ray_cluster, ray_node
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.pool import ProcessLost
from relax_rl.comparison.ray_cluster import RayCluster, RayProcess, describe
from relax_rl.comparison.ray_node import PREFIX, NodeRun, write_files
from relax_rl.comparison.task import Task
from relax_rl.compute.installation import install_line
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.loggers import read_csv

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("address", ["", "somewhere", "ray://head", "head:port", "a b:1"])
def test_addresses_that_are_none(address):
    with pytest.raises(SettingsError, match=r"expected auto, local, HOST:PORT or ray://HOST:PORT"):
        CompareConfig(ray_address=address)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "ray://head:10001", "[::1]:6379"])
def test_addresses(address):
    assert CompareConfig(ray_address=address).ray_address == address


def test_missing_ray_is_told(capsys, monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert main(["compare", "--env", "CartPole-v1", "--ray-address", "auto"]) == 2
    expected = f"error: --ray-address needs Ray, which is missing: {install_line('ray')}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_nobody_at_the_address_is_told_in_one_line_and_leaves_no_folder(prefix, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{probe.getsockname()[1]}"
    args = ["--env", "CartPole-v1", "--estimators", "a2c", "--seeds", "1", "--ray-address", address, "--run-dir", "it"]
    assert main(["compare", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"error: no Ray cluster answers at {address}: Connection refused; check ")
    assert not (tmp_path / "it").exists()


def test_ray_is_not_imported_before_it_is_needed():
    code = "import sys, relax_rl.comparison.session, relax_rl.comparison.ray_cluster; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


def test_files_are_written_atomically_tables_first_and_never_elsewhere(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(ray_node, "write_bytes_atomic", lambda path, data: order.append(path.name))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    write_files(tmp_path / "run", {"checkpoints/step_2": b"", "progress.csv": b"", "episodes.csv": b""}, ["old"])
    assert order == ["progress.csv", "episodes.csv", "step_2"] and not (tmp_path / "run" / "old").exists()
    for name in ("../elsewhere", "/elsewhere"):
        with pytest.raises(ValueError, match="is no file of"):
            write_files(tmp_path / "run", {name: b""}, [])


def test_resources_in_words():
    assert describe({"CPU": 1.0, "GPU": 0.0}) == "1 CPU" and describe({"CPU": 4.0, "GPU": 1.0}) == "4 CPUs and 1 GPU"


TOUCH = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
print("hello")
(folder / "old").unlink()
(folder / "checkpoints").mkdir()
(folder / "checkpoints" / "step_000000002.safetensors").write_bytes(b"two")
(folder / "progress.csv").write_text("step\\n2\\n")
(folder / ".table.1234.tmp").touch()
(folder / "go").exists() or time.sleep(600)
"""


def test_a_node_tells_what_has_changed_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "touch.py").write_text(TOUCH)
    left = tmp_path / f"{PREFIX}of-a-killed-process"
    left.mkdir()
    (left / ".lock").touch()
    run = NodeRun(("touch", "runs/a"), "runs/a", {"old": b"", "same": b"", "go": b""}, 60.0)
    assert not left.exists()
    assert run.about()["versions"]["torch"]
    while (found := run.look(0.5))["code"] is None:
        pass
    expected = {"checkpoints/step_000000002.safetensors": b"two", "progress.csv": b"step\n2\n"}
    assert found == {"code": 0, "row": {"step": 2.0}, "files": expected, "gone": ["old"], "log": b"hello\n"}
    assert next(iter(found["files"])).startswith("checkpoints"), "a table read later reaches further, not less far"
    assert not any(tmp_path.glob(f"{PREFIX}*"))


class RayError(Exception):
    """As Ray's own."""


class RayActorError(RayError):
    actor_init_failed = False


class InitFailed(RayActorError):
    actor_init_failed = True


@pytest.fixture
def begin(tmp_path):
    """Begins with a process on a cluster, of one node with two CPUs, whose answers or errors are known beforehand."""

    def begin(*answers, **task) -> tuple[RayProcess, list]:
        left, placed = list(answers), []

        def get(_):
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        call = SimpleNamespace(remote=lambda *_: None)
        actor = SimpleNamespace(about=call, look=call)
        kind = SimpleNamespace(remote=lambda *arguments: placed.append(arguments) or actor)
        cluster = RayCluster.__new__(RayCluster)
        cluster.root, cluster.warn, cluster._heard = tmp_path, placed.append, math.inf
        cluster._versions, cluster._compared = {"torch": "2"}, set()
        cluster.ray = SimpleNamespace(
            exceptions=SimpleNamespace(RayError=RayError, RayActorError=RayActorError),
            remote=lambda _: SimpleNamespace(options=lambda **_: kind),
            wait=lambda refs, timeout: (refs, []),
            nodes=lambda: [
                {"Alive": alive, "Resources": {"CPU": cpus}} for alive, cpus in ((True, 2.0), (False, 64.0))
            ],
            get=get,
            put=lambda files: files,
            kill=lambda _: None,
        )
        run = Task(name="a", folder="runs/a", begin=("relax_rl", "train"), **task)
        return RayProcess(cluster, run, tmp_path / "log"), placed

    return begin


JOINED = {"node": "far", "versions": {"torch": "2"}}
AT_WORK = {"code": None, "row": {"step": 5.0}}


def test_a_run_that_has_not_begun_is_placed_anew_and_one_that_has_is_lost(begin):
    process, placed = begin(RayActorError("dead"), RayActorError("dead"), JOINED, AT_WORK, RayActorError("dead"))
    assert [process.poll() for _ in range(4)] == [None] * 4 and process.progress() == {"step": 5.0}
    assert placed == [(("relax_rl", "train"), "runs/a", {}, ray_cluster.COLLECT)] * 3
    with pytest.raises(ProcessLost, match=r"far is lost, or its process there \(dead\)"):
        process.poll()
    process, _ = begin(*[RayActorError("dead")] * 99)
    with pytest.raises(ProcessLost, match="its node is lost"):
        while process.poll() is None:
            pass


def test_what_cannot_work_on_a_cluster_fails_at_once(begin, tmp_path):
    for error in (InitFailed("no space left"), RayError("no space left")):
        process, _ = begin(error)
        assert process.poll() == 2 and (tmp_path / "log").read_text().endswith("error: no space left\n")
    process, placed = begin(cpus=4)
    assert process.poll() == 2 and placed == []
    assert (tmp_path / "log").read_text().endswith("error: it needs 4 CPUs, the largest node has 2 CPUs\n")
    process, placed = begin(cpus=0)
    assert process._wanted == {"CPU": 2.0, "GPU": 0.0}, "all of the largest node"


def test_files_come_back_before_the_end_is_told(begin, tmp_path):
    end = {"code": 0, "row": {"step": 9.0}, "files": {"progress.csv": b"step\n9\n"}, "gone": [], "log": b"bye\n"}
    process, placed = begin({**JOINED, "versions": {"torch": "1"}}, end)
    assert process.poll() is None and process.poll() == 0 == process.wait(0.0)
    assert placed[1:] == ["far has torch 1, here is torch 2: numbers need not agree"]
    assert (tmp_path / "runs" / "a" / "progress.csv").read_bytes() == b"step\n9\n"
    assert (tmp_path / "log").read_text() == "bye\n"


SMALL = "--env CartPole-v1 --estimators a2c relax --seeds 1 --total-steps 8000 --set hidden=8 surrogate_hidden=8"
SMALL += " log_interval=500 checkpoint_interval=500 keep_checkpoints=0 --num-workers 2 --quiet"


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_two_nodes_one_of_which_is_killed_half_way(tmp_path, monkeypatch, capsys):
    """Both runs equal those of this machine: one as it is, one as resumed from the checkpoint that had come back."""
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(ray_cluster, "COLLECT", 0.2)
    monkeypatch.setattr(ray_cluster, "_LOOK", 0.2)
    assert main(["compare", *SMALL.split(), "--run-dir", "near"]) == 0
    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    killed: dict[str, object] = {}
    try:
        victim = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        threading.Thread(target=_kill, args=(cluster, victim, tmp_path / "far" / "runs", killed), daemon=True).start()
        assert main(["compare", *SMALL.split(), "--ray-address", cluster.address, "--run-dir", "far"]) == 0
    finally:
        cluster.shutdown()
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("CartPole-v1-")]
    assert len(err) == 1 and "is lost, or its process there (" in err[0] and err[0].endswith("; started again")
    lost = err[0].partition(":")[0]
    (kept,) = {"CartPole-v1-a2c-s0", "CartPole-v1-relax-s0"} - {lost}
    assert lost == killed["lost"]
    far, near = tmp_path / "far" / "runs", tmp_path / "near" / "runs"
    assert _table(far / kept) == _table(near / kept)
    assert (far / kept / "episodes.csv").read_bytes() == (near / kept / "episodes.csv").read_bytes()

    (entry,) = json.loads((far / lost / "config.json").read_text())["resumed"]
    assert 500 <= entry["step"] < 8000
    for checkpoint in (near / lost / "checkpoints").iterdir():
        if checkpoint.stem > f"step_{entry['step']:09d}":
            checkpoint.unlink()
    assert main(["train", "--resume", str(near / lost), "--quiet"]) == 0
    assert _table(far / lost) == _table(near / lost)
    assert (far / lost / "episodes.csv").read_bytes() == (near / lost / "episodes.csv").read_bytes()

    result = json.loads((tmp_path / "far" / "comparison.json").read_text())
    assert (result["cluster"]["nodes"], result["cluster"]["cpus"], result["failures"]) == (2, 2, [])
    assert "2 runs side by side on 2 cores of 2 nodes of a Ray cluster" in (tmp_path / "far" / "report.md").read_text()
    assert not any(Path("/proc", str(pid)).exists() for pid in killed["pids"]), "a child has outlived its node"
    assert main(["compare", "--resume", "far", "--ray-address", "None", "--quiet"]) == 0, "without the cluster"


def _kill(cluster, victim, runs: Path, told: dict[str, object]) -> None:
    """Kill a node once a checkpoint of the run on it has come back; `told` is which run that is, and what worked on it."""
    (raylet,) = (process.process.pid for process in victim.all_processes["raylet"])
    lost, pids = "", (0, 0)
    while not lost:
        time.sleep(0.05)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
                if b"supervised.py" in command and (found := re.search(rb"/runs/([\w-]+)", command)):
                    child, actor = int(entry.name), _parent(int(entry.name))
                    if _parent(actor) == raylet:
                        lost, pids = found[1].decode(), (child, actor)
    while not any((runs / lost).glob("checkpoints/step_*")):
        time.sleep(0.01)
    told |= {"lost": lost, "pids": pids}
    os.kill(pids[0], signal.SIGSTOP)  # it shall not come to its end in the second that Ray takes to end it
    cluster.remove_node(victim, allow_graceful=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)


def _parent(pid: int) -> int:
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def test_a_cluster_that_is_lost_ends_the_comparison(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = RayCluster.__new__(RayCluster)
        cluster._address, cluster._endpoint, cluster.root = "it", server.getsockname(), tmp_path
        cluster._heard = time.monotonic() - 60.0
        cluster.check()
        assert time.monotonic() - cluster._heard < 30.0, "it has answered"
    cluster._heard = time.monotonic() - 10.0
    cluster.check()
    cluster._heard = time.monotonic() - 60.0
    with pytest.raises(RelaxRLError, match=r"the Ray cluster at it is lost \(.*refused\); .* go on with --resume"):
        cluster.check()


def _table(run: Path) -> dict[str, list[float]]:
    """What a run has learned, without the time that it took."""
    return {name: column for name, column in read_csv(run / "progress.csv").items() if "second" not in name}
