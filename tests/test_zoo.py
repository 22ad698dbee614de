"""Zoos: those that come with the package, in a folder, and behind an address; everything odd in one is told in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relax_rl
from benchmarks import zoo as making
from relax_rl import load_zoo
from relax_rl.commands.main import main
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs import zoo
from relax_rl.runs.hub import push_to_hub
from relax_rl.runs.zoo import MANIFEST, OWN_ZOO, VARIABLE, digest, fetch_agent, zoo_agents
from tests.old_artefacts import blank_figures

LEAST = {
    "CartPole-v1": 475,
    "Acrobot-v1": -100,
    "InvertedPendulum-v5": 950,
    "Pendulum-v1": -200,
    "MountainCarContinuous-v0": 90,
    "InvertedDoublePendulum-v5": 9_100,
    "LunarLander-v3": 200,
    "LunarLanderContinuous-v3": 200,
    "Hopper-v5": 2_600,
    "Walker2d-v5": 4_000,
    "HalfCheetah-v5": 6_000,
    "Ant-v5": 1_400,
}
"""What comes with the package, and what each agent reaches at least."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the package's zoo to write to."""
    return Path(shutil.copytree(OWN_ZOO, tmp_path / "zoo"))


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where that copy is served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def changed(folder: Path, **entries: Any) -> None:
    """Give the first agent of a manifest other entries; None takes one away."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["agents"][0].update(entries)
    manifest["agents"][0] = {name: x for name, x in manifest["agents"][0].items() if x is not None}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def told(kind: type[Exception], source: object, name: str = "CartPole-v1") -> str:
    with pytest.raises(kind) as found:
        load_zoo(name, source=str(source))
    assert len(str(found.value).splitlines()) == 1
    return str(found.value)


# What comes with the package


def test_the_agents_of_the_package_are_small_and_whole() -> None:
    agents = zoo_agents()
    assert tuple(agents) == tuple(LEAST)
    for each in agents.values():
        content = (OWN_ZOO / each.file).read_bytes()
        assert len(content) == each.bytes < 1_000_000 and digest(content) == each.sha256
        assert digest((OWN_ZOO / each.config).read_bytes()) == each.config_sha256
        assert digest((OWN_ZOO / each.evaluation).read_bytes()) == each.evaluation_sha256
        assert each.licence == "MIT" and each.episodes >= 100 and each.deterministic
        card = (OWN_ZOO / each.name / "README.md").read_text()
        assert f'load_zoo("{each.name}")' in card and 'license: "mit"' in card
        found = json.loads((OWN_ZOO / each.name / "evaluation.json").read_text())
        assert (found["return_mean"], found["return_std"]) == (each.return_mean, each.return_std)
        assert len(found["returns"]) == each.episodes and found["step"] == each.steps
    files = [path for path in OWN_ZOO.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert not any(b"/work" in path.read_bytes() or b"/root" in path.read_bytes() for path in files)
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert all(each.return_mean >= LEAST[each.name] for each in agents.values())


def test_an_agent_plays_as_well_as_the_manifest_says() -> None:
    from relax_rl.runs.evaluation import evaluate

    agent = load_zoo("CartPole-v1")
    assert isinstance(agent, relax_rl.RELAX) and agent.steps == zoo_agents()["CartPole-v1"].steps
    with relax_rl.make_envs("CartPole-v1", num_envs=4, seed=7) as envs:
        scores = evaluate(agent, envs, episodes=4, seed=7, deterministic=True)
    assert scores is not None and scores.mean >= 450


def test_an_agent_learns_on() -> None:
    agent = load_zoo("CartPole-v1")
    before = agent.steps
    with relax_rl.make_envs("CartPole-v1", num_envs=8, seed=0) as envs:
        agent.learn(envs, 80)
    assert agent.steps >= before + 80


def test_it_is_found_without_loading_more_than_is_needed() -> None:
    code = "from relax_rl.runs.zoo import zoo_agents; zoo_agents(); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Elsewhere


def test_an_argument_a_variable_a_folder_and_an_address(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    expected = load_zoo("CartPole-v1").predict(obs, deterministic=True)[0]
    changed(folder, commit="another")
    for source in (folder, address, address.rstrip("/")):
        assert zoo_agents(source)["CartPole-v1"].commit == "another"
        assert (load_zoo("CartPole-v1", source=source).predict(obs, deterministic=True)[0] == expected).all()
    monkeypatch.setenv(VARIABLE, address)
    assert zoo_agents()["CartPole-v1"].commit == "another"
    assert zoo_agents(OWN_ZOO)["CartPole-v1"].commit != "another", "an argument goes before the variable"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"^manifest\.json of the zoo .*nowhere cannot be read: No such file"):
        load_zoo("CartPole-v1")


def test_a_missing_name_lists_what_there_is(folder: Path, address: str) -> None:
    for source in (folder, address):
        said = told(SettingsError, source, "CartPol-v1")
        assert f"has no agent 'CartPol-v1', only {', '.join(sorted(LEAST))}; did you mean CartPole-v1?" in said


def test_a_bad_checksum_is_refused(folder: Path, address: str) -> None:
    file = folder / zoo_agents(folder)["CartPole-v1"].file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for source in (folder, address):
        assert f"is damaged: its SHA-256 is {digest(bytes(content))}, manifest.json says" in told(
            CheckpointError, source
        )


def test_what_is_larger_than_the_manifest_says_is_not_read(folder: Path, address: str) -> None:
    changed(folder, bytes=1000)
    assert "bytes, expected at most 1,000" in told(CheckpointError, folder)
    assert "it has more than 1,000 bytes" in told(CheckpointError, address)
    changed(folder, bytes=2**40)
    assert "bytes of CartPole-v1 is 1,099,511,627,776, expected at most 268,435,456" in told(CheckpointError, address)
    (folder / MANIFEST).write_bytes(b" " * (2**20 + 1))
    assert "expected at most 1,048,576" in told(CheckpointError, folder)
    assert "more than 1,048,576 bytes" in told(CheckpointError, address)


@pytest.mark.parametrize(
    "file",
    [
        "../x",
        "/etc/passwd",
        "CartPole-v1/../../x",
        "a\\..\\x",
        "http://x/y",
        "",
        ".hidden",
        "a//b",
        "a/",
        "x%2e",
        "a?b",
    ],
)
@pytest.mark.parametrize("entry", ["file", "config", "evaluation", "name"])
def test_a_path_that_leads_out_is_refused(folder: Path, entry: str, file: str) -> None:
    changed(folder, **{entry: file})
    assert "expected a path within the zoo" in told(CheckpointError, folder)


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    file = folder / zoo_agents(folder)["CartPole-v1"].file
    moved = file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(moved)
    assert told(CheckpointError, folder).endswith("cannot be read: it is a link")
    file.unlink()
    moved.rename(file)
    (folder / "CartPole-v1").rename(tmp_path / "elsewhere")
    (folder / "CartPole-v1").symlink_to(tmp_path / "elsewhere")
    assert told(CheckpointError, folder).endswith("cannot be read: CartPole-v1 is a link")
    (tmp_path / "a zoo").symlink_to(OWN_ZOO)
    assert load_zoo("CartPole-v1", source=tmp_path / "a zoo").steps > 0, "the user's own link to a zoo is theirs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be read: Expecting value"),
        ("[" * 100_000, "cannot be read: "),
        ("[]", "it lists no agents"),
        ('{"agents": {}}', "it lists no agents"),
        ('{"agents": [], "version": 2}', "its version is 2, expected 1; update relax_rl"),
        ('{"agents": [3], "version": 1}', "3 is no agent"),
        ("\xff", "cannot be read: "),
    ],
)
def test_a_damaged_manifest_is_told(folder: Path, text: str, expected: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    assert expected in told(CheckpointError, folder)


@pytest.mark.parametrize("entry", ["name", "sha256", "bytes", "return_mean", "deterministic"])
def test_an_entry_that_is_missing_or_of_another_type_is_named(folder: Path, entry: str) -> None:
    for value in (None, [1], True if entry != "deterministic" else 1):
        shutil.copyfile(OWN_ZOO / MANIFEST, folder / MANIFEST)
        changed(folder, **{entry: value})
        said = told(CheckpointError, folder)
        assert f"{entry} of " in said and "expected " in said


def test_addresses_that_do_not_answer_or_are_of_another_kind(address: str) -> None:
    assert told(CheckpointError, f"{address}nowhere").endswith("cannot be read: 404 File not found")
    assert "cannot be read: " in told(CheckpointError, "http://127.0.0.1:9")
    for other in ("file:///etc", "ftp://x"):
        assert told(SettingsError, other).endswith(
            "expected a folder or an address that begins with http:// or https://"
        )


@pytest.mark.parametrize("file", ["progress.csv", "config.json"])
def test_a_run_that_has_only_begun_is_left_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text('{"run": {}}')
    with pytest.raises(SettingsError, match="holds another agent; remove or rename that folder"):
        fetch_agent("CartPole-v1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file] and (tmp_path / file).read_text() == '{"run": {}}'


# Commands


def test_an_agent_of_the_zoo_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["evaluate", "zoo:CartPole-v1", "--episodes", "1"]) == 0
        assert "CartPole-v1 · relax · runs/zoo/CartPole-v1/checkpoints/step_" in capsys.readouterr().out
    assert (tmp_path / "runs/zoo/CartPole-v1/evaluation.json").is_file()
    assert "has no agent 'x', only Acrobot-v1" in refused("evaluate", "zoo:x")
    assert main(["export", "zoo:CartPole-v1", "--format", "torch", "--output", "new/folder/policy.pt2"]) == 0
    assert Path("new/folder/policy.pt2").is_file()
    assert main(["push", "zoo:CartPole-v1", "me/cart", "--dry-run", "card"]) == 0
    assert Path("card/agent.safetensors").is_file()
    assert "saved to act, without optimisers and the state of a run" in refused(
        "--resume", "runs/zoo/CartPole-v1", "--total-steps", "1000000"
    )
    run = fetch_agent("CartPole-v1")
    shutil.copyfile(next((run / "checkpoints").iterdir()), run / "checkpoints" / "step_999999999.safetensors")
    assert "holds another agent; remove or rename that folder" in refused("evaluate", "zoo:CartPole-v1")


def test_files_that_were_altered_are_fetched_again(tmp_path: Path, address: str) -> None:
    run = fetch_agent("CartPole-v1", tmp_path / "run", source=address)
    (checkpoint,) = (run / "checkpoints").iterdir()
    for path in (checkpoint, run / "config.json"):
        before = path.read_bytes()
        path.write_bytes(b"{}")
        fetch_agent("CartPole-v1", tmp_path / "run", source=address)
        assert path.read_bytes() == before
    (run / "evaluation.json").write_bytes(b"{}")
    fetch_agent("CartPole-v1", tmp_path / "run", source=address)
    assert (run / "evaluation.json").read_bytes() == b"{}", "an evaluation of one's own stays"


def test_an_agent_of_the_zoo_can_be_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    from tests.hub_server import running_hub

    monkeypatch.setenv("HF_TOKEN", "hf_test")
    run = fetch_agent("CartPole-v1", tmp_path / "run")
    with running_hub() as hub:
        push_to_hub(run, "me/cart", endpoint=hub.url)
        assert {"agent.safetensors", "config.json", "evaluation.json", "README.md"} <= set(hub.files["me/cart"])
        assert b"100 episodes with raw rewards" in hub.files["me/cart"]["README.md"]


# Making one


def test_making_a_zoo_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny: dict[str, Any] = {"hidden": (4,), "surrogate_hidden": (4,), "quiet": True, "num_envs": 2, "eval_episodes": 1}
    tasks = tuple(making.ZooTask(env=env, total_steps=200, settings=tiny) for env in ("CartPole-v1", "FrozenLake-v1"))
    monkeypatch.setattr(making, "TASKS", tasks)
    monkeypatch.setattr(making, "EVALUATIONS", 2)
    blank_figures(monkeypatch)
    out, trained, calls = tmp_path / "out", making.train, []

    def killed(config: Any, **how: Any) -> Any:
        trained(making.with_settings(config, {"stop_at_step": 120}), **how)
        raise KeyboardInterrupt

    def told(config: Any, **how: Any) -> Any:
        calls.append(config.run.resume)
        return trained(config, **how)

    monkeypatch.setattr(making, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        making.main([str(out), "--episodes", "2"])
    assert not (out / MANIFEST).exists()
    monkeypatch.setattr(making, "train", told)
    making.main([str(out), "--episodes", "2"])
    assert calls == [str(out / "work" / "CartPole-v1-s0"), None], "one is gone on with, the other begun"
    making.main([str(out), "--episodes", "2"])
    assert len(calls) == 2 and capsys.readouterr().out.count("made before") == 2
    agents = zoo_agents(out)
    assert list(agents) == ["CartPole-v1", "FrozenLake-v1"] and load_zoo("FrozenLake-v1", source=out).steps >= 100
    (out / agents["CartPole-v1"].file).write_bytes(b"damaged")
    making.main([str(out), "--episodes", "2"])
    assert len(calls) == 2, "it is released again, and not trained again"
    assert load_zoo("CartPole-v1", source=out).steps == agents["CartPole-v1"].steps
    assert zoo_agents(out)["CartPole-v1"].bytes == agents["CartPole-v1"].bytes


def test_the_best_agent_of_a_contest_is_released_without_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / "contests" / "CartPole-v1" / "runs" / f"CartPole-v1-ours-s{seed}" for seed in range(3)]
    for run in runs:
        (fetch_agent("CartPole-v1", run) / "evaluation.json").unlink()
    (trained,) = (runs[0] / "checkpoints").iterdir()
    agent = load_zoo("CartPole-v1")
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.zero_()
    agent.save(tmp_path / "idle.safetensors", optimizer=False)
    for run, last, best in ((runs[0], False, False), (runs[1], False, True), (runs[2], True, True)):
        for name, skilled in ((trained.name, last), ("best.safetensors", best)):
            shutil.copy(OWN_ZOO / "CartPole-v1" / "checkpoints" / trained.name, run / "checkpoints" / name)
            if not skilled:
                shutil.copy(tmp_path / "idle.safetensors", run / "checkpoints" / name)
    (runs[2] / "checkpoints" / trained.name).rename(runs[2] / "checkpoints" / "step_000090000.safetensors")
    monkeypatch.setattr(making, "SELECTION", 2)
    monkeypatch.setattr(making, "train", None)
    making.main(
        [str(tmp_path / "out"), "--contests", str(tmp_path / "contests"), "--only", "CartPole-v1", "--episodes", "3"]
    )
    (made,) = zoo_agents(tmp_path / "out").values()
    assert made.return_mean == 500 and (runs[1] / "evaluation.json").exists()
    assert not (runs[2] / "evaluation.json").exists(), "it is shorter than what is asked for"


def test_the_tasks_are_those_whose_results_are_told() -> None:
    from benchmarks.tasks import TASKS

    assert {task.env for task in making.TASKS} >= set(TASKS)
    assert len({task.name for task in making.TASKS}) == len(making.TASKS)
    assert all(zoo._PLACE.fullmatch(task.name) for task in making.TASKS)
