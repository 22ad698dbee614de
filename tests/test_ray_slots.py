"""What happens to the runs on a cluster that does as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from relax_rl.comparison import ray_node, ray_slots
from relax_rl.comparison.ray_files import package
from relax_rl.comparison.ray_node import PREFIX
from relax_rl.comparison.ray_slots import RESTARTS, Slots, wants


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
    sent = tmp_path / "sent"
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
