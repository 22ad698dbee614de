"""Successive halving: who goes on, what a stop changes, how long it takes, and one setting for several tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from relax_rl.cli import main
from relax_rl.comparison.budget import Budget
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, read_contestant
from relax_rl.comparison.halving import batch_size, rung_steps, survivors
from relax_rl.comparison.plan import Environment, Folder
from relax_rl.comparison.pool import Outcomes
from relax_rl.comparison.proposals import propose
from relax_rl.comparison.search_space import read_space
from relax_rl.comparison.study import Study
from relax_rl.comparison.task_scores import mean_score, read_anchors, scales
from relax_rl.comparison.tuning import make_studies, tune
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs.checkpoints import newest_first

ENV = Environment("CartPole-v1", total_steps=1000, threshold=475.0, id="CartPole-v1")
OTHER = Environment("Acrobot-v1", total_steps=2000, threshold=-100.0, id="Acrobot-v1")
RUNGS = (0.1, 0.3, 1.0)
PPO = Contestant("sb3-ppo", "sb3-ppo", peer=True)


def given(task) -> dict[str, str]:
    return dict(option[2:].split("=", 1) for option in task.begin if option.startswith("--") and "=" in option)


def work(task, root: Path, *, end: int | None = None) -> None:
    """Bring a run on to where its task ends, or to a step; the nearer its learning rate to 0.003, the higher its curve."""
    folder, options = root / task.folder, given(task)
    before = [int(path.name[5:14]) for path in newest_first(folder / "checkpoints")]
    begun = bool(before)
    assert before[:1] < [task.total_steps], "it has been here before"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    value = 100.0 - 1e4 * abs(float(options.get("policy-lr", 1e-3)) - 0.003) + int(options["seed"]) % 7
    value *= -3.0 if options["env"] == "Acrobot-v1" else 1.0
    step = end or task.total_steps
    (folder / "progress.csv").write_text(f"step,episodes,return_mean,seconds\n{step},5,{value},{step}\n")
    (folder / "episodes.csv").write_text(f"step,return,length\n10,{value},10\n")
    (folder / "checkpoints" / f"step_{step:09d}.safetensors").touch()
    if end is None:
        (folder / task.outcome).write_text(json.dumps({"status": "finished", "steps": step}))
    assert begun or "resume" not in task.command(root)


class Worker:
    """Does runs, the last one first; stops before the one of that number, which it leaves half done."""

    def __init__(self, root: Path, stop: int = 10_000) -> None:
        self.root, self.stop, self.done, self.rounds = root, stop, [], []

    def __call__(self, tasks) -> Outcomes | None:
        self.rounds.append(len(tasks))
        for task in reversed(tasks):
            if len(self.done) == self.stop:
                work(task, self.root, end=task.total_steps - 1)
                return None
            work(task, self.root)
            self.done.append(task)
        return {}


def make_study(root: Path, *environments: Environment, contestant: Contestant | None = None, **options) -> Study:
    names = tuple(env.name for env in environments) or ("CartPole-v1",)
    config = CompareConfig(**{"env": names, "tune": 20, "tune_rungs": RUNGS, **options})
    return Study(config, environments or [ENV], contestant or read_contestant("a2c"), Folder(root))


def test_who_goes_on():
    scores = {4: 1.0, 5: 3.0, 6: None, 7: 2.0, 8: 3.0, 9: 0.0}
    assert survivors(scores, 0.34) == {5, 8} and survivors(scores, 0.17) == {5}, "of equal ones the first"
    assert survivors(scores, 0.01) == {5} and survivors(scores, 1.0) == {4, 5, 7, 8, 9}
    assert survivors({0: 0.0, 1: 1.0, 2: 2.0}, 0.34) == {0, 2}, "and what is tuned as it stands"
    assert survivors({0: None, 1: 1.0}, 0.34) == {1} and survivors({1: None, 2: None}, 0.34) == {1, 2}
    assert rung_steps(1000, RUNGS) == (100, 300, 1000) and rung_steps(3, RUNGS) == (1, 1, 3)
    sizes = [batch_size(rungs, 0.34) for rungs in ((1.0,), (0.3, 1.0), RUNGS, (0.03, *RUNGS))]
    assert (
        sizes == [4, 4, 9, 26]
        and batch_size(RUNGS, 1.0) == 4
        and batch_size(RUNGS, 1e-300) == 10**9
        and batch_size(RUNGS, 0.5) == 4
    )


def test_halving_keeps_the_right_ones(tmp_path):
    study, worker = make_study(tmp_path), Worker(tmp_path)
    assert tune({("", ""): study}, worker)
    # Nine, of which three go on, and with the first batch what is tuned as it stands; then one, and two are left of twenty.
    assert worker.rounds[0] == 9 and worker.rounds[3:] == [9, 3, 1, 2, 1, 1]
    for first, last in ((0, 9), (9, 18), (18, 20)):
        batch = study.trials[first:last]
        ranked = sorted(batch, key=lambda trial: -trial["score"])
        reached = [len(trial["reached"]) for trial in ranked if trial["number"]]
        assert reached == sorted(reached, reverse=True) and reached[0] == 3
    assert len(study.trials[0]["reached"]) == 3
    complete = [trial for trial in study.trials if len(trial["reached"]) == 3]
    assert study.best == max(complete, key=lambda trial: trial["score"])["settings"]
    stops = [(given(task).get("stop-at-step"), task.total_steps, task.outcome) for task in worker.done]
    assert set(stops) == {("100", 100, "rung-1.json"), ("300", 300, "rung-2.json"), (None, 1000, "outcome.json")}
    assert all(given(task)["total-steps"] == "1000" for task in worker.done), "schedules are those of the whole run"
    assert all(given(task)["checkpoint-interval"] == "1000" for task in worker.done)


def test_what_was_cut_counts_as_worse_than_what_was_not(tmp_path):
    """A trial that was cut with a high score at its rung is not the best."""
    study = make_study(tmp_path)
    tune({("", ""): study}, Worker(tmp_path))
    cut = next(trial for trial in study.trials if len(trial["reached"]) == 1)
    cut["score"] = 1e9
    assert study.best != cut["settings"]


def test_what_was_cut_is_no_example_to_follow():
    """Whatever its score at its rung, next to what came to the last one."""
    space = {d.own: d for d in read_space() if d.name == "policy_lr"}
    cut = {"score": 1e6, "reached": [{}]}
    whole = {"score": 1.0, "reached": [{}] * 3}
    trials = [{"params": {"policy_lr": 1e-5 * (1 + k / 9)}, **cut} for k in range(20)]
    trials += [{"params": {"policy_lr": 9e-3 + k * 1e-4}, **whole} for k in range(4)]
    rates = [point["settings"]["policy_lr"] for point in propose("x", space, trials, 8, rungs=3)]
    assert sum(rate > 1e-3 for rate in rates) >= 6
    backwards = [{**trial, "reached": [{}] * (4 - len(trial["reached"]))} for trial in trials]
    rates = [point["settings"]["policy_lr"] for point in propose("x", space, backwards, 8, rungs=3)]
    assert sum(rate < 1e-3 for rate in rates) >= 6


def without_seconds(trials):
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


@pytest.mark.parametrize("stop", [3, 10, 13])
def test_a_stop_changes_no_number_and_repeats_no_rung(tmp_path, stop):
    whole, worker = make_study(tmp_path / "whole", tune=12), Worker(tmp_path / "whole")
    assert tune({("", ""): whole}, worker)
    first = Worker(tmp_path / "parts", stop)
    assert not tune({("", ""): make_study(tmp_path / "parts", tune=12)}, first)
    again, second = make_study(tmp_path / "parts", tune=12), Worker(tmp_path / "parts")
    assert tune({("", ""): again}, second)
    assert again.trials == whole.trials and again.best == whole.best
    assert len(first.done) + len(second.done) == len(worker.done), "a rung that was reached is not gone to again"
    kept = (tmp_path / "parts/tuning/CartPole-v1-a2c/trials.json").read_text()
    assert kept == (tmp_path / "whole/tuning/CartPole-v1-a2c/trials.json").read_text() and '"batch"' not in kept


def test_a_run_goes_back_to_its_last_rung(tmp_path):
    study = make_study(tmp_path)
    assert not tune({("", ""): study}, Worker(tmp_path, 9))
    (half,) = tmp_path.rglob("step_000000299*")
    assert len(make_study(tmp_path).propose()) in (3, 4)
    assert not half.exists() and (half.parent / "step_000000100.safetensors").exists()


def test_a_run_that_has_solved_its_task_is_not_gone_on_with(tmp_path):
    study = make_study(tmp_path, tune=4, tune_keep=1.0)
    for task in study.propose():
        work(task, tmp_path)
    ended = tmp_path / task.folder
    (ended / "rung-1.json").write_text(json.dumps({"status": "finished", "steps": 60}))
    study.close()
    left = {tmp_path / task.folder for task in study.propose()}
    assert len(left) == 3 and ended not in left and (ended / "rung-2.json").exists()


def test_peers_have_no_rungs_but_as_many_trials_at_a_time(tmp_path):
    config = CompareConfig(tune=10, tune_rungs=RUNGS, peers=("sb3-ppo",))
    studies = make_studies(config, [ENV], [read_contestant("a2c"), PPO], Folder(tmp_path))
    worker = Worker(tmp_path)
    assert tune(studies, worker) and worker.rounds[0] == 18
    ours, theirs = studies.values()
    assert len(ours.trials) == len(theirs.trials) == 10
    assert {len(trial["reached"]) for trial in theirs.trials} == {1}
    assert not [task for task in worker.done if "sb3" in task.name and "stop-at-step" in given(task)]


def test_a_search_of_earlier_versions_is_gone_on_with(tmp_path):
    study = make_study(tmp_path, tune=8, tune_rungs=())
    tune({("", ""): study}, Worker(tmp_path))
    path = study.folder / "trials.json"
    record = json.loads(path.read_text())
    old = [{name: trial[name] for name in ("number", "params", "settings", "score")} for trial in record["trials"][:4]]
    path.write_text(json.dumps({**record, "trials": old}))
    again = make_study(tmp_path, tune=8, tune_rungs=())
    assert tune({("", ""): again}, Worker(tmp_path))
    assert [trial["params"] for trial in again.trials] == [trial["params"] for trial in study.trials]
    assert again.best == study.best


def test_trials_that_cannot_be_read_are_told_in_one_line(tmp_path):
    study = make_study(tmp_path)
    (study.folder / "trials.json").write_text('{"trials": [{"number": 0}]}')
    with pytest.raises(
        CheckpointError, match=r"trials.json is damaged: a trial has no number, params, score, settings"
    ):
        make_study(tmp_path)
    trial = {"number": 0, "params": None, "score": 1.0, "settings": {"networks": "a:b"}}
    (study.folder / "trials.json").write_text(json.dumps({"trials": [trial]}))
    with pytest.raises(CheckpointError, match=r"trials.json is damaged: 'networks' is not searched"):
        make_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"score": "high"}, "score of trial 1 is 'high', expected a number"),
        ({"score": True}, "score of trial 1 is True, expected a number"),
        ({"reached": None}, "reached of trial 1 is None, expected scores"),
        ({"reached": [{}]}, r"reached of trial 1 is \[{}\], expected scores"),
        ({"reached": [{"CartPole-v1": "1"}]}, "reached of trial 1 is .* expected scores"),
        ({"reached": [{"CartPole-v1": 1.0}] * 4}, "reached of trial 1 is .* at most 3 rungs"),
        ({"number": "1"}, "number is '1', expected 1"),
        ({"number": 0}, "number is 0, expected 1"),
        ({"params": {"foreign": 1.0}}, "params of trial 1 are no point of what is searched"),
        ({"params": []}, "params of trial 1 are no point"),
    ],
)
@pytest.mark.parametrize("kept", ["trials", "batch"])
def test_trials_that_are_none_of_the_search_are_told_in_one_line(tmp_path, kept, change, expected):
    study = make_study(tmp_path)
    study.propose()
    path = study.folder / "trials.json"
    record = json.loads(path.read_text())
    trials = [{**trial, "score": 1.0, "reached": [{"CartPole-v1": 1.0}]} for trial in record["batch"][:3]]
    path.write_text(json.dumps({"trials": [], kept: trials}))
    make_study(tmp_path)
    path.write_text(json.dumps({"trials": [], kept: [trials[0], {**trials[1], **change}, trials[2]]}))
    with pytest.raises(
        CheckpointError, match=f"trials.json is damaged: {expected}.*; remove it to search anew"
    ) as told:
        make_study(tmp_path)
    assert "\n" not in str(told.value)
    del trials[1]["reached"]
    path.write_text(json.dumps({"trials": [], "batch": trials}))
    with pytest.raises(CheckpointError, match="reached of trial 1 is None"):
        make_study(tmp_path)


# Several tasks


def test_the_scale_of_a_task():
    trials = [{"a": 1.0, "b": -300.0}, {"a": 3.0, "b": None}, {"a": 2.0, "b": -100.0}]
    found = scales(["a", "b", "c"], trials, {"b": (-500.0, -100.0)})
    assert found == {"a": (1.0, 3.0), "b": (-500.0, -100.0)}, "nothing is known of c"
    assert [mean_score(trial, found) for trial in trials] == [0.25, None, 0.75]
    assert mean_score({"a": 2.0}, {"a": (2.0, 2.0)}) == 0.0 and mean_score({}, {}) is None


def test_one_setting_for_several_tasks(tmp_path):
    study = make_study(tmp_path, ENV, OTHER, tune_together=True, tune=9, tune_seeds=2)
    worker = Worker(tmp_path)
    assert tune({("CartPole-v1", ""): study, ("Acrobot-v1", ""): study}, worker)
    assert worker.rounds[0] == 9 * 2 * 2, "every trial on every task from every seed"
    assert {task.total_steps for task in worker.done} == {100, 300, 1000, 200, 600, 2000}
    complete = [trial for trial in study.trials if len(trial["reached"]) == 3]
    for env in ("CartPole-v1", "Acrobot-v1"):
        known = [trial["reached"][2][env] for trial in complete]
        assert study.about()["scales"][env] == (min(known), max(known))
    # On the fakes' tasks what is good for one is bad for the other, on their own scales exactly as much.
    assert all(trial["score"] == pytest.approx(0.5) for trial in complete)
    assert study.trials[0]["params"] is None, "the presets of the tasks differ"
    assert set(study.trials[1]["settings"]) == {*study.space}


def test_anchors_decide_what_counts(tmp_path):
    anchors = {"CartPole-v1": "CartPole-v1=0:100", "Acrobot-v1": "Acrobot-v1=-1000000:0"}
    study = make_study(tmp_path, ENV, OTHER, tune_together=True, tune=9, tune_anchors=tuple(anchors.values()))
    tune({("", ""): study}, Worker(tmp_path))
    reached = study.trials[3]["reached"][-1]
    expected = (reached["CartPole-v1"] / 100 + (reached["Acrobot-v1"] + 1e6) / 1e6) / 2
    assert study.trials[3]["score"] == pytest.approx(expected)


def test_scores_do_not_depend_on_the_order_of_runs(tmp_path):
    """Nor do proposals, though scales are those of all trials so far."""
    found = []
    for order in (1, -1):
        root = tmp_path / str(order)
        anchors = ("Acrobot-v1=-1000:0",)
        study = make_study(root, ENV, OTHER, tune_together=True, tune=13, tune_batch=5, tune_anchors=anchors)

        def each(tasks, order=order, root=root) -> Outcomes | None:
            for task in tasks[::order]:
                work(task, root)
            return {}

        assert tune({("", ""): study}, each)
        found.append(study.trials)
    assert found[0] == found[1] and len({trial["score"] for trial in found[0]}) > 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pong=0:1", "tune_anchors 'Pong=0:1' is for Pong, which is not among the environments"),
        ("CartPole-v1=1:0", "tune_anchors is 'CartPole-v1=1:0', expected ENV=low:high, two rising numbers"),
        ("CartPole-v1=1", "expected ENV=low:high"),
        ("0:1", "is for nothing"),
    ],
)
def test_anchors_that_are_none(text, expected):
    with pytest.raises(SettingsError, match=expected):
        read_anchors(CompareConfig(env=("CartPole-v1",), tune_together=True, tune_anchors=(text,)))


# The table and the time


def test_the_table_of_trials(tmp_path):
    study = make_study(tmp_path, tune=9)
    tune({("", ""): study}, Worker(tmp_path))
    with open(study.folder / "trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["number", "rung", "score", "CartPole-v1", *study.space, "seconds"]
    assert [int(row["number"]) for row in rows] == list(range(9)) and rows[0]["gamma"] == "0.98"
    for row, trial in zip(rows, study.trials, strict=True):
        assert int(row["rung"]) == len(trial["reached"]) and float(row["score"]) == float(row["CartPole-v1"])
        assert float(row["seconds"]) == (100, 300, 1000)[int(row["rung"]) - 1]
        for name, value in trial["settings"].items():
            assert float(row[name]) == pytest.approx(value, rel=1e-6)


def test_no_batch_is_begun_once_the_time_is_spent(tmp_path):
    now, path = [0.0], tmp_path / "budget.json"
    config = CompareConfig(tune=40, tune_minutes=1.0)
    contestants = [read_contestant("a2c"), read_contestant("relax")]

    def search(stop: int = 10_000) -> tuple[bool, list[int]]:
        budget, worker = Budget(path, config.tune_minutes, clock=lambda: now[0]), Worker(tmp_path, stop)
        studies = make_studies(config, [ENV], contestants, Folder(tmp_path))

        def slow(tasks) -> Outcomes | None:
            with budget.working():
                for _ in tasks:
                    now[0] += 3.0
                    budget.look()
                return worker(tasks)

        return tune(studies, slow, budget), [len(study.trials) for study in studies.values()]

    assert search(stop=10) == (False, [4, 4]) and json.loads(path.read_text())["seconds"] == 48.0
    assert search() == (True, [8, 8]), "a batch that was begun is brought to its end"
    assert search() == (True, [8, 8]) and json.loads(path.read_text())["seconds"] > 60.0
    path.write_text(json.dumps({"seconds": 0.0}))
    assert search()[1] != [8, 8]
    assert not Budget(tmp_path / "none.json", None).spent


def test_contestants_have_as_many_trials_when_the_time_is_spent(tmp_path):
    """One of them had kept its batch, and the other not yet, when all was killed."""
    config = CompareConfig(tune=40, tune_minutes=1e-9)
    contestants = [read_contestant("a2c"), read_contestant("relax")]
    studies = make_studies(config, [ENV], contestants, Folder(tmp_path))
    for study in studies.values():
        for task in study.propose():
            work(task, tmp_path)
    next(iter(studies.values())).close()
    budget = Budget(tmp_path / "budget.json", config.tune_minutes)
    budget.seconds = 1.0
    again = make_studies(config, [ENV], contestants, Folder(tmp_path))
    assert [len(study.trials) for study in again.values()] == [4, 0]
    assert tune(again, Worker(tmp_path), budget)
    assert [len(study.trials) for study in again.values()] == [4, 4]


# Real runs


def test_trials_that_train_are_the_same_after_stops(tmp_path, monkeypatch):
    """Twice a run was in the middle between two rungs, and had been saved there."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    env = Environment("CartPole-v1", total_steps=80, threshold=475.0, id="CartPole-v1")
    contestant = read_contestant("a2c:hidden=4,num_envs=2,compile=off,log_interval=20,lr_schedule=linear,num_steps=5")
    config = CompareConfig(tune=3, tune_rungs=(0.5, 1.0), tune_keep=0.67)

    def search(root: Path, stop: int = 10_000) -> Study:
        root.mkdir(exist_ok=True)
        monkeypatch.chdir(root)
        study, done = Study(config, [env], contestant, Folder(root)), []

        def each(tasks) -> Outcomes | None:
            for task in tasks:
                command = list(task.command(root)[1:])
                if len(done) == stop:
                    command = [word for word in command if not word.startswith("--stop-at-step")]
                    assert main([*command, f"--stop-at-step={task.total_steps - 20}"]) == 0
                    return None
                assert main(command) == 0
                outcome = {"status": "finished", "steps": task.total_steps}
                (root / task.folder / task.outcome).write_text(json.dumps(outcome))
                done.append(task)
            return {}

        tune({("", ""): study}, each)
        return study

    whole = search(tmp_path / "whole")
    assert sorted(len(trial["reached"]) for trial in whole.trials)[1:] == [2, 2]
    search(tmp_path / "parts", 1)
    search(tmp_path / "parts", 2)
    again = search(tmp_path / "parts")
    assert without_seconds(again.trials) == without_seconds(whole.trials)
    for path in (tmp_path / "whole").rglob("episodes.csv"):
        same = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == same.read_bytes()


def test_trials_alone_and_the_comparison_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Figure, "savefig", lambda self, path, *_, **__: Path(path).write_bytes(b""))
    monkeypatch.chdir(tmp_path)
    ours = "a2c=a2c:hidden=4,num_envs=2,compile=off,num_steps=5"
    options = ["--env", "CartPole-v1", "--estimators", ours, "--total-steps", "100", "--num-workers", "1", "--quiet"]
    assert main(["compare", *options, "--tune", "2", "--seeds", "0", "--run-dir", "found"]) == 0
    assert not list(Path("found/runs").glob("*")) and not list(Path("found/figures").glob("*"))
    assert "Tuned, and not yet compared." in Path("found/report.md").read_text()
    tried = Path("found/tuning/CartPole-v1-a2c/trials.csv").read_bytes()
    assert main(["compare", "--resume", "found", "--seeds", "1", "--quiet"]) == 0
    assert [run.name for run in Path("found/runs").iterdir()] == ["CartPole-v1-a2c-s0"]
    assert Path("found/tuning/CartPole-v1-a2c/trials.csv").read_bytes() == tried
    capsys.readouterr()
    assert main(["compare", "--resume", "found", "--seeds", "-1"]) == 2
    assert capsys.readouterr().err == "error: seeds is -1, expected 0 or above\n"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--tune-rungs", "0.3", "0.1", "1"], "tune_rungs is (0.3, 0.1, 1.0), expected rising fractions up to 1"),
        (["--tune-rungs", "0.1", "0.3"], "expected rising fractions up to 1"),
        (["--tune-keep", "0"], "tune_keep is 0.0, expected above 0 and at most 1"),
        (["--tune-minutes", "0"], "tune_minutes is 0.0, expected above 0"),
        (["--tune-anchors", "CartPole-v1=0:500"], "expected tune_together beside it"),
        (["--tune", "0", "--tune-minutes", "5"], "tune_minutes is 5.0, expected tune of at least 1 beside it"),
        (["--tune-together", "--tune-anchors", "CartPole-v1=500:0"], "expected ENV=low:high"),
        (["--tune-first-seed", "5"], "first_seed is 0, expected seeds below 5 with --tune"),
        (["--tune-space", "nowhere.json"], "tune_space nowhere.json cannot be read: No such file or directory"),
        (["--set", "stop_at_step=3"], "stop_at_step cannot be set for a contestant; use --tune-rungs"),
    ],
)
def test_mistakes_are_told_in_one_line(args, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--env", "CartPole-v1", "--tune", "4", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and expected in err
    assert not (tmp_path / "runs").exists()
