"""Training on the toy problem: every estimator for all seeds at once, and its variance by quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from relax_rl.errors import SettingsError
from relax_rl.estimators import describe, enumerated, make_estimator
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.contestants import APPLICABLE, Contestant, check_estimators, make_contestant
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.quadrature import exact_variance, lowest_rebar_variance, uniform_nodes
from relax_rl.experiments.toy.seed_noise import SeedNoise
from relax_rl.experiments.toy.training import median, train

BIT, THREE = Problem(0.45), Problem(0.45, 3)
UNBIASED = [name for name in APPLICABLE if describe(name).bias.startswith("none")]
LEARNING = ["nvil", "muprop", "simple-muprop", "rebar", "relax", "dlax", "marginal"]


def small(**settings) -> ToyConfig:
    return ToyConfig(**{"steps": 30, "seeds": 3, "log_interval": 10, "draws": 50, "target": 0.45, **settings})


def taught(name: str, problem: Problem, theta: float, coupling: str = "coupled"):
    """A contestant that has learned a little, and where it stands."""
    config = small(steps=40, seeds=2, coupling=coupling)
    run = train(name, problem, config, theta=theta)
    return run.contestant, run.params


def cases(problem: Problem, names):
    return [name for name in names if problem.kind in describe(name).outcomes]


@pytest.mark.parametrize(
    ("problem", "name"),
    [(problem, name) for problem in (BIT, THREE) for name in cases(problem, UNBIASED)],
    ids=lambda x: x if isinstance(x, str) else x.kind,
)
def test_what_is_called_unbiased_is(problem, name):
    contestant, params = taught(name, problem, 0.3)
    exact = enumerated(problem.f, problem.distribution(params, SeedNoise((), problem.kind))).grad
    many = problem.distribution(params.expand(20_000, *params.shape), SeedNoise((5, 6), problem.kind))
    if name == "arms":  # asks row by row
        many = problem.distribution(params.expand(4_000, *params.shape), SeedNoise((5, 6), problem.kind))
    draws = contestant.estimate(many).grad.detach()
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("name", cases(BIT, APPLICABLE))
def test_a_seed_goes_its_way_whoever_is_beside_it(name):
    together = train(name, BIT, small(seed=4))
    alone = train(name, BIT, small(seed=5, seeds=1))
    torch.testing.assert_close(together.theta[:, 1:2], alone.theta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.variance[:, 1:2], alone.variance, rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize("name", ["reinforce", "nvil", "disarm", "rebar", "relax", "gumbel-rao", "marginal"])
def test_a_seed_of_several_outcomes_goes_its_way_too(name):
    together = train(name, THREE, small(seed=4, outcomes=3))
    alone = train(name, THREE, small(seed=5, seeds=1, outcomes=3))
    torch.testing.assert_close(together.theta[:, 1:2], alone.theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["relax", "nvil"])
def test_measuring_changes_nothing(name):
    often, rarely = train(name, BIT, small(log_interval=3, draws=70)), train(name, BIT, small(log_interval=30))
    assert torch.equal(often.params, rarely.params)
    assert all(torch.equal(a, b) for a, b in zip(often.contestant.phi, rarely.contestant.phi, strict=True))


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_learned_lowers_the_variance_at_a_fixed_theta(name):
    run = train(name, Problem(0.45), small(steps=400, log_interval=400, surrogate_lr=0.02), theta=0.25)
    assert run.theta.eq(run.theta[0]).all() and run.theta[0, 0].item() == pytest.approx(0.25)
    assert run.exact is not None
    assert (run.exact[-1] < 0.97 * run.exact[0]).all()


def test_relax_descends_where_reinforce_wanders():
    config = ToyConfig(steps=1500, seeds=4, log_interval=500, draws=200)
    relax, reinforce = (train(name, Problem(), config) for name in ("relax", "reinforce"))
    assert median(relax.log_variance[-1]) < median(reinforce.log_variance[-1]) - 4
    assert (relax.theta[-1] < 0.45).all()


def test_the_first_step_near_the_optimum_is_recorded():
    # The loss is within 1e-4 of the optimum where theta is below 1e-4 / 0.6.
    far = train("enumerated", Problem(0.2), small(steps=60, lr=2.0))
    gap = far.expected_loss - Problem(0.2).optimum
    assert (gap[0] > 1e-4).all()
    solved = far.solved.tolist()
    assert len(set(solved)) == 1 and 0 < solved[0] < 60
    measured = [step for step, row in zip(far.steps, gap, strict=True) if (row <= 1e-4).all()]
    assert solved[0] <= measured[0] < solved[0] + 10
    assert train("enumerated", Problem(), small()).solved.tolist() == [-1, -1, -1]


def test_reinforce_varies_as_the_formula_says():
    theta = torch.tensor([0.1, 0.5, 0.93], dtype=torch.float64)
    contestant = make_contestant("reinforce", BIT, range(3))
    exact = exact_variance(contestant, BIT, torch.logit(theta).unsqueeze(-1))
    first, second = BIT.values.tolist()
    torch.testing.assert_close(exact, theta * (1 - theta) * ((1 - theta) * second + theta * first) ** 2)


@pytest.mark.parametrize("theta", [0.03, 0.3, 0.8])
@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        (name, "coupled")
        for name in cases(BIT, APPLICABLE)
        if name not in ("rloo", "arms", "double-cv", "rodeo", "gumbel-rao")
    ]
    + [("relax", "independent"), ("rebar", "independent")],
)
def test_quadrature_agrees_with_sampling(name, coupling, theta):
    contestant, params = taught(name, BIT, theta, coupling)
    exact = exact_variance(contestant, BIT, params)
    assert exact is not None
    many = BIT.distribution(params.expand(40_000, 2, 1), SeedNoise((5, 6), "bits"))
    draws = contestant.estimate(many).grad.detach().squeeze(-1)
    deviations = (draws - draws.mean(0)).square()
    error = deviations.std(0) / len(draws) ** 0.5
    assert ((deviations.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("name", ["relax", "rebar"])
def test_quadrature_has_converged(name, coupling):
    contestant, params = taught(name, BIT, 0.2, coupling)
    coarse, fine = (exact_variance(contestant, BIT, params, order=order) for order in (32, 128))
    torch.testing.assert_close(coarse, fine, rtol=1e-3, atol=0)


def test_there_is_no_quadrature_over_many_dimensions():
    for name, problem in (("rloo", BIT), ("reinforce", THREE)):
        assert exact_variance(make_contestant(name, problem, range(1)), problem, problem.params_at(0.3, 1)) is None


def test_quadrature_weights_sum_to_one():
    u, weight = uniform_nodes(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), 8)
    torch.testing.assert_close(weight.sum(0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((weight * u**3).sum(0), torch.full((3,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("theta", [0.1, 0.6])
def test_a_constant_surrogate_leaves_no_variance(coupling, theta):
    contestant = make_contestant("relax", BIT, range(1), coupling=coupling)
    *_, last_bias, scale, _ = contestant.phi
    first, second = BIT.values.tolist()
    with torch.no_grad():
        contestant.phi[2].zero_()
        last_bias.fill_((1 - theta) * second + theta * first)
        scale.fill_(1.0)
    assert float(exact_variance(contestant, BIT, BIT.params_at(theta, 1))) < 1e-25


@pytest.mark.parametrize("theta", [0.1, 0.6])
def test_dlax_has_a_surrogate_without_variance(theta):
    logit = BIT.params_at(theta, 1)
    first, second = BIT.values.tolist()
    constant = (1 - theta) * second + theta * first

    def surrogate(z):
        left, right = theta * constant / torch.sigmoid(logit - z), (1 - theta) * constant / torch.sigmoid(z - logit)
        return torch.where(z > 0, right, left).squeeze(-1)

    estimator = make_estimator("dlax", surrogate=surrogate)
    contestant = Contestant("dlax", lambda dist, **noise: estimator(BIT.f, dist, **noise))
    assert float(exact_variance(contestant, BIT, logit)) < 1e-25


def test_the_floor_of_rebar_is_below_whatever_it_learns():
    contestant, params = taught("rebar", BIT, 0.2)
    floor = lowest_rebar_variance(BIT, 0.2)
    assert floor < exact_variance(contestant, BIT, params).min()
    # At one temperature no eta does better than the closed form.
    eta, log_temperature = contestant.phi
    best = lowest_rebar_variance(BIT, 0.2, temperatures=(0.7,))
    found = []
    for value in torch.linspace(-3, 3, 61):
        with torch.no_grad():
            eta.fill_(value)
            log_temperature.fill_(math.log(0.7))
        found.append(float(exact_variance(contestant, BIT, params)[0]))
    assert best <= min(found) * (1 + 1e-9) and best == pytest.approx(min(found), rel=0.05)


def test_estimators_that_do_not_apply_are_refused():
    check_estimators(cases(BIT, APPLICABLE), BIT)
    check_estimators(cases(THREE, APPLICABLE), THREE)
    with pytest.raises(
        SettingsError, match="'unordered-set' is for one of several categories; with --outcomes 2 there"
    ):
        check_estimators(["unordered-set"], BIT)
    for names, message in (
        (["relaxx"], "unknown estimator 'relaxx'; did you mean relax"),
        (["lax"], "is for continuous outcomes"),
        (["vimco"], "is for a bound of several samples"),
    ):
        with pytest.raises(SettingsError, match=message):
            check_estimators(names, BIT)
    with pytest.raises(SettingsError, match="'arms' is for bits; with --outcomes 3 there are reinforce"):
        check_estimators(["reinforce", "arms"], THREE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.1}, "target is 1.1, expected a number from 0 to 1"),
        ({"target": math.nan}, "target is nan"),
        ({"seeds": 0}, "seeds is 0, expected at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"draws": 1}, "draws is 1, expected at least 2"),
        ({"outcomes": 1}, "outcomes is 1, expected at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"surrogate_lr": math.inf}, "surrogate_lr is inf"),
        ({"fixed_theta": 1.0}, "fixed_theta is 1.0, expected a number between 0 and 1"),
        ({"shown_theta": 0.0}, "shown_theta is 0.0"),
        ({"estimators": ()}, "expected at least one"),
        ({"estimators": ("relax", "relax")}, "expected each of them once"),
        ({"coupling": "tied"}, "expected coupled or independent"),
    ],
)
def test_settings_that_cannot_work_are_told(settings, message):
    with pytest.raises(SettingsError, match=message):
        ToyConfig(**settings)


@pytest.mark.parametrize("theta", [0.499, 1e-2, 1e-3, 1e-4, 1 - 1e-4])
def test_quadrature_is_right_near_the_edges(theta: float) -> None:
    for name in ("rebar", "relax"):
        contestant, params = make_contestant(name, BIT, range(1)), BIT.params_at(theta, 1)
        coarse, fine = exact_variance(contestant, BIT, params), exact_variance(contestant, BIT, params, order=128)
        torch.testing.assert_close(coarse, fine, rtol=1e-9, atol=0)
