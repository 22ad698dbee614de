"""CSV and TensorBoard: what is written, when, and how it is gone on with."""

from __future__ import annotations

import math
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from relax_rl.errors import RelaxRLError
from relax_rl.runs.loggers import (
    CsvLogger,
    TensorBoardLogger,
    mean_metrics,
    read_csv,
    truncate_csv,
)


def test_rows_are_on_disk_at_once_with_empty_cells_for_nan(tmp_path):
    path = tmp_path / "a.csv"
    logger = CsvLogger(path, ("step", "return_mean"))
    logger.log({"step": 10, "return_mean": math.nan, "losses/value": 0.25})
    assert path.read_text() == "step,return_mean,losses/value\n10,,0.25\n"
    logger.log({"step": 20, "return_mean": 1.5, "other": 3.0})
    assert path.read_text().splitlines()[-1] == "20,1.5,"
    logger.close()
    columns = read_csv(path)
    assert columns["step"] == [10, 20]
    assert math.isnan(columns["return_mean"][0]) and columns["return_mean"][1] == 1.5


def test_a_file_is_gone_on_with_in_its_own_columns(tmp_path):
    path = tmp_path / "a.csv"
    for start in (0, 20):
        logger = CsvLogger(path, ("step", "x"))
        logger.log({"x": 1.0, "y" if start == 0 else "z": 2.0, "step": start})
        logger.close()
    assert path.read_text() == "step,x,y\n0,1,2\n20,1,\n"


def test_large_numbers_keep_their_digits(tmp_path):
    logger = CsvLogger(tmp_path / "a.csv", ("step", "seconds"))
    logger.log({"step": 123_456_789, "seconds": 86_400.25})
    logger.close()
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("123456789,86400")


def test_cutting_back_drops_later_and_half_written_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,x\n10,1\n20,2\n30,3\n40")
    truncate_csv(path, 20)
    assert path.read_text() == "step,x\n10,1\n20,2\n"
    path.write_text("step,x\n10,1\n2")
    truncate_csv(path, 20)
    assert path.read_text() == "step,x\n10,1\n"
    path.write_text("step,x\n10,1\n15\n,3\n")
    truncate_csv(path, 20)
    assert path.read_text() == "step,x\n10,1\n"


def test_cutting_back_nothing(tmp_path):
    truncate_csv(tmp_path / "none.csv", 5)
    assert not (tmp_path / "none.csv").exists()
    (tmp_path / "empty.csv").write_text("")
    truncate_csv(tmp_path / "empty.csv", 5)
    assert read_csv(tmp_path / "empty.csv") == {}


def test_a_full_disk_is_told_in_one_line(tmp_path):
    (tmp_path / "a.csv").symlink_to("/dev/full")
    logger = CsvLogger(tmp_path / "a.csv", ("step",))
    with pytest.raises(RelaxRLError, match="No space left on device"):
        logger.log({"step": 1})
    with pytest.raises(RelaxRLError, match="No space left on device"):
        logger.close()


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_names_of_the_columns_and_is_gone_on_with(tmp_path):
    first = TensorBoardLogger(tmp_path, settings={"gamma": 0.9})
    for step in (10, 20, 30):
        first.log({"step": step, "return_mean": float(step), "losses/value": 1.0, "seconds": math.nan})
    first.log({"step": 20, "return_mean": 5.0}, group="evaluation")
    first.close()
    time.sleep(1.0)  # files of one second are read in the order of a counter in their names, as text: 10 before 9
    second = TensorBoardLogger(tmp_path, from_step=21)
    second.log({"step": 25, "return_mean": -1.0})
    second.close()
    assert scalars(tmp_path) == {
        "return_mean": [(10, 10.0), (20, 20.0), (25, -1.0)],
        "evaluation/return_mean": [(20, 5.0)],
        "losses/value": [(10, 1.0), (20, 1.0)],
    }


def hparams_of(folder):
    """What TensorBoard's plug-in finds: settings, the metrics it shows, and how many sessions have ended."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.PluginTagToContent("hparams")
    content = {tag: HParamsPluginData.FromString(data) for tag, data in found.items()}
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
    metrics = content["_hparams_/experiment"].experiment.metric_infos
    named = {name: getattr(value, value.WhichOneof("kind")) for name, value in settings.items()}
    return named, {metric.name.tag for metric in metrics}, "_hparams_/session_end_info" in content


def test_settings_and_the_outcome_stand_under_hparams_in_the_same_file(tmp_path):
    settings = {"gamma": 0.9, "seed": 3, "squash": True, "hidden": (64, 64), "clip_range": math.inf, "run_dir": None}
    logger = TensorBoardLogger(tmp_path, settings=settings, outcome="return_mean", best=2.0)
    for step, value in ((10, math.nan), (20, 5.0), (30, 4.0)):
        logger.log({"step": step, "return_mean": value})
    logger.log({"step": 30, "return_mean": 9.0}, group="evaluation")
    logger.close()
    (events,) = tmp_path.iterdir()
    assert events.name.startswith("events.out.tfevents.")
    named, metrics, ended = hparams_of(tmp_path)
    assert named == {
        "gamma": 0.9,
        "seed": 3.0,
        "squash": True,
        "hidden": "(64, 64)",
        "clip_range": "inf",
        "run_dir": "None",
    }
    assert metrics == {"final/return_mean", "best/return_mean"} and ended
    found = scalars(tmp_path)
    assert found["final/return_mean"] == [(30, 4.0)] and found["best/return_mean"] == [(30, 5.0)]


def test_the_best_of_an_earlier_part_of_the_run_counts(tmp_path):
    for number, best, expected in ((1, 7.0, 7.0), (2, math.nan, 4.0)):
        logger = TensorBoardLogger(tmp_path / str(number), from_step=20, outcome="return_mean", best=best)
        logger.log({"step": 30, "return_mean": 4.0})
        logger.close()
        assert scalars(tmp_path / str(number))["best/return_mean"] == [(30, expected)]


def test_metrics_are_averaged_over_updates():
    history = [
        {"a": 1.0, "b": 2.0, "c": math.nan},
        {"a": 3.0, "b": 4.0, "c": 5.0, "d": 1.0},
    ]
    assert mean_metrics(history) == {"a": 2.0, "b": 3.0, "c": 5.0, "d": 1.0}
    assert mean_metrics([]) == {}
    assert math.isnan(mean_metrics([{"a": math.nan}])["a"])


@pytest.mark.parametrize(
    "error", [TypeError("Descriptors cannot be created directly.\nIf this call"), ImportError("no")]
)
def test_tensorboard_that_cannot_be_imported_can_be_left_out(tmp_path, monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torch.utils.tensorboard":
                raise error

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RelaxRLError, match=rf"{type(error).__name__}: .*; leave it out: --no-tensorboard") as caught:
        TensorBoardLogger(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_that_csv_itself_refuses_are_left_out(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"step,x\n1,2\n2,\r3\n3," + b"9" * 200_000 + b"\n4,5\n")
    with pytest.warns(UserWarning, match="holds no numbers in line 3, 4: left out"):
        assert read_csv(path) == {"step": [1.0, 4.0], "x": [2.0, 5.0]}
    path.write_bytes(b"a" * 200_000 + b",b\n1,2\n")
    with pytest.warns(UserWarning, match="left out"):
        assert read_csv(path) == {}


def test_a_table_that_was_cut_off_within_its_first_line_is_begun_anew(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,re")
    logger = CsvLogger(path, ("step", "x"))
    logger.log({"step": 1, "x": 2.0})
    logger.close()
    assert path.read_text() == "step,x\n1,2\n"
