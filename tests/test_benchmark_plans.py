"""Plans of `benchmarks`: comparisons and searches that go on where nothing is left but what was kept of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contests, factorial, five_minutes, matches, search
from benchmarks.contests import CONTESTS
from benchmarks.contests import MATCHES as CONTEST_MATCHES
from benchmarks.finalists import Finalist
from benchmarks.matches import Match, keep_unfinished, play
from benchmarks.run_off import MATCHES as RUN_OFFS
from benchmarks.search import SEARCHES, SPACES
from relax_rl.comparison.contestants import read_contestant, read_peer
from relax_rl.comparison.search_space import dimensions, read_space, read_starts
from relax_rl.comparison.task import OUTCOME
from relax_rl.settings.presets import preset_config

MATCH = Match(env="CartPole-v1", steps=100, contestants=("a=a2c", "b=relax"), seeds=2, variance_of="b")


def begun(folder: Path) -> None:
    """A comparison that was stopped: two runs have ended, one has not."""
    for name, ended in (("a-s0", True), ("a-s1", False), ("b-s0", True), ("b-s1", True)):
        run = folder / "runs" / f"CartPole-v1-{name}"
        (run / "checkpoints").mkdir(parents=True)
        for file in ("config.json", "progress.csv", "episodes.csv", *([OUTCOME] if ended else [])):
            (run / file).write_text(name)
    (folder / "settings.json").write_text('{"options": {}}')


def test_an_unfinished_comparison_goes_on_from_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matches, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(matches, "RESULTS", tmp_path / "results")
    folder, kept = tmp_path / "runs" / "g" / "task", tmp_path / "results" / "g" / "task"
    begun(folder)
    keep_unfinished(MATCH, folder, kept)
    shutil.rmtree(folder)
    seen: list[Any] = []

    def stopped(command: list[str]) -> None:
        runs = {path.name: sorted(file.name for file in path.iterdir()) for path in (folder / "runs").iterdir()}
        seen.extend([command, runs, (folder / "settings.json").read_text()])
        begun(folder.parent / "another")
        raise KeyboardInterrupt

    monkeypatch.setattr(matches, "run_command", stopped)
    with pytest.raises(KeyboardInterrupt):
        play("task", MATCH, "g")
    command, runs, settings = seen
    assert "--resume" in command and settings == '{"options": {}}'
    files = sorted(["config.json", OUTCOME, "progress.csv", "episodes.csv"])
    # Gradients are measured at the checkpoints of b's first run, which is made again.
    assert runs == {"CartPole-v1-a-s0": files, "CartPole-v1-b-s1": files}


def test_nothing_is_kept_of_what_is_done_or_not_begun(tmp_path: Path) -> None:
    keep_unfinished(MATCH, tmp_path / "none", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    begun(tmp_path / "folder")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "comparison.json").write_text(json.dumps(result(a=2, b=1)))
    keep_unfinished(MATCH, tmp_path / "folder", tmp_path / "kept")
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["comparison.json"]
    (tmp_path / "kept" / "comparison.json").write_text(json.dumps(result(a=1, b=1)))
    keep_unfinished(MATCH, tmp_path / "folder", tmp_path / "kept")
    assert (tmp_path / "kept" / "unfinished.zip").exists()


def result(*, seeds: int = 2, failures: Sequence[str] = (), **runs: int) -> dict[str, Any]:
    """What `comparison.json` holds, as far as plans read it to go on."""
    contestants = {label: {"runs": [{}] * count} for label, count in runs.items()}
    failed = [{"status": status} for status in failures]
    return {
        "options": {"seeds": seeds},
        "failures": failed,
        "environments": {"CartPole-v1": {"contestants": contestants}},
    }


@pytest.mark.parametrize(
    ("failures", "kept"), [(("diverged", "diverged"), True), (("diverged", "failed"), False), ((), False)]
)
def test_diverged_runs_are_results(
    failures: tuple[str, ...], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare` ends with 1 where a run has diverged, and has written what came of all."""
    monkeypatch.setattr(matches, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(matches, "RESULTS", tmp_path / "results")
    folder = tmp_path / "runs" / "g" / "task"

    def ends_badly(command: list[str]) -> None:
        begun(folder)
        (folder / "figures").mkdir()
        (folder / "report.md").touch()
        if failures:
            (folder / "comparison.json").write_text(json.dumps(result(failures=failures, a=2, b=2)))
        raise SystemExit(1)

    monkeypatch.setattr(matches, "run_command", ends_badly)
    if kept:
        play("task", MATCH, "g")
    else:
        with pytest.raises(SystemExit):
            play("task", MATCH, "g")
    assert (tmp_path / "results" / "g" / "task" / "comparison.json").exists() == kept
    assert (tmp_path / "results" / "g" / "task" / "unfinished.zip").exists() != kept


def test_results_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matches, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(matches, "RESULTS", tmp_path / "results")
    kept = tmp_path / "results" / "g" / "task"
    kept.mkdir(parents=True)
    (kept / "comparison.json").write_text(json.dumps(result(seeds=5, a=5, b=5)))
    started: list[Any] = []

    def noted(command: list[str]) -> None:
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(matches, "run_command", noted)
    for seeds in (5, 2):
        assert play("task", MATCH, "g", seeds=seeds) == kept and not started
    (tmp_path / "runs" / "g" / "task").mkdir(parents=True)
    play("task", MATCH, "g", seeds=2)  # fewer never replace more
    assert not started
    for seeds in (5, 6):
        with pytest.raises(KeyboardInterrupt):
            play("task", MATCH, "g", seeds=seeds)
    assert len(started) == 2


def test_an_interrupted_search_keeps_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(search, "RESULTS", tmp_path / "results")

    def stopped(command: list[str]) -> None:
        (tmp_path / "runs" / "search" / "lander" / "tuning").mkdir(parents=True)
        for name in ("settings.json", "tuning/budget.json"):
            (tmp_path / "runs" / "search" / "lander" / name).touch()
        raise SystemExit(130)

    monkeypatch.setattr(search, "run_command", stopped)
    with pytest.raises(SystemExit):
        search.main(["--searches", "lander"])
    kept = tmp_path / "results" / "search" / "lander"
    assert sorted(file.name for file in kept.iterdir()) == ["budget.json", "settings.json"]


def test_the_mean_of_a_curve_begins_with_its_first_value() -> None:
    assert matches.curve_mean({"curve": {"return": ["nan", "nan", 2.0, 6.0]}}) == 3.0


def test_more_than_a_peer_below_zero_is_above_it() -> None:
    contest = CONTESTS["Ant-v5"]
    for ours, theirs, held in (
        (-60.0, -50.0, "no"),
        (-40.0, -50.0, "no"),
        (-35.0, -50.0, "yes"),
        (130.0, 100.0, "yes"),
    ):
        assert contests._held(contest, {"value": ours}, {"value": theirs}) == held


def test_finalists_are_what_their_searches_had() -> None:
    for match in (each for each in RUN_OFFS.values() if each.commit is None):
        for text in match.contestants:
            contestant = read_contestant(text)
            preset_config(match.env, contestant.kind, **{**match.settings, **contestant.settings})
    own = Finalist(search="untold", contestant="auto", trial=6, changed={"epochs": "3"}).settings()
    assert (own["num_steps"], own["epochs"], own["normalize_obs"]) == ("32", "3", "true")
    with pytest.raises(ValueError, match="no trial 1000"):
        Finalist(search="untold", contestant="auto", trial=1000).settings()


def test_a_search_goes_on_from_its_tables(tmp_path: Path) -> None:
    folder, kept = tmp_path / "folder", tmp_path / "kept"
    study = folder / "tuning" / "together-V"
    study.mkdir(parents=True)
    for file in (
        folder / "settings.json",
        folder / "tuning" / "search_space.json",
        study / "trials.json",
        study / "trials.csv",
    ):
        file.write_text(json.dumps({"options": {}, "name": file.name}))
    search._keep(folder, kept)
    assert {str(file.relative_to(kept)) for file in kept.rglob("*.*")} == {
        *("settings.json", "search_space.json"),
        *("V/trials.json", "V/trials.csv"),
    }
    again = tmp_path / "again"
    search._restore(kept, again)
    for name in ("settings.json", "tuning/search_space.json", "tuning/together-V/trials.json"):
        assert json.loads((again / name).read_text())["name"] == Path(name).name
    # Environments of other packages have to be named again.
    command = SEARCHES["untold"].command(again, jobs=1)
    assert command[command.index("--resume") :] == ["--resume", str(again), "--env", *SEARCHES["untold"].anchors]
    (folder / "settings.json").write_text("of now")
    search._restore(kept, folder)  # a search that is there stays
    assert (folder / "settings.json").read_text() == "of now"


@pytest.mark.parametrize("name", [name for name, plan in SEARCHES.items() if plan.contestants])
def test_what_a_search_begins_with_can_be_trained(name: str) -> None:
    plan = SEARCHES[name]
    space = read_space(SPACES / plan.space)
    common = {key: {"true": True, "false": False}.get(value, value) for key, value in plan.settings.items()}
    common["num_envs"] = int(common["num_envs"])
    for text in plan.contestants:
        contestant = read_contestant(text)
        searched = {dimension.name: dimension for dimension in dimensions(contestant, space).values()}
        for point in read_starts(SPACES / plan.space, space):
            settings = {d.own: d.setting(point[d.name]) for d in searched.values() if d.name in point}
            for env in plan.anchors:
                preset_config(env, contestant.kind, preset="none", **{**common, **contestant.settings, **settings})


def test_contests_know_where_the_runs_of_ppo_are() -> None:
    for name, contest in CONTESTS.items():
        own = f"{name}-ppo" in CONTEST_MATCHES
        assert own == (contest.known is None)
        if contest.known is not None:
            found = matches.read_result("against_ppo", contest.known)
            assert found is not None and "sb3-ppo" in next(iter(found["environments"].values()))["contestants"]
    assert all(name in CONTEST_MATCHES and f"{name}-ppo" not in CONTEST_MATCHES for name in contests.ATARI)


def test_ppo_meets_final_seeds_with_what_its_search_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [
        {"number": "0", "rung": "1", "score": "0.5", "CartPole-v1": "300", "learning_rate": "0.01", "seconds": "1"},
        {"number": "1", "rung": "1", "score": "0.7", "CartPole-v1": "400", "learning_rate": "0.003", "seconds": "1"},
        {"number": "2", "rung": "1", "score": "", "CartPole-v1": "", "learning_rate": "0.1", "seconds": "1"},
    ]
    monkeypatch.setattr(search, "trials_of", lambda name, label: trials if name == "ppo-discrete" else [])
    found = contests._matches()
    assert found["CartPole-v1-tuned-ppo"].peers == ("tuned-ppo=sb3-ppo:learning_rate=0.003",)
    assert "Acrobot-v1-tuned-ppo" in found and "Pendulum-v1-tuned-ppo" not in found
    peer = read_peer(found["CartPole-v1-tuned-ppo"].peers[0])
    assert (peer.label, peer.settings) == ("tuned-ppo", {"learning_rate": 0.003})


def timed(env: str, contestant: str, scores: list[float | None], curve: Any = ()) -> dict[str, Any]:
    return {"env": env, "contestant": contestant, "scores": scores, "curve": list(curve)}


def test_the_best_after_minutes_is_told_where_all_runs_have_a_score() -> None:
    scores = {
        "ours": [(100.0, 490.0), (120.0, 500.0)],
        "sb3-ppo": [(150.0, 400.0), (None, 400.0)],
        "sb3-a2c": [(20.0, 30.0)],
    }
    runs = [timed("CartPole-v1", label, list(each)) for label, found in scores.items() for each in found]
    text = five_minutes.report(runs)
    first, second = (next(line for line in text.splitlines() if f"| {at} |" in line) for at in (120, 300))
    assert first.startswith("| CartPole-v1 | 120 | **110.0** [100.0, 120.0] | 20.0 |  |")
    assert "**495.0**" in second and "| 400.0 |" in second
    assert "with all rivals run: 0 of 1 tasks" in text  # PPO lacks a score


@pytest.mark.parametrize(
    ("ours", "ppo", "told"),
    [
        ([-80.0, -80.0], [-80.0, -90.0], "0 of 1 tasks, best or level with the best: 1"),
        ([-80.0, -80.0], [-80.5, -90.0], "1 of 1 tasks, best or level with the best: 1"),
        ([-80.0, -95.0], [-80.5, -90.0], "0 of 1 tasks, best or level with the best: 0"),
    ],
)
def test_ties_are_no_wins(ours: list[float | None], ppo: list[float | None], told: str) -> None:
    other = timed("Acrobot-v1", "sb3-a2c", [-99.0, -99.0])
    runs = [other, timed("Acrobot-v1", "ours", ours), timed("Acrobot-v1", "sb3-ppo", ppo)]
    assert told in five_minutes.report(runs)
    assert five_minutes.contestants("Pendulum-v1")[-1] == "sb3-sac"
    assert "sb3-sac" not in five_minutes.contestants("Acrobot-v1")


def test_times_are_held_against_what_ppo_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"contestants": {"sb3-ppo": {"runs": [{"final": 90.0}, {"final": 110.0}]}}, "total_steps": 1000}
    monkeypatch.setattr(five_minutes, "read_result", lambda group, name: {"environments": {name: entry}})
    runs = [timed("Hopper-v5", "sb3-ppo", [50.0, 50.0], [[200.0, 100, 40.0], [300.0, 150, 50.0]])]  # 0.5 steps a second
    runs.append(timed("Hopper-v5", "ours", [1.0, 1.0], [[150.0, 9, 99.9], [201.0, 9, 100.0]]))
    text = five_minutes.report(runs)
    assert "| Hopper-v5 | 100.0 | 2,000 | 201 | 0.10 |" in text and "a tenth of PPO's time: 0 of 1 tasks" in text
    runs[-1]["curve"] = [[199.0, 9, 100.0]]
    assert "| Hopper-v5 | 100.0 | 2,000 | 199 | 0.10 |" in five_minutes.report(runs)
    assert "a tenth of PPO's time: 1 of 1 tasks" in five_minutes.report(runs)


def test_a_run_is_noted_by_its_last_episodes() -> None:
    episodes = [(10 * (n + 1), float(n)) for n in range(30)]
    found = five_minutes._noted([(5.0, 0), (10.0, 1), (15.0, 1), (20.0, 30)], episodes, (5.0, 20.0))
    assert found == {
        "scores": [None, 19.5],
        "steps": [0, 300],
        "curve": [[10.0, 10, 0.0], [20.0, 300, 19.5]],
    }


def test_a_plan_that_has_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"options": {"estimators": ["a=a2c", "b=relax"], "set": []}}))
    assert "--resume" in MATCH.command(tmp_path, 2, 1)
    with pytest.raises(SystemExit, match="was begun with other estimators, set than the plan has"):
        replace(MATCH, contestants=("a=a2c",), settings={"gamma": "0.9"}).command(tmp_path, 2, 1)
    with pytest.raises(SystemExit, match="other estimators"):
        SEARCHES["lander"].command(tmp_path, jobs=1)


def curves(**means: list[float]) -> dict[str, Any]:
    contestants = {
        label: {"runs": [{"curve": {"return": [x]}, "final": -x} for x in found]} for label, found in means.items()
    }
    return {"environments": {"E": {"contestants": contestants}}}


def test_the_factorial_tells_rivals_apart_at_each_bound_and_over_all() -> None:
    found = curves(
        **{"V, 0.02": [1.0, 1.0], "q, w 1, 0.02": [2.0, 2.0], "V, 0.1": [3.0, 3.0], "q, w 1, 0.1": [3.0, 3.0]}
    )
    lines = factorial._of_task(factorial._runs(found))
    assert (
        "| V | 1.0 [1.0, 1.0] |  | 3.0 [3.0, 3.0] |" in lines
        and "| q, w 1 | 2.0 [2.0, 2.0] |  | 3.0 [3.0, 3.0] |" in lines
    )
    by_curve, by_end = (line for line in lines if line.startswith("| q, w 1 over V |"))
    assert by_curve == "| q, w 1 over V | 1.00 [1.00, 1.00] |  | 0.50 [0.50, 0.50] | 0.75 [0.75, 0.75] |"
    assert by_end.startswith("| q, w 1 over V | 0.00 [0.00, 0.00] |")


def test_the_best_of_either_kind_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = curves(**{"V, 0.02": [1.0], "V, 0.1": [3.0], "q, w 1, 0.1": [5.0], "q, w 0, 0.1": [4.0], "c, 0.1": [9.0]})
    monkeypatch.setattr(factorial, "read_result", lambda group, name: found if name == "Hopper-v5" else None)
    last = factorial._matches()["Hopper-v5-finalists"]
    assert [text.partition("=")[0] for text in last.contestants] == ["V, 0.1", "q, w 1, 0.1"]
    assert (last.seeds, last.first_seed, last.steps, last.variance_of) == (10, 0, 1_000_000, None)
    assert "LunarLander-v3-finalists" not in factorial._matches()
    told = factorial._between_finalists(
        "Hopper-v5-finalists", curves(**{"V, 0.1": [1.0, 1.0], "q, w 1, 0.1": [2.0, 2.0]})
    )
    assert told[0] == (
        "- by the curve: q, w 1, 0.1 2.0 [2.0, 2.0], V, 0.1 1.0 [1.0, 1.0]; P(q, w 1, 0.1 over V, 0.1) 1.00 [1.00, 1.00]"
    )


@pytest.mark.parametrize("env", list(factorial.OF_TASK))
def test_what_the_factorial_compares_differs_in_what_its_label_says(env: str) -> None:
    """And can be made: V and q have networks of one kind."""
    match, other = factorial.MATCHES[env], factorial.MATCHES[f"{env}-weights"]
    contestants = match.contestants + other.contestants
    labels = [read_contestant(text).label for text in contestants]
    assert len(set(labels)) == len(labels) == 18 and len(match.contestants) == 9
    assert (match.settings, match.first_seed, match.steps) == (other.settings, other.first_seed, other.steps)
    for text in contestants:
        contestant = read_contestant(text)
        of_all = {
            name: read_contestant(f"x=a2c:{name}={value}").settings[name] for name, value in match.settings.items()
        }
        config = preset_config(env, contestant.kind, **{**of_all, **contestant.settings}).agent
        assert f"{config.kl_bound:g}" == contestant.label.rpartition(", ")[2] and config.clip_range == float("inf")
        if contestant.label.startswith("q"):
            assert (config.surrogate_hidden, config.surrogate_activation) == (config.hidden, config.activation)
            assert config.surrogate_layer_norm == config.layer_norm and config.surrogate_loss == "critic"
            assert contestant.kind == ("marginal" if env in factorial.DISCRETE else "lax")


def test_the_factorial_tells_what_a_frozen_gradient_is_made_of() -> None:
    applied = {
        "a2c": {"variance": {"value": 2.0}},
        "lax, w = 0": {"variance": {"value": "0.5"}, "squared_bias": {"value": 1.0}},
        "lax, fitted": {"variance": {"value": 1.0}},
    }
    lines = factorial._errors({"late": {"step": 4_000, "squared_gradient_norm": 0.1, "applied": applied}})
    assert "| late, 4,000 steps | 0.050 | 0.250 | 0.500 |" in lines
    assert "| agent | square of the gradient | lax, w = 0: variance | squared bias |" in lines


def test_no_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        contests.main(["--seeds", "0", "--report"])
    assert left.value.code == 2 and "--seeds: '0', expected a whole number of at least 1" in capsys.readouterr().err
