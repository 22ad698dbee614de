"""Files on their way between this machine and the nodes of a cluster."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from relax_rl.comparison.ray_files import Mirror, Names, apply_changes, inputs, package, translation


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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
