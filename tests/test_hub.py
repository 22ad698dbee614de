"""Agents that are pushed to a hub and loaded from it: a stand-in for its HTTP interface answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="needs the extra hub")

from relax_rl.agents import ActorCritic
from relax_rl.commands.main import main
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs import RunFolder, read_config
from relax_rl.runs.hub import load_from_hub, push_to_hub
from relax_rl.runs.model_card import environment_of, model_card, portable
from relax_rl.runs.scores import scores_of
from relax_rl.settings.config import AgentConfig, EnvConfig, RunConfig, TrainConfig
from tests.hub_server import Hub, running_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with running_hub() as found:
        yield found


def filmed(run: Path, name: str) -> Path:
    """Where a video lies that the evaluation says it has made."""
    path = RunFolder(run).evaluation
    found = json.loads(path.read_text()) | {"video": f"elsewhere/videos/{name}"}
    path.write_text(json.dumps(found))
    RunFolder(run).videos.mkdir(exist_ok=True)
    return RunFolder(run).videos / name


def test_an_agent_goes_there_and_back(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--num-envs", "2"]) == 0
    filmed(run, "step_1-seed_0.mp4").write_bytes(b"a film")
    assert push_to_hub(run, "me/cart", endpoint=hub.url) == f"{hub.url}/me/cart"
    files = hub.files["me/cart"]
    expected = {"README.md", "agent.safetensors", "config.json", "evaluation.json", "learning_curve.png", "video.mp4"}
    assert expected <= set(files) and not any(str(run).encode() in data for data in files.values())
    agent = load_from_hub("me/cart", endpoint=hub.url)
    kept = next((run / "checkpoints").glob("best.safetensors"), None) or max((run / "checkpoints").iterdir())
    original = ActorCritic.load(kept, optimizer=False)
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (agent.predict(obs, deterministic=True)[0] == original.predict(obs, deterministic=True)[0]).all()
    assert agent.steps == original.steps == json.loads(files["config.json"])["step"]


def test_the_card_says_what_it_is(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--num-envs", "2"]) == 0
    push_to_hub(run, "me/cart", endpoint=hub.url)
    card = hub.files["me/cart"]["README.md"].decode()
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(card.split("---")[1])
    scores = json.loads((run / "evaluation.json").read_text())
    assert front["library_name"] == "relax_rl" and "CartPole-v1" in front["tags"]
    (metric,) = front["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == f"{scores['return_mean']:.2f} +/- {scores['return_std']:.2f}"
    assert 'load_from_hub("me/cart")' in card and "![Learning curve](learning_curve.png)" in card
    assert '"unbiased" means here' in card and "| `seed` | 0 |" in card


def test_scores_of_another_agent_are_left_out(run: Path, hub: Hub) -> None:
    (run / "evaluation.json").write_text('{"step": 1, "return_mean": 500.0}')
    with pytest.warns(UserWarning, match="evaluation.json is about step 1, this agent of step"):
        push_to_hub(run, "me/cart", endpoint=hub.url)
    assert (
        "evaluation.json" not in hub.files["me/cart"] and "Not evaluated" in hub.files["me/cart"]["README.md"].decode()
    )


def test_scores_in_other_environments_are_left_out(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--env-kwargs", "max_episode_steps=3"]) == 0
    told = r"is about env_kwargs \{'max_episode_steps': 3\}, the run about \{\}: left out"
    with pytest.warns(UserWarning, match=told):
        push_to_hub(run, "me/cart", endpoint=hub.url)
    assert "Not evaluated" in hub.files["me/cart"]["README.md"].decode()


def test_scores_of_another_agent_of_as_many_steps_are_left_out(run: Path, hub: Hub, tmp_path: Path) -> None:
    agent = ActorCritic.load(RunFolder(run).checkpoints / "best.safetensors")
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    agent.save(same, optimizer=False)
    next(agent.policy.parameters()).data.add_(1.0)
    agent.save(other)
    assert main(["evaluate", str(run), "--episodes", "2", "--checkpoint", str(other)]) == 0
    with pytest.warns(UserWarning, match="is about another agent of as many steps: left out"):
        push_to_hub(run, "me/cart", checkpoint="best", endpoint=hub.url)
    assert "evaluation.json" not in hub.files["me/cart"]
    assert main(["evaluate", str(run), "--episodes", "2", "--checkpoint", str(same)]) == 0
    push_to_hub(run, "me/cart", checkpoint="best", endpoint=hub.url)
    assert "evaluation.json" in hub.files["me/cart"]


def test_the_card_tells_of_episodes_that_were_cut_off(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--step-limit", "2"]) == 0
    push_to_hub(run, "me/cart", endpoint=hub.url)
    told = "2 of them were cut off after 2 steps, and count with the return they had by then."
    assert told in hub.files["me/cart"]["README.md"].decode()
    path = RunFolder(run).evaluation
    older = {
        k: x for k, x in json.loads(path.read_text()).items() if k not in ("step_limit", "agent_sha256", "env_kwargs")
    }
    path.write_text(json.dumps(older))
    push_to_hub(run, "me/cart", endpoint=hub.url)
    assert "2 of them were cut off after a limit of steps" in hub.files["me/cart"]["README.md"].decode()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"return_mean": "-inf"}, "says that return_mean is '-inf', expected a finite number"),
        ({"return_std": None}, "says that return_std is None, expected a finite number"),
        ({"episodes": True}, "says that episodes is True, expected a count"),
        ({"cut_off": [1]}, "expected a count"),
        ({"deterministic": "yes"}, "says that deterministic is 'yes', expected true or false"),
        ({"env": "Acrobot-v1"}, "is about env 'Acrobot-v1', the run about 'CartPole-v1'"),
        ({"step": "400"}, "is about step '400', this agent of step"),
        (None, "says that return_mean is None"),
    ],
)
def test_foreign_evaluations_are_left_out(run: Path, changes: dict[str, Any] | None, told: str) -> None:
    path = RunFolder(run).evaluation
    agent = ActorCritic.load(RunFolder(run).checkpoints / "best.safetensors")
    known = {"return_mean": 9.0, "return_std": 0.0, "episodes": 2, "seed": 0, "deterministic": True}
    path.write_text(json.dumps({"step": agent.steps, **({} if changes is None else {**known, **changes})}))
    with pytest.warns(UserWarning, match=re.escape(told)):
        assert scores_of(RunFolder(run), agent, read_config(RunFolder(run)).env) is None
    path.write_text(json.dumps({"step": agent.steps, **known}))
    assert scores_of(RunFolder(run), agent, read_config(RunFolder(run)).env) is not None


def test_what_is_no_video_is_passed_over(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--num-envs", "2"]) == 0
    filmed(run, "a.mp4").mkdir(parents=True)
    push_to_hub(run, "me/cart", endpoint=hub.url)
    filmed(run, "b.mp4").symlink_to(run / "nowhere")
    push_to_hub(run, "me/cart", endpoint=hub.url)
    assert "video.mp4" not in hub.files["me/cart"] and "evaluation.json" in hub.files["me/cart"]


def test_what_an_earlier_push_has_said_of_another_agent_is_gone(run: Path, hub: Hub) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--num-envs", "2"]) == 0
    filmed(run, "a.mp4").write_bytes(b"a film")
    push_to_hub(run, "me/cart", endpoint=hub.url)
    assert {"evaluation.json", "video.mp4"} <= set(hub.files["me/cart"])
    hub.files["me/cart"]["notes.txt"] = b"of the user"
    RunFolder(run).evaluation.unlink()
    push_to_hub(run, "me/cart", endpoint=hub.url)
    files = hub.files["me/cart"]
    assert not {"evaluation.json", "video.mp4"} & set(files) and "Not evaluated" in files["README.md"].decode()
    assert {"notes.txt", "agent.safetensors", "learning_curve.png"} <= set(files)


def test_what_the_environment_needs_goes_along(run: Path, hub: Hub) -> None:
    config = json.loads(RunFolder(run).config.read_text())
    config["env"] |= {"frame_stack": 3, "wrapper": ["m:Noise", "file=/home/me/noise.csv"], "drop_keys": ["text"]}
    config["env"] |= {"env_kwargs": {"map": "/home/me/map.json", "kind": "a|b"}}
    RunFolder(run).config.write_text(json.dumps(config))
    push_to_hub(run, "me/cart", endpoint=hub.url)
    told = json.loads(hub.files["me/cart"]["config.json"])
    assert (
        told["frame_stack"] == 3 and told["wrapper"] == ["m:Noise", "file=noise.csv"] and told["drop_keys"] == ["text"]
    )
    assert told["env_kwargs"] == {"map": "map.json", "kind": "a|b"} and "bins" not in told
    card = hub.files["me/cart"]["README.md"].decode()
    assert "made with `env_kwargs`, `wrapper`, `frame_stack`, `drop_keys`, as the settings below list them" in card
    assert "| `frame_stack` | 3 |" in card and "a\\|b" in card and "/home" not in card


def test_a_card_tells_whose_networks_and_estimator_they_are() -> None:
    run = RunConfig(estimator="mine:Half", networks="nets:Factories.wide")
    card = model_card(TrainConfig(run=run), "Half", repo_id="user/name", step=1, evaluation=None, files=())
    assert "nothing is claimed of its gradient here" in card and "whatever is subtracted" not in card
    assert 'learn_of("mine:Half")' in card and "from nets import Factories" in card
    assert "factory = Factories.wide " in card and 'agent = load_from_hub("user/name", networks=factory)' in card


@pytest.mark.parametrize("networks", ["nets:make(path='/home/me/w.pt')", "nets:<lambda>", "__main__:make"])
def test_a_card_imports_nothing_that_has_no_name(networks: str) -> None:
    run = RunConfig(networks=networks)
    card = model_card(TrainConfig(run=run), "relax", repo_id="user/name", step=1, evaluation=None, files=())
    assert "factory = ...  # that the networks were made by" in card and "from nets" not in card and "/home" not in card


def test_a_card_tells_what_is_done_to_games() -> None:
    config = TrainConfig(env=EnvConfig(env="ALE/Pong-v5"))
    card = model_card(config, "relax", repo_id="user/name", step=1, evaluation=None, files=())
    assert "made with `atari`" in card and "frames of 84 x 84 in grey" in card


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/me/a b/x.xml", "x.xml"),
        ("/data/maps/", "maps"),
        ("~/maps/x", "x"),
        (r"C:\Users\me\a.xml", "a.xml"),
        ("file:///home/me/a.xml", "a.xml"),
        ("path=/home/me/maps/", "path=maps"),
        ("maps/x.json", "maps/x.json"),
        ("ALE/Pong-v5", "ALE/Pong-v5"),
        ("https://example.org/a", "https://example.org/a"),
        ("<a><b /></a>", "<a><b /></a>"),
        ({"/home/me/k": [1, "/tmp/z"]}, {"k": [1, "z"]}),
    ],
)
def test_places_on_this_machine_are_named_by_their_last_part(value: Any, told: Any) -> None:
    assert portable(environment_of(EnvConfig(env_kwargs={"x": value})))["env_kwargs"] == {"x": told}


def test_the_command(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], refused: Any) -> None:
    assert main(["push", str(run), "me/mine", "--private", "--endpoint", hub.url]) == 0
    assert hub.private == {"me/mine"} and f"pushed to  {hub.url}/me/mine" in capsys.readouterr().out
    assert (
        refused("push", str(run), "me/mi ne", "--endpoint", hub.url)
        == "error: repo_id is 'me/mi ne', expected user/name"
    )
    hub.refuse = 403
    assert "cannot push to me/mine: " in refused("push", str(run), "me/mine", "--endpoint", hub.url)
    assert "does not exist" in refused("push", str(run / "nowhere"), "me/mine", "--endpoint", hub.url)


def test_a_dry_run_writes_what_would_be_pushed(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["push", str(run), "me/cart", "--dry-run", str(folder)]) == 0
    assert f"written to {folder}; nothing was pushed" in capsys.readouterr().out and not hub.files
    push_to_hub(run, "me/cart", endpoint=hub.url)
    pushed = hub.files["me/cart"]
    assert {path.name for path in folder.iterdir()} == set(pushed) - {".gitattributes"}
    for path in folder.iterdir():  # the headers of checkpoints have no order
        assert len(path.read_bytes()) == len(pushed[path.name]), path
        assert path.suffix == ".safetensors" or path.read_bytes() == pushed[path.name]
    assert "has files, expected a new or an empty folder" in refused(
        "push", str(run), "me/cart", "--dry-run", str(folder)
    )
    json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)
    for name in ("a/b/c", "noslash", "us er/name", "user/-name", "user/na--me", "", f"user/{'x' * 100}"):
        told = f"error: repo_id is {name!r}, expected user/name"
        assert refused("push", str(run), name, "--dry-run", str(tmp_path / "other")) == told
    assert not (tmp_path / "other").exists()
    path = folder / "README.md"
    assert "cannot write to" in refused("push", str(run), "me/cart", "--dry-run", str(path))


def test_what_cannot_be_loaded_is_told_in_one_line(hub: Hub) -> None:
    with pytest.raises(RelaxRLError, match=r"^cannot load from me/nothing: "):
        load_from_hub("me/nothing", endpoint=hub.url)
    hub.files["me/empty"] = {}
    with pytest.raises(RelaxRLError, match=r"^cannot load from me/empty: "):
        load_from_hub("me/empty", endpoint=hub.url)
    hub.files["me/odd"] = {"agent.safetensors": b"\x80\x04cos\nsystem\n"}
    with pytest.raises(RelaxRLError, match="damaged or not a checkpoint"):
        load_from_hub("me/odd", endpoint=hub.url)
    with pytest.raises(SettingsError, match="expected user/name"):
        load_from_hub("me/o/dd", endpoint=hub.url)


def test_a_hub_that_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(RelaxRLError, match=r"^cannot push to me/cart: "):
        push_to_hub(run, "me/cart", endpoint="http://127.0.0.1:9")


def test_the_library_is_not_needed_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import relax_rl.runs.hub, sys; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("estimator", "settings", "told", "untold"),
    [
        ("relax", {}, "whatever is subtracted", "deviation of the rows"),
        ("relax", {"normalize_advantage": True}, "which biases it a little", "whatever is subtracted"),
        (
            "lax",
            {"surrogate_loss": "critic", "residual_weight": 0.3},
            "only the share 0.3 of the critic's residual",
            "whatever",
        ),
        (
            "marginal",
            {"surrogate_loss": "critic", "residual_weight": "adaptive"},
            "a share that is learned",
            "whatever",
        ),
        ("reinforce", {}, "multiplies the score by the returns as they are", "value function of the state"),
    ],
)
def test_the_card_claims_what_holds(estimator: str, settings: dict[str, Any], told: str, untold: str) -> None:
    config = TrainConfig(agent=AgentConfig(**settings))
    card = model_card(config, estimator, repo_id="user/name", step=1, evaluation=None, files=())
    assert told in card and untold not in card
