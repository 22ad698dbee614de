"""The comparison with published code: what it says without the peers, and the published algorithm that needs none of them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import library_peers
from benchmarks.peer_code import PEERS, load
from benchmarks.peer_gradients import OURS, Contestant, contestants, exact
from relax_rl.distributions import PlackettLuce
from tests.estimator_cases import seeded


@pytest.mark.parametrize("k", [1, 3, 5])
def test_z_given_an_order_is_the_published_recursion(k: int) -> None:
    """Gadetsky et al. (2020), one item after the other: quantiles of a Gumbel truncated at the one before, of the same noise."""
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0, -0.4], dtype=torch.float64)
    dist = PlackettLuce(logits.expand(50, -1), k)
    noise = dist.sample_noise(seeded(1)).double()
    order = torch.rand(50, 5, generator=seeded(2)).argsort(-1)
    found = dist.relax_given(order[:, :k], noise)
    log_p = logits.log_softmax(-1).tolist()
    for row in range(50):
        left, bound = list(range(5)), math.inf
        for item in order[row, :k].tolist():
            total = math.log(sum(math.exp(log_p[i]) for i in left))
            bound = truncated(total, bound, float(noise[row, item]))
            left.remove(item)
            assert float(found[row, item]) == pytest.approx(bound, abs=1e-9)
        for item in left:
            expected = truncated(log_p[item], bound, float(noise[row, item]))
            assert float(found[row, item]) == pytest.approx(expected, abs=1e-9)


def truncated(location: float, bound: float, noise: float) -> float:
    """A Gumbel at a location, given that it is below a bound: F(z) = u F(bound), with u the quantile of the noise."""
    log_u = -math.exp(-noise)
    log_below = 0.0 if bound == math.inf else -math.exp(location - bound)
    return location - math.log(-(log_u + log_below))


def test_absent_peers_are_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers, about = load(tmp_path)
    checkouts = [name for name, (folder, _) in PEERS.items() if folder is not None]
    assert about.keys() == PEERS.keys() and not set(checkouts) & peers.keys()
    for name in checkouts:
        assert about[name] == f"left out, no checkout {name} in {tmp_path}"
    monkeypatch.setattr(library_peers, "RESULTS", tmp_path)
    monkeypatch.setattr(library_peers, "CALL", 50)
    monkeypatch.setattr(library_peers, "load", lambda root: ({}, about))
    monkeypatch.setattr(library_peers, "contestants", lambda peers: [c for c in contestants({}) if c.problem == "bits"])
    for words in (["--rows", "500"], ["--speed", "--rounds", "1", "--turn", "0.001"]):
        monkeypatch.setattr(sys, "argv", ["library_peers", *words])
        library_peers.main()
    kept = json.loads((tmp_path / "library_peers.json").read_text())
    assert {row["estimator"] for row in kept["gradients"]} == {call["estimator"] for call in kept["speed"]["calls"]}
    text = (tmp_path / "library_peers.md").read_text()
    assert text in capsys.readouterr().out and "| bits | arm | relax_rl |" in text and "| subsets | left out, " in text


def test_a_bias_is_found_and_named() -> None:
    def of(who: str, factor: float) -> Contestant:
        target = exact("bits")
        return Contestant(
            problem="bits",
            estimator="arm",
            who=who,
            evaluations=2,
            draw=lambda rows: factor * target + 0.1 * torch.randn(rows, 3),
        )

    rows: list[dict[str, Any]] = library_peers.gradients([of(OURS, 1.0), of("peer", 1.5)], 10_000)
    text = library_peers.report({"peers": {}, "gradients": rows})
    own, peer = (line for line in text.splitlines() if line.startswith("| bits"))
    assert "biased" not in own and "**biased**" in peer and rows[1]["bias"] == pytest.approx(0.5, abs=0.05)
    assert peer.endswith("| 1 |") and rows[1]["variance"] == pytest.approx(0.03, rel=0.1)
