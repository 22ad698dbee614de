"""Runs on a Ray cluster, as the command sees it: mistakes, and the real thing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from relax_rl.cli import main
from relax_rl.comparison import ray_pool
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.own_training import train_own
from relax_rl.comparison.pool import Task, WorkerPool
from relax_rl.comparison.progress import Board, View
from relax_rl.comparison.ray_bridge import connect
from relax_rl.comparison.ray_pool import RayCluster
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.interruption import Interruption
from relax_rl.runs.loggers import read_csv

ROOT = Path(__file__).parent.parent
SMALL = ["hidden=8", "log_interval=100", "num_steps=5"]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is missing: pip install 'relax-rl[ray]'")


@pytest.mark.parametrize("address", ["", "somewhere", "ray://head", "head:port", "a b:1"])
def test_addresses_that_are_none(address):
    with pytest.raises(SettingsError, match=r"expected auto, local, HOST:PORT or ray://HOST:PORT"):
        CompareConfig(ray_address=address)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "ray://head:10001", "[::1]:6379"])
def test_addresses(address):
    assert CompareConfig(ray_address=address).ray_address == address


def test_missing_ray_is_told(capsys, monkeypatch):
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    assert main(["compare", "--ray-address", "auto"]) == 2
    expected = "error: --ray-address needs Ray, which is missing: pip install 'relax-rl[ray]'\n"
    assert capsys.readouterr().err == expected


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_nobody_at_the_address(prefix, closed_port):
    with pytest.raises(RelaxRLError, match=r"no Ray cluster answers at .*Connection refused"):
        connect(f"{prefix}127.0.0.1:{closed_port}")


def test_nobody_at_the_address_is_told_in_one_line_and_leaves_no_folder(closed_port, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: True)
    args = ["--estimators", "a2c", "--seeds", "1", "--ray-address", f"127.0.0.1:{closed_port}", "--run-dir", "it"]
    assert main(["compare", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "Connection refused; check the address that `ray start --head` has told" in err
    assert not (tmp_path / "it").exists()


def test_ray_is_not_imported_before_it_is_needed():
    code = "import sys, relax_rl.comparison.command, relax_rl.comparison.ray_pool; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


# With Ray
CLUSTER = """
import sys, ray
about = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000,
                 log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray cluster of this machine, and the folder for temporary files of its workers."""
    temporary = tmp_path_factory.mktemp("node")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    address = process.stdout.readline().strip()
    assert address, "Ray has not started"
    yield address, temporary
    process.stdin.close()
    process.wait(60)


@needs_ray
def test_a_comparison_on_a_cluster_gives_the_numbers_of_one_on_this_machine(cluster, tmp_path, capsys, monkeypatch):
    address, _ = cluster
    monkeypatch.chdir(tmp_path)
    args = ["--env", "CartPole-v1", "--estimators", "a2c", "--seeds", "1", "--total-steps", "400", "--set", *SMALL]
    more = [
        "--tune",
        "1",
        "--tune-steps",
        "200",
        "--variance",
        "--variance-batches",
        "2",
        "--variance-fit-batches",
        "0",
    ]
    assert main(["compare", *args, *more, "--ray-address", address, "--run-dir", "far"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "CartPole-v1-a2c-s0: mean return" in out
    far, near = tmp_path / "far" / "runs" / "CartPole-v1-a2c-s0", tmp_path / "near"
    settings = {"hidden": [8], "log_interval": 100, "num_steps": 5}
    task = {"env": "CartPole-v1", "estimator": "a2c", "seed": 0, "folder": str(near), "settings": settings}
    assert train_own({**task, "total_steps": 400, "stop_at_return": None}, lambda _: None)["status"] == "finished"
    assert (far / "episodes.csv").read_bytes() == (near / "episodes.csv").read_bytes()
    assert read_csv(far / "progress.csv")["return_mean"] == read_csv(near / "progress.csv")["return_mean"]
    assert json.loads((far / "config.json").read_text())["run"]["run_dir"] == "far/runs/CartPole-v1-a2c-s0"
    result = json.loads((tmp_path / "far" / "comparison.json").read_text())
    assert (result["num_workers"], result["cores"], result["cluster"]["nodes"]) == (2, 2, 1)
    stages = result["variance"]["CartPole-v1"]
    assert list(stages) == ["early", "midway", "late"]
    assert all(stage["checkpoint"].startswith("far/runs/") for stage in stages.values())
    assert "2 runs side by side on 2 cores of 1 node of a Ray cluster" in (tmp_path / "far" / "report.md").read_text()
    assert main(["compare", "--resume", "far", "--ray-address", "None", "--quiet"]) == 0, "without the cluster"


class Watching(View):
    """Kills what holds the first worker once a checkpoint has come back, and interrupts when the run goes on."""

    def __init__(self, run: Path, temporary: Path, interruption: Interruption) -> None:
        super().__init__(Board(1))
        self.run, self.temporary, self.interruption = run, temporary, interruption
        self.killed, self.starts, self.lines = False, 0, []

    def started(self, task: Task) -> None:
        super().started(task)
        self.starts += 1

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, task: Task, message) -> None:
        super().progress(task, message)
        if not self.killed and any(self.run.glob("checkpoints/step_*")):
            self.killed = True
            os.kill(self.holder(), signal.SIGKILL)
        elif self.starts > 1:
            self.interruption.signal = signal.SIGINT

    def holder(self) -> int:
        """The process that has started the worker of the cluster."""
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and str(self.temporary) in os.readlink(entry / "cwd"):
                    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        raise AssertionError("no worker is at work")


class One:
    """A source of a single task."""

    def __init__(self, task: Task) -> None:
        self.tasks, self.ended = [task], {}

    def next(self) -> Task | None:
        return self.tasks.pop() if self.tasks else None

    def finished(self, task: Task, outcome) -> None:
        self.ended = dict(outcome)


@needs_ray
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_a_killed_run_goes_on_from_what_was_collected_and_an_interrupted_one_is_collected(cluster, tmp_path):
    address, temporary = cluster
    run, interruption = tmp_path / "runs" / "a", Interruption()
    settings = {"hidden": [8], "log_interval": 500, "checkpoint_interval": 500, "compile": "off"}
    message = {"kind": "own", "env": "CartPole-v1", "estimator": "a2c", "seed": 0, "folder": str(run)}
    message |= {"total_steps": 10_000_000, "stop_at_return": None, "settings": settings, "snapshots": False}
    view, source = Watching(run, temporary, interruption), One(Task("a", ("E", "a2c"), 10_000_000, message))
    (tmp_path / "logs").mkdir()
    with RayCluster(address, tmp_path / "logs" / "ray.log", collect_interval=0.5) as far:
        assert far.cpus == 2
        with WorkerPool(1, tmp_path / "logs", start=far.start) as pool:
            assert not pool.run(source, view, interruption)
    assert view.killed and view.starts == 2 and source.ended == {}
    assert len(view.lines) == 1 and "is lost (" in view.lines[0] and view.lines[0].endswith("; started again")
    record = json.loads((run / "config.json").read_text())
    assert len(record["resumed"]) == 1 and record["resumed"][0]["step"] >= 500
    last = max(run.glob("checkpoints/step_*")).stem
    assert int(last[5:]) > record["resumed"][0]["step"], "it was saved when it was interrupted"
    assert not (run / "outcome.json").exists()
    steps = read_csv(run / "progress.csv")["step"]
    assert steps == sorted(set(steps))


@needs_ray
def test_a_cluster_that_is_lost_ends_the_comparison_and_nothing_hangs(cluster, tmp_path):
    with RayCluster(cluster[0], tmp_path / "ray.log") as far:
        far._bridge.kill()
        message = {"kind": "own", "folder": str(tmp_path / "run")}
        pool = WorkerPool(1, tmp_path, start=far.start)
        with pytest.raises(RelaxRLError, match=r"the Ray cluster at .* is lost, .* go on with --resume"):
            pool.run(One(Task("a", ("E", "a2c"), 1, message)), View(Board(1)), Interruption())
        pool.close()


@needs_ray
def test_a_port_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RelaxRLError, match=f"no Ray cluster has answered at {address} within 3 seconds; check"):
            RayCluster(address, tmp_path / "ray.log", timeout=3.0)
