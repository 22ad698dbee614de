"""Tuning: equal numbers of trials, the same whatever the workers and stops, and the space that is searched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, read_contestant
from relax_rl.comparison.peers import published
from relax_rl.comparison.plan import Environment, Folder
from relax_rl.comparison.pool import Outcomes
from relax_rl.comparison.proposals import propose
from relax_rl.comparison.search_space import check_peers, dimensions, read_space, read_starts, searched_values
from relax_rl.comparison.study import Study
from relax_rl.comparison.task import Task
from relax_rl.comparison.tuning import make_studies, tune
from relax_rl.errors import RelaxRLError, SettingsError

ENV = Environment("CartPole-v1", total_steps=1000, threshold=475.0, id="CartPole-v1")
PPO = Contestant("sb3-ppo", "sb3-ppo", peer=True)


def work(task, root: Path) -> None:
    """Leave a run whose curve is the higher, the nearer its learning rate is to 0.003."""
    folder = root / task.folder
    folder.mkdir(parents=True)
    given = dict(option[2:].split("=", 1) for option in task.begin if "=" in option)
    value = 100.0 - 1e4 * abs(float(given.get("policy-lr", 1e-3)) - 0.003) + int(given["seed"]) % 7
    (folder / "progress.csv").write_text(f"step,episodes,return_mean,seconds\n1000,5,{value},1\n")
    (folder / "episodes.csv").write_text(f"step,return,length\n10,{value},10\n")
    (folder / "outcome.json").write_text(json.dumps({"status": "finished"}))


def run_to_the_end(*studies: Study, most: int = 1000) -> list:
    """Do one run after the other, the last one of a batch first; returns the tasks."""
    done = []

    def each(tasks) -> Outcomes | None:
        for task in reversed(tasks):
            if len(done) == most:
                return None
            work(task, studies[0].root)
            done.append(task)
        return {}

    assert tune({(study.folder.name, ""): study for study in studies}, each) is (len(done) < most)
    return done


def make_study(root: Path, contestant: Contestant | None = None, **options) -> Study:
    config = CompareConfig(**{"tune": 11, "tune_seeds": 2, **options})
    return Study(config, [ENV], contestant or read_contestant("relax"), Folder(root))


def test_every_trial_is_run_from_its_own_seeds(tmp_path):
    study = make_study(tmp_path)
    tasks = run_to_the_end(study)
    assert len(tasks) == 22 and len(study.trials) == 11
    seeds = {option for task in tasks for option in task.begin if option.startswith("--seed=")}
    assert seeds == {"--seed=1000000", "--seed=1000001"}
    assert study.trials[0]["settings"] == {}, "the first trial is the contestant as it stands"
    assert len({json.dumps(trial["params"], sort_keys=True) for trial in study.trials}) == 11
    saved = json.loads((tmp_path / "tuning" / "CartPole-v1-relax" / "trials.json").read_text())
    assert saved["trials"] == study.trials and saved["steps"] == 1000


def test_the_best_trial_wins(tmp_path):
    study = make_study(tmp_path)
    run_to_the_end(study)
    scores = [trial["score"] for trial in study.trials]
    assert study.best == study.trials[scores.index(max(scores))]["settings"]
    assert study.tuned().settings == study.best and study.tuned().label == "relax"


@pytest.mark.parametrize("most", [1, 9, 15])
def test_a_stop_changes_no_number(tmp_path, most):
    whole = make_study(tmp_path / "whole")
    run_to_the_end(whole)
    run_to_the_end(make_study(tmp_path / "parts"), most=most)
    again = make_study(tmp_path / "parts")
    repeated = run_to_the_end(again)
    assert again.trials == whole.trials
    assert len(repeated) == 22 - most, "runs that have ended are not repeated"


def test_all_runs_of_a_batch_had_ended_before_the_stop(tmp_path):
    study = make_study(tmp_path)
    for task in run_to_the_end(study, most=8):
        assert task.total_steps == 1000
    (study.folder / "trials.json").unlink()
    again = make_study(tmp_path)
    assert len(run_to_the_end(again)) == 22 - 8 and again.trials[:4] == study.trials[:4]


def test_trials_that_fail_do_not_win(tmp_path):
    study = make_study(tmp_path, tune=4, tune_seeds=1)
    assert tune({("CartPole-v1", "relax"): study}, lambda tasks: {})
    assert [trial["score"] for trial in study.trials] == [None] * 4 and study.best == {}


def failing(root: Path, *names: str) -> Callable[[list[Task]], Outcomes]:
    """Does all runs but those, which a full disk ends."""

    def each(tasks: list[Task]) -> Outcomes:
        for task in tasks:
            if task.name not in names:
                work(task, root)
        return {name: {"status": "failed", "error": "No space left on device"} for name in names}

    return each


def test_a_trial_whose_run_failed_is_tried_again_by_the_next_session(tmp_path):
    whole = make_study(tmp_path / "whole", tune_seeds=1)
    run_to_the_end(whole)
    study = make_study(tmp_path / "parts", tune_seeds=1)
    names = ("tune-CartPole-v1-relax-000-s1000000", "tune-CartPole-v1-relax-002-s1000000")
    told = rf"^2 runs of trials failed, first {names[0]}: No space left on device; mend that, and go on with --resume"
    with pytest.raises(RelaxRLError, match=told):
        tune({("CartPole-v1", "relax"): study}, failing(tmp_path / "parts", *names))
    again = make_study(tmp_path / "parts", tune_seeds=1)
    assert again.trials == [] and [task.name for task in again.propose()] == list(names)
    run_to_the_end(again)
    assert again.trials == whole.trials and again.failures() == []


def test_a_trial_that_fails_again_counts_as_one_without_score(tmp_path):
    name = "tune-CartPole-v1-relax-002-s1000000"
    with pytest.raises(RelaxRLError, match=r"^1 run of trials failed"):
        tune({("CartPole-v1", "relax"): make_study(tmp_path, tune_seeds=1)}, failing(tmp_path, name))
    study = make_study(tmp_path, tune_seeds=1)
    assert tune({("CartPole-v1", "relax"): study}, failing(tmp_path, name))
    assert [trial["number"] for trial in study.trials if trial["score"] is None] == [2] and len(study.trials) == 11
    failure = {"run": "tune-CartPole-v1-relax-002", "status": "failed", "error": "No space left on device"}
    assert study.failures() == [failure] == make_study(tmp_path, tune_seeds=1).failures()


def test_studies_go_on_together(tmp_path):
    contestants = [read_contestant("relax"), read_contestant("a2c"), PPO]
    studies = make_studies(CompareConfig(tune=1, peers=("sb3-ppo",)), [ENV], contestants, Folder(tmp_path))
    tasks = run_to_the_end(*studies.values())
    labels = ["sb3-ppo", "a2c", "relax"]
    assert [task.name for task in tasks] == [f"tune-CartPole-v1-{label}-000-s1000000" for label in labels]
    alone = make_studies(CompareConfig(tune=1, tune_peers=False), [ENV], contestants, Folder(tmp_path / "alone"))
    assert [label for _, label in alone] == ["relax", "a2c"]
    assert make_studies(CompareConfig(), [ENV], contestants, Folder(tmp_path)) == {}


def test_shared_settings_have_one_range():
    relax, a2c, ppo = (
        {d.name for d in dimensions(c).values()} for c in (read_contestant("relax"), read_contestant("a2c"), PPO)
    )
    shared = {"policy_lr", "one_minus_gamma", "gae_lambda", "entropy_coef", "num_steps", "max_grad_norm"}
    assert relax & ppo == shared and relax - a2c == {"surrogate_lr", "surrogate_steps"}
    assert {"learning_rate", "n_epochs", "clip_range", "batch_size"} <= set(dimensions(PPO))


def test_what_was_set_by_hand_is_not_tuned():
    pinned = read_contestant("relax:policy_lr=1e-3")
    assert "policy_lr" not in dimensions(pinned) and "value_lr" in dimensions(pinned)


def test_the_space_holds_the_published_settings():
    peer = published("Hopper-v5", "sb3-ppo")
    space = {name: d for name, d in dimensions(PPO).items() if name in peer.settings}
    values = searched_values(peer.settings, space)
    assert values["policy_lr"] == 9.80828e-05 and values["one_minus_gamma"] == pytest.approx(0.001)
    back = {name: d.setting(values[d.name]) for name, d in space.items()}
    assert back == pytest.approx(dict(peer.settings))


def test_settings_outside_the_space_are_moved_into_it():
    rates = next(d for d in read_space() if d.name == "policy_lr")
    steps = next(d for d in read_space() if d.name == "num_steps")
    sizes = next(d for d in read_space() if d.name == "batch_size")
    assert (rates.searched(1.0), steps.searched(2048), sizes.searched(512)) == (1e-2, 1024, 256)
    assert searched_values({"max_grad_norm": float("inf")}, dimensions(read_contestant("a2c"))) is None


def spaced(tmp_path, *settings, starts=()):
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"settings": list(settings), "starts": list(starts)}))
    return path


WEIGHTS = (
    {"own": "surrogate_loss", "choices": ["variance", "critic"]},
    {"own": "residual_weight", "choices": [0.0, 0.3, 1.0, "adaptive"]},
)


def test_points_that_cannot_work_are_not_tried(tmp_path):
    """Half of this space asks for a weight of the residual without a critic."""
    space = read_space(spaced(tmp_path, *WEIGHTS))
    config = CompareConfig(tune=40, tune_batch=40, tune_seeds=1)
    study = Study(config, [ENV], read_contestant("relax"), Folder(tmp_path), space)
    points = [trial["settings"] for trial in study._points(40)][1:]
    assert len(points) == 39 and {point["surrogate_loss"] for point in points} == {"variance", "critic"}
    assert all(point["surrogate_loss"] == "critic" or point["residual_weight"] == 1.0 for point in points)


def test_starts_and_spaces_that_cannot_work_are_refused(tmp_path):
    start = {"surrogate_loss": "variance", "residual_weight": 0.3}
    path = spaced(tmp_path, *WEIGHTS, starts=[start])
    config, contestant = CompareConfig(tune=4, tune_seeds=1), read_contestant("relax")
    space = read_space(path)
    study = Study(config, [ENV], contestant, Folder(tmp_path), space, read_starts(path, space))
    with pytest.raises(SettingsError, match=r"^tune_space: the start \{.*\} cannot work, residual_weight is 0.3"):
        study._points(4)
    space = read_space(spaced(tmp_path, {"own": "residual_weight", "choices": [0.0, 0.3]}))
    study = Study(config, [ENV], contestant, Folder(tmp_path), space)
    with pytest.raises(SettingsError, match="1000 of 1000 points cannot work, one since residual_weight is"):
        study._points(4)


def test_infinity_is_a_choice(tmp_path):
    (bound,) = read_space(spaced(tmp_path, {"own": "kl_bound", "choices": [0.02, 0.1, "inf"]}))
    assert [bound.searched(value) for value in (math.inf, 0.1, 0.09, 5.0)] == ["inf", 0.1, 0.1, 0.1]
    assert bound.takes("inf") and bound.setting("inf") == "inf" and not bound.takes(math.inf)
    (alone,) = read_space(spaced(tmp_path, {"own": "kl_bound", "choices": ["inf"]}))
    assert alone.searched(0.1) is None
    peers = read_space(spaced(tmp_path, {"own": "target_kl", "sb3-ppo": "target_kl", "choices": [0.02, "inf"]}))
    with pytest.raises(SettingsError, match="target_kl of sb3-ppo has the choice inf"):
        check_peers([PPO], peers)


@pytest.mark.parametrize("start", [{"epochs": 4}, {"gamma": 0.98}, {"learning_rate": 0.1}, {}])
def test_what_a_start_leaves_out_is_proposed_until_it_works(tmp_path, start):
    space = read_space(
        spaced(
            tmp_path,
            {"own": "epochs", "choices": [1, 4]},
            {"own": "clip_range", "choices": [0.2, "inf"]},
            {"own": "gamma", "low": 0.9, "high": 0.99},
        )
    )
    contestant = read_contestant("a2c:preset=none")
    for name in range(12):
        points = propose(
            str(name),
            dimensions(contestant, space),
            [],
            3,
            starts=[start],
            refusal=lambda x: "no bound" if x["epochs"] > 1 and x["clip_range"] == "inf" else "",
        )
        assert len(points) == 3
        found = [point for point in points if all(point["settings"].get(key) == x for key, x in start.items())]
        assert found or "learning_rate" in start
