"""Names of code of the user's own: what differs is told apart, or it is said that it cannot be; a script is what it is imported by."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from relax_rl.agents import A2C, ActorCritic, NetworkParts
from relax_rl.commands.main import main
from relax_rl.errors import CheckpointError
from relax_rl.networks.torsos import MLP
from relax_rl.settings.naming import name_of, same_thing
from tests.steps import DISCRETE, OBS, assert_same

HERE = "tests.test_naming"


def nets(observations: Any, actions: Any, config: Any, act: str = "tanh", layer: Any = nn.Linear) -> NetworkParts:
    return NetworkParts(*(MLP(observations.shape[0], (4,), act) for _ in range(2)))


class Maker:
    def __init__(self, act: str) -> None:
        self.act = act

    def __call__(self, observations: Any, actions: Any, config: Any) -> NetworkParts:
        return nets(observations, actions, config, self.act)

    make = __call__


def test_names_tell_what_can_be_told() -> None:
    assert name_of(nets) == f"{HERE}:nets" and name_of(Maker) == f"{HERE}:Maker"
    how = partial(nets, layer=nn.Linear, act="relu")
    assert name_of(how) == f"{HERE}:nets(act='relu', layer=torch.nn.modules.linear:Linear)"
    assert name_of(partial(nets, Maker("relu"))) == f"{HERE}:nets(<{HERE}.Maker object>)"
    assert (
        name_of(Maker("relu")) == f"{HERE}:Maker(...)" and name_of(Maker("tanh").make) == f"{HERE}:Maker(...).__call__"
    )


@pytest.mark.parametrize(
    ("saved", "given", "same"),
    [
        ("m:f", "m:f", True),
        ("m:f", "m:g", False),
        ("m:f", "n:f", False),
        ("m:f", None, False),
        (None, None, True),
        ("__main__:f", "pkg.train:f", True),
        ("__main__:f", "pkg.train:g", False),
        ("train:f", "pkg.train:f", True),
        ("pkg.train:f", "train:f", False),
        ("functools:partial", "m:f(act='relu')", True),
        ("functools:partial", "m:f", False),
        ("m:f(act='relu')", "m:f(act='tanh')", False),
        ("m:Maker", "m:Maker(...)", True),
        ("m:Maker.make", "m:Maker(...).make", True),
    ],
)
def test_names_of_earlier_versions_and_of_scripts(saved: str | None, given: str | None, same: bool) -> None:
    assert same_thing(saved, given) is same


def test_another_factory_of_the_same_function_is_refused(tmp_path: Path) -> None:
    agent = A2C(OBS, DISCRETE, networks=partial(nets, act="relu"))
    agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"act='relu'.*, not those of .*act='tanh'"):
        ActorCritic.load(tmp_path / "agent", networks=partial(nets, act="tanh"))
    with pytest.raises(CheckpointError, match="--networks module:name"):
        ActorCritic.load(tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ActorCritic.load(tmp_path / "agent", networks=partial(nets, act="relu"))
        handed_on = pickle.loads(pickle.dumps(again))
    for each in (again, handed_on):
        assert_same(each.state_dict()[0], agent.state_dict()[0])
        assert each.networks_from == agent.networks_from


def test_what_cannot_be_told_apart_is_said(tmp_path: Path) -> None:
    def closed(act: str) -> Any:
        return lambda *spaces: nets(*spaces, act)

    for factory, other in ((closed("relu"), closed("tanh")), (Maker("relu"), Maker("tanh"))):
        A2C(OBS, DISCRETE, networks=factory).save(tmp_path / "agent")
        with pytest.warns(UserWarning, match="a name that others may have, too"):
            ActorCritic.load(tmp_path / "agent", networks=other)


SCRIPT = """
from pathlib import Path
from relax_rl import A2C, TrainConfig, train
from relax_rl.agents import NetworkParts
from relax_rl.networks.torsos import MLP
from relax_rl.settings.fields import with_settings

def networks(observations, actions, config):
    return NetworkParts(*(MLP(observations.shape[0], (4,), "tanh") for _ in range(2)))

if __name__ == "__main__":
    how = {"run_dir": "run", "total_steps": 100, "num_envs": 2, "tensorboard": False, "quiet": True, "estimator": "a2c"}
    train(with_settings(TrainConfig(), how), networks=networks)
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_that_a_script_made_is_used_from_elsewhere(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, "own_script.py").write_text(SCRIPT)
    here = Path(__file__).parents[1]
    subprocess.run([sys.executable, "own_script.py"], cwd=tmp_path, check=True, env={"PYTHONPATH": str(here)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_script", raising=False)
    record = tmp_path / "run" / "config.json"
    assert '"own_script:networks"' in record.read_text()
    if earlier:
        record.write_text(record.read_text().replace("own_script:networks", "__main__:networks"))
    named = ["--networks", "own_script:networks"]
    assert main(["evaluate", "run", "--episodes", "1", *named]) == 0
    assert main(["--resume", "run", "--total-steps", "200", "--quiet", *named]) == 0
