"""Runs on a Ray cluster: how files travel, what stands on a node, what happens to runs that are lost, and the real thing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest

from relax_rl.cli import main
from relax_rl.comparison import ray_node, ray_pool, ray_slots
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.own_training import train_own
from relax_rl.comparison.pool import Task, WorkerPool
from relax_rl.comparison.progress import Board, View
from relax_rl.comparison.ray_bridge import connect
from relax_rl.comparison.ray_files import Mirror, Names, apply_changes, inputs, package, translation
from relax_rl.comparison.ray_node import PREFIX, NodeWorker
from relax_rl.comparison.ray_pool import RayCluster
from relax_rl.comparison.ray_slots import RESTARTS, Slots, wants
from relax_rl.comparison.worker_process import WorkerProcess
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.interruption import Interruption
from relax_rl.loggers import read_csv

ROOT = Path(__file__).parent.parent
SMALL = ["hidden=8", "log_interval=100", "num_steps=5"]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is missing: pip install 'relax-rl[ray]'")


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# How files travel


def test_a_mirror_tells_what_is_new_and_what_is_gone(tmp_path):
    there, here = Names(str(tmp_path / "there")), Names(str(tmp_path / "here"))
    old = write(tmp_path / "there" / "checkpoints" / "step_1.safetensors", "one")
    write(tmp_path / "there" / "progress.csv", "step\n1\n")
    write(tmp_path / "there" / ".config.json.0a.tmp")
    mirror = Mirror(there)
    changed, gone = mirror.changes()
    assert list(changed) == ["run/checkpoints/step_1.safetensors", "run/progress.csv"], "checkpoints are read first"
    assert gone == []
    apply_changes(here, changed, gone)
    assert (tmp_path / "here" / "progress.csv").read_text() == "step\n1\n"
    assert mirror.changes() == ({}, [])
    old.unlink()
    write(tmp_path / "there" / "progress.csv", "step\n1\n2\n")
    changed, gone = mirror.changes()
    assert (list(changed), gone) == (["run/progress.csv"], ["run/checkpoints/step_1.safetensors"])
    apply_changes(here, changed, gone)
    assert sorted(here.found()) == sorted(there.found()) == ["run/progress.csv"]


def test_files_that_the_other_side_has_are_not_told_again(tmp_path):
    path = write(tmp_path / "progress.csv")
    mirror = Mirror(Names(str(tmp_path)), ["run/progress.csv", "run/old.csv"])
    mirror.settle()
    assert mirror.changes() == ({}, ["run/old.csv"])
    path.write_text("more")
    assert mirror.changes() == ({"run/progress.csv": b"more"}, [])


def test_the_outcome_is_written_last(tmp_path, monkeypatch):
    from relax_rl.comparison import ray_files

    order = []
    monkeypatch.setattr(ray_files, "write_bytes_atomic", lambda path, data: order.append(path.name))
    names = ["run/outcome.json", "run/checkpoints/step_2.safetensors", "run/progress.csv", "run/config.json"]
    apply_changes(Names(str(tmp_path)), dict.fromkeys(names, b""), ())
    assert order == ["config.json", "progress.csv", "step_2.safetensors", "outcome.json"]


@pytest.mark.parametrize("name", ["run/../../x", "/etc/passwd", "x", "run", "result.json"])
def test_a_node_cannot_write_anywhere_else(name, tmp_path):
    with pytest.raises(ValueError, match="is no file of the task"):
        apply_changes(Names(str(tmp_path / "run")), {name: b""}, ())
    assert list(tmp_path.rglob("*")) == []


def test_a_task_takes_the_files_that_it_needs(tmp_path):
    for name in ("config.json", "checkpoints/step_1.safetensors", "snapshots/a.safetensors", "snapshots/b.safetensors"):
        write(tmp_path / name)
    task = {"folder": str(tmp_path), "checkpoint": str(tmp_path / "snapshots" / "b.safetensors"), "result": "r.json"}
    own, known = inputs({**task, "kind": "own"})
    assert sorted(own) == sorted(known) == ["run/checkpoints/step_1.safetensors", "run/config.json"]
    assert sorted(inputs({**task, "kind": "variance"})[0]) == ["run/config.json", "run/snapshots/b.safetensors"]
    peer, known = inputs({**task, "kind": "peer"})
    assert peer == {} and len(known) == 4, "a peer starts over, and its old files go"


def test_paths_of_the_node_do_not_stay_in_json():
    text = json.dumps({"run_dir": "/tmp/node/files/run", "n": 1}).encode()
    assert json.loads(translation([("/tmp/node/files/run", 'a"b')])(text)) == {"run_dir": 'a"b', "n": 1}


def test_the_package_is_whole():
    names = zipfile.ZipFile(BytesIO(package())).namelist()
    assert {"relax_rl/__init__.py", "relax_rl/comparison/worker.py", "relax_rl/comparison/ray_node.py"} <= set(names)
    assert not any("__pycache__" in name for name in names)


# What stands on a node

WORKER = """
import json, os, pathlib, signal, sys, time
for line in sys.stdin:
    task = json.loads(line)
    folder = pathlib.Path(task["folder"])
    open(task["log"], "a").write("printed\\n")
    (folder / "seen").write_text(",".join(sorted(p.name for p in folder.iterdir())))
    (folder / "config.json").write_text(json.dumps({"run_dir": task["folder"]}))
    print(json.dumps({"event": "progress", "step": 5}), flush=True)
    if task["what"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["what"] == "wait":
        signal.pause()
    print(json.dumps({"event": "done", "outcome": {"status": "finished", "pid": os.getpid()}}), flush=True)
"""


@pytest.fixture
def node(tmp_path):
    folder = tmp_path / f"{PREFIX}a"
    folder.mkdir()
    command = [sys.executable, "-S", str(write(tmp_path / "worker.py", WORKER))]
    found = NodeWorker(folder, collect_interval=0.0, start=lambda tell: WorkerProcess(tell, command=command))
    yield found
    found.leave()
    assert not folder.exists()


def told(node: NodeWorker) -> list[dict]:
    messages: list[dict] = []
    deadline = time.monotonic() + 30
    while not (messages and messages[-1]["event"] in ("done", "gone")):
        assert time.monotonic() < deadline
        messages += node.poll(0.5)
    return messages


def test_a_node_tells_of_its_work_and_sends_its_files(node):
    task = {"kind": "own", "folder": "runs/a", "log": "logs/a.log", "what": "work"}
    node.begin(task, {"run/progress.csv": b"step\n"}, ["run/progress.csv"])
    messages = told(node)
    assert [m["event"] for m in messages if m["event"] != "files"] == ["started", "progress", "done"]
    files = messages[-2]
    assert json.loads(files["changed"]["run/config.json"]) == {"run_dir": "runs/a"}
    assert files["changed"]["run/seen"] == b"progress.csv" and files["log"] == b"printed\n"
    assert "run/progress.csv" not in files["changed"] and files["gone"] == []
    first = messages[-1]["outcome"]["pid"]
    node.begin({**task, "folder": "runs/b"}, {"run/x": b""}, ["run/x"])
    messages = told(node)
    assert messages[-1]["outcome"]["pid"] == first, "the process is used again"
    assert messages[-2]["changed"]["run/seen"] == b"x", "nothing is left of the run before"


def test_a_node_tells_of_a_death_and_of_a_stop(node):
    task = {"kind": "own", "folder": "runs/a", "log": "logs/a.log", "what": "die"}
    node.begin(task, {"run/x": b""}, [])
    messages = told(node)
    assert messages[-1]["killed"] and messages[-1]["error"] == "its process was ended by SIGKILL (out of memory?)"
    assert "run/config.json" in messages[-2]["changed"], "what it has left is collected"
    node.begin({**task, "what": "wait"}, {"run/x": b""}, [])
    while not any(message["event"] == "progress" for message in node.poll(0.2)):
        pass
    node.stop()
    assert told(node)[-1]["error"] == "its process was ended by SIGTERM"


def test_folders_of_killed_workers_are_removed_and_others_are_not(tmp_path):
    old, busy, making = (tmp_path / f"{PREFIX}{name}" for name in ("old", "busy", "making"))
    write(old / ".lock")
    write(old / "files" / "run" / "x")
    busy.mkdir()
    making.mkdir()
    code = "import sys; from relax_rl.comparison.ray_node import _take; from pathlib import Path;"
    code += f"lock = _take(Path({str(busy)!r})); print('taken', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"taken\n"
    assert not old.exists()
    own = tmp_path / f"{PREFIX}own"
    own.mkdir()
    ray_node._take(own).close()
    assert busy.exists() and making.exists()
    holder.communicate()


# What happens to runs that are lost: a cluster that does as it is told


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


@dataclass(eq=False)
class Reference:
    name: str
    script: list


class FakeRay:
    """Actors that answer from a script, one answer after the other; an exception is raised."""

    exceptions = sys.modules[__name__]

    def __init__(self, *scripts: list, cpus: float = 2.0) -> None:
        self.scripts, self.cpus, self.calls, self.killed = list(scripts), cpus, [], 0

    def put(self, value):
        return value

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def remote(self, _):
        return self

    def options(self, **options):
        script = self.scripts.pop(0) if self.scripts else []
        calls = self.calls

        class Call:
            @staticmethod
            def remote(name, *args):
                calls.append(name)
                return Reference(name, script)

        class Actor:
            call = Call

            @staticmethod
            def remote(*_):
                return Actor

        return Actor

    def wait(self, refs, num_returns=1, timeout=None):
        ready = [ref for ref in refs if ref.name != "poll" or ref.script]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        name, script = ref.name, ref.script
        if name == "about":
            return {"node": "n1", "versions": ray_node.versions()}
        if name == "begin":
            return None
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _):
        self.killed += 1


def slots_for(tmp_path, ray: FakeRay, **more) -> tuple[Slots, list[dict]]:
    messages: list[dict] = []
    slots = Slots(ray, messages.append)
    task = {"kind": "own", "folder": str(tmp_path / "run"), "log": str(tmp_path / "log"), "settings": {}, **more}
    slots.handle({"do": "give", "slot": 0, "task": task})
    return slots, messages


def work(slots: Slots) -> None:
    for _ in range(100):
        if slots.busy:
            slots.step()


FINISHED = {"event": "done", "outcome": {"status": "finished"}}
FILES = {"event": "files", "changed": {"run/progress.csv": b"rows"}, "gone": [], "log": b"printed"}


def test_files_are_there_before_the_end_of_a_task_is_told(tmp_path):
    slots, messages = slots_for(tmp_path, FakeRay([[{"event": "started"}], [FILES, FINISHED]]))
    work(slots)
    assert messages == [{"event": "started", "slot": 0}, {**FINISHED, "slot": 0}]
    assert (tmp_path / "run" / "progress.csv").read_bytes() == b"rows"
    assert (tmp_path / "log").read_bytes() == b"printed"


def test_a_lost_run_is_started_again_elsewhere_and_given_up_at_last(tmp_path):
    lost = RayError("the actor died")
    ray = FakeRay([[FILES], lost], [[FINISHED]])
    slots, messages = slots_for(tmp_path, ray)
    work(slots)
    assert messages[0] == {"event": "warning", "line": "n1 is lost (RayError); started again", "slot": 0}
    assert messages[1]["outcome"] == {"status": "finished"} and ray.killed == 1
    slots, messages = slots_for(tmp_path, FakeRay(*([lost] for _ in range(5))))
    work(slots)
    assert len(messages) == RESTARTS + 1
    assert messages[-1]["outcome"]["error"] == "n1 is lost (RayError); given up after 2 restarts"


@pytest.mark.parametrize(
    "answer",
    [
        [{"event": "gone", "error": "its process was ended by SIGKILL", "killed": True}],
        [{"event": "done", "outcome": {"status": "interrupted"}}],
    ],
)
def test_a_run_that_is_killed_or_stopped_on_its_node_counts_as_lost(answer, tmp_path):
    slots, messages = slots_for(tmp_path, FakeRay([answer], [[FINISHED]]))
    work(slots)
    assert messages[0]["line"].endswith("on n1; started again") and messages[-1] == {**FINISHED, "slot": 0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            [{"event": "gone", "error": "its process ended with code 3, see /n/log", "killed": False}],
            "code 3 on n1, see ",
        ),
        (RayTaskError("disk\nfull"), "RayTaskError on n1: disk full"),
        ([{**FILES, "changed": {"run/../x": b""}}], "'run/../x' is no file of the task"),
    ],
)
def test_a_run_that_would_fail_again_is_not_started_again(answer, expected, tmp_path):
    slots, messages = slots_for(tmp_path, FakeRay([answer], [[FINISHED]]))
    work(slots)
    assert len(messages) == 1 and messages[0]["outcome"]["status"] == "failed"
    assert expected in messages[0]["outcome"]["error"]


def test_a_stop_is_passed_on_and_a_run_lost_meanwhile_is_not_started_again(tmp_path):
    ray = FakeRay([[{"event": "started"}], RayError()])
    slots, messages = slots_for(tmp_path, ray)
    for _ in range(3):
        slots.step()
    slots.handle({"do": "stop", "slot": 0})
    work(slots)
    assert "stop" in ray.calls and messages[-1]["outcome"] == {"status": "interrupted"}
    slots, messages = slots_for(tmp_path, ray)
    slots.stop_all()
    assert messages[-1]["outcome"] == {"status": "interrupted"}, "nothing had been begun"


def test_a_run_that_no_node_can_take_fails(tmp_path):
    _, messages = slots_for(tmp_path, FakeRay(), settings={"threads": 8})
    assert messages[0]["outcome"]["error"] == "it needs 8 CPUs, the largest node has 2 CPUs"
    _, messages = slots_for(tmp_path, FakeRay(cpus=0.0), settings={"threads": 8})
    assert messages == [], "a cluster without a node may be about to grow"


def test_an_actor_needs_no_relax_rl_on_its_node(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    sent = write(tmp_path / "sent")
    sent.write_bytes(cloudpickle.dumps((ray_slots._node_class(), package())))
    code = f"""
import pickle, sys
kind, package = pickle.load(open({str(sent)!r}, "rb"))
assert "relax_rl" not in sys.modules
node = kind(package, 60.0)
import relax_rl
print(node.call("about")["versions"] != {{}}, relax_rl.__file__)
node.call("leave")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TMPDIR"] = str(tmp_path)
    out = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert out.startswith(f"True {tmp_path / PREFIX}")
    assert list(tmp_path.glob(f"{PREFIX}*")) == [], "it has cleaned up"


def test_an_idle_slot_gives_its_cpus_back(tmp_path, monkeypatch):
    ray = FakeRay([[FINISHED]])
    slots, _ = slots_for(tmp_path, ray)
    work(slots)
    slots.step()
    assert "leave" not in ray.calls, "another task may come"
    monkeypatch.setattr(ray_slots, "_IDLE", 0.0)
    slots.step()
    assert ray.calls[-1] == "leave"


def test_nodes_with_other_or_without_packages(tmp_path, monkeypatch):
    here = ray_node.versions()
    monkeypatch.setattr(FakeRay, "get", lambda *_: {"node": "n1", "versions": {**here, "torch": None}})
    slots, messages = slots_for(tmp_path, FakeRay())
    work(slots)
    assert messages[0]["outcome"]["error"] == "node n1 has no torch; install what relax-rl needs there"
    monkeypatch.setattr(FakeRay, "get", lambda *_: {"node": "n1", "versions": {**here, "torch": "0.1"}})
    slots, messages = slots_for(tmp_path, FakeRay())
    slots.step()
    assert messages[0]["line"] == f"n1 has torch 0.1, here is torch {here['torch']}: numbers need not agree"


def test_what_a_task_wants():
    assert wants({"kind": "peer", "settings": {"threads": 4}}) == (1.0, 0.0)
    assert wants({"kind": "own", "settings": {"threads": 4, "device": "cuda"}}) == (4.0, 1.0)
    assert wants({"kind": "own", "settings": {"threads": 0}}, 16.0) == (16.0, 0.0)
    assert wants({"kind": "variance"}) == (1.0, 0.0)


# Mistakes


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


# The real thing

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
