"""What stands on a node: a worker that only pretends, its files, and what others have left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relax_rl.comparison import ray_node
from relax_rl.comparison.ray_node import PREFIX, NodeWorker
from relax_rl.comparison.worker_process import WorkerProcess

ROOT = Path(__file__).parent.parent


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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
