# Copyright 2026 The dpg_robot Authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
import torch.nn.functional as F

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.denoiser import (
    CORRELATION_RIDGE,
    Denoiser,
    FIRST_SPREAD,
    LEAST_SENSITIVITY,
    LEAST_UNSEEN,
)

SIGMAS = (0.1, 0.2, 0.5)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_closed_form_satisfies_bayes_and_tweedie_at_the_denoised_action(linear_gaussian, sigma):
    world, mu = linear_gaussian(sigma=sigma), 0.15
    denoised = torch.linspace(-1, 1, 9).double().requires_grad_()
    noised = mu + (denoised - mu) * (world.tau ** 2 + sigma ** 2) / world.tau ** 2
    outcome = torch.linspace(0.8, -0.4, 9).double()

    def gradient(of, at):
        return torch.autograd.grad(of.sum(), at, retain_graph=True)[0]

    # p(a~) and p(a~, o) from the covariance of a + sigma eta and a + nu w.
    shared = world.tau ** 2
    covariance = [[shared + sigma ** 2, shared], [shared, shared + world.nu ** 2]]
    joint = MultivariateNormal(torch.tensor([mu, mu], dtype=torch.float64),
                               torch.tensor(covariance, dtype=torch.float64))
    log_joint = joint.log_prob(torch.stack([noised, outcome], -1))
    log_marginal = Normal(mu, covariance[0][0] ** 0.5).log_prob(noised)

    at = noised.detach().requires_grad_()
    null, given = world.denoise(at, mu), world.denoise_given(at, mu, outcome)
    torch.testing.assert_close(null, denoised)
    # Tweedie: first order, with and without the outcome, and second order.
    torch.testing.assert_close((null - at) / sigma ** 2, gradient(log_marginal, noised))
    torch.testing.assert_close((given - at) / sigma ** 2, gradient(log_joint, noised))
    variance = sigma ** 2 * gradient(null, at)
    torch.testing.assert_close(variance, torch.full_like(at, world.posterior_var))
    score = world.score(null, outcome)
    torch.testing.assert_close(score, (given - null) / variance)
    torch.testing.assert_close(score, gradient(log_joint - log_marginal, denoised))
    # Which is the score of o | a_hat ~ N(a_hat, Sigma + nu^2).
    log_outcome = Normal(denoised, world.outcome_var ** 0.5).log_prob(outcome)
    torch.testing.assert_close(score, gradient(log_outcome, denoised))


@pytest.mark.parametrize('ratio', [1.0, 3.0])
@pytest.mark.parametrize('sigma', SIGMAS)
def test_exact_answers_give_the_exact_score(linear_gaussian, make_exact, sigma, ratio):
    world, num = linear_gaussian(sigma=sigma), 20_000
    mu = torch.randn(num, 2) * 0.3
    action, outcome = world.draw(num, mu, 2)
    denoiser = Denoiser(2, 2, 2, (4,), sigma, ratio)
    make_exact(denoiser, world, 2, 2)
    got = denoiser(action, mu, outcome)
    noised, each = denoiser.prior.seen, world._replace(sigma=denoiser.prior.sigma)

    # The noise has the size that the network was told; to four standard errors.
    added = (noised - action) / each.sigma
    assert added.std().item() == pytest.approx(1.0, abs=4 / (2 * 2 * num) ** 0.5)
    level = torch.log(each.sigma / sigma)
    assert level.abs().max() <= math.log(ratio) + 1e-6
    assert level.var().item() == pytest.approx(math.log(ratio) ** 2 / 3, rel=0.05)
    close = {'rtol': 1e-3, 'atol': 1e-3}
    at = world.denoise(noised, mu) if ratio == 1 else each.denoise(noised, mu)
    torch.testing.assert_close(got.action, at, **close)
    torch.testing.assert_close(got.score, each.score(at, outcome), **close)
    torch.testing.assert_close(got.disturbance, outcome - at, **close)
    # a_hat ~ N(mu, k tau^2)
    surprise = (at - mu) / (each.shrink * world.tau ** 2)
    torch.testing.assert_close(got.surprise, surprise, **close)
    torch.testing.assert_close(got.spread, torch.full((2,), world.tau))
    assert got.calibration.item() == pytest.approx(1.0, abs=0.05)


def test_the_answer_with_the_outcome_is_the_one_without_and_what_that_changes():
    denoiser = Denoiser(2, 3, 4, (8,), 0.2)
    noised, sigma, obs, outcome = (torch.randn(5, n) for n in (3, 1, 2, 4))
    sigma = sigma.exp()
    told, null, *_ = denoiser.answers(noised, sigma, obs, outcome)
    others = denoiser.answers(noised, sigma, obs, -outcome)
    assert torch.equal(null, others[1]) and not torch.equal(told, others[0])
    denoiser.prior.forward = lambda x: torch.tensor(
        [0.7, 0.0, 0.0, 0.3, 1.0]).repeat_interleave(3).expand(1, 5, 15)
    denoiser.inverse.forward = lambda x: torch.full((1, 5, 3), 2.0)
    told, null, *_ = denoiser.answers(noised, sigma, obs, outcome)
    expected = 0.7 * sigma / (sigma.square() + 0.2 ** 2).sqrt()
    torch.testing.assert_close(null, expected.expand(5, 3))
    way = 2.0 - 0.3 - (noised + sigma * expected)
    part = (1 + 2 * 1.0) * sigma.square() / (sigma.square() + 0.2 ** 2)
    torch.testing.assert_close(told, expected + part * way / sigma)


def test_what_a_scalar_outcome_changes_is_a_sum_of_products():
    denoiser = Denoiser(2, 3, 1, (8,), 0.2)
    noised, sigma, obs, outcome = (torch.randn(5, n) for n in (3, 1, 2, 1))
    sigma = sigma.exp()
    answers = torch.tensor([0.0, 0.0, 0.0, 0.3, 1.0, 0.4, -0.6]).repeat_interleave(3)
    denoiser.prior.forward = lambda x: answers.expand(1, 5, 21)
    denoiser.inverse.forward = lambda x: torch.tensor(
        [2.0, 5.0, 7.0]).repeat_interleave(3).expand(1, 5, 9)
    told, null, *_ = denoiser.answers(noised, sigma, obs, outcome)
    change = 3.0 * (2.0 - 0.3 - noised) + 0.4 * 5.0 - 0.6 * 7.0
    torch.testing.assert_close(told - null, change * sigma / (sigma.square() + 0.2 ** 2))


@pytest.mark.parametrize('sigma', SIGMAS)
def test_explained_share_of_the_posterior_variance(linear_gaussian, make_exact, sigma):
    world = linear_gaussian(sigma=sigma)
    denoiser = Denoiser(1, 1, 1, (4,), sigma)
    make_exact(denoiser, world, 1, 1)
    action, outcome = world.draw(100_000)
    explained = denoiser(action, torch.zeros_like(action), outcome).explained
    expected = world.posterior_var / world.outcome_var  # 1 - Var[a | a~, o] / Var[a | a~]
    assert explained.item() == pytest.approx(expected, rel=0.03)


def test_calibration_is_half_where_the_score_is_twice_too_large(linear_gaussian, make_exact):
    world = linear_gaussian()
    denoiser = Denoiser(1, 1, 1, (4,), world.sigma)
    make_exact(denoiser, world, 1, 1)
    exact = denoiser.answers

    def doubled(*question):
        given, null, *rest = exact(*question)
        return 2 * given - null, null, *rest
    denoiser.answers = doubled
    action, outcome = world.draw(100_000)
    calibration = denoiser(action, torch.zeros_like(action), outcome).calibration
    assert calibration.item() == pytest.approx(0.5, rel=0.05)


def test_spread_is_the_geometric_mean_over_the_batch():
    denoiser, log_spread = Denoiser(1, 1, 1, (4,), 0.2), torch.tensor([[1.5], [-0.5]])
    # What is observed is the log of the spread, the second output.
    denoiser.prior.forward = lambda x: (x[:, 1:2] * torch.eye(7)[1])[None]
    zeros = torch.zeros(2, 1)
    got = denoiser(zeros, log_spread, zeros).spread
    torch.testing.assert_close(got, torch.tensor([FIRST_SPREAD * math.exp(0.5)]))


def test_loss_is_least_squares_and_the_likelihoods_of_spread_and_fisher(
        linear_gaussian, make_exact):
    world = linear_gaussian()
    denoiser = Denoiser(1, 1, 1, (4,), world.sigma)
    make_exact(denoiser, world, 1, 1)
    action, outcome = world.draw(100_000)
    loss = denoiser(action, torch.zeros_like(action), outcome).loss.item()
    given = 1 / (1 / world.posterior_var + world.nu ** -2)
    squares = 0.5 * (world.posterior_var + given) / world.sigma ** 2
    # Each likelihood: E[x^2] / v + log v, with the right v.
    likelihood = 2 + math.log(world.posterior_var) + math.log(world.fisher)
    assert loss == pytest.approx(squares + 0.05 * likelihood, rel=0.01)


@pytest.mark.parametrize('level', [0.01, 0.1, 1.0])
def test_an_error_of_the_network_does_not_blow_up_at_small_noise(
        linear_gaussian, make_exact, level):
    world, error = linear_gaussian(), 0.1
    denoiser = Denoiser(1, 1, 1, (4,), world.sigma)
    make_exact(denoiser, world, 1, 1)
    action, outcome = (x.double() for x in world.draw(100))
    sigma = torch.full_like(action, level * world.sigma)
    here = world._replace(sigma=level * world.sigma)
    prior, scores = denoiser.prior, []
    for prior.error, prior.gain_error in ((0.0, 0.0), (error, 0.0), (0.0, error)):
        given, null, spread, _ = denoiser.answers(action, sigma, 0 * action, outcome)
        scores.append(sigma * (given - null) * (sigma ** -2 + spread ** -2))
    expected = torch.full_like(sigma, -error / here.outcome_var)
    torch.testing.assert_close(scores[1] - scores[0], expected, rtol=1e-3, atol=0.0)
    innovation = outcome - here.denoise(action, 0 * action)
    # The posterior variance goes as level^2.
    expected = 2 * error * innovation * level ** 2 / (1 + level ** 2) / here.posterior_var
    torch.testing.assert_close(scores[2] - scores[0], expected, rtol=1e-3, atol=1e-9)


class Shaken:
    """The linear-Gaussian world with mu = 0, whose noise shakes both elements together.

    ``o = a + nu w`` with correlated w, so ``o | a_hat ~ N(a_hat, C)``, ``C = Sigma I + nu^2 R``,
    ``a_hat_o - a_hat = Sigma C^-1 (o - a_hat)`` and ``F = C^-1``. It is a perfect denoiser's
    network, too, but for the errors of its fisher.
    """

    noise = torch.tensor([[1.0, 0.9], [0.9, 1.0]])

    def __init__(self, world, fisher_errors=(1.0, 1.0)):
        self.world = world
        self.covariance = world.posterior_var * torch.eye(2) + world.nu ** 2 * self.noise
        self.fisher = torch.linalg.inv(self.covariance)
        self.fisher_errors = torch.tensor(fisher_errors)

    def draw(self, num):
        action, _ = self.world.draw(num, action_dim=2)
        shake = torch.randn(num, 2) @ torch.linalg.cholesky(self.noise).T
        return action, torch.zeros(num, 1), action + self.world.nu * shake

    def prior(self, x):
        noised = x[:, :2]
        denoised = self.world.denoise(noised, 0.0)
        null = (denoised - noised) * 2 ** 0.5 / self.world.sigma
        spread = torch.full_like(noised, math.log(self.world.tau / FIRST_SPREAD))
        fisher = torch.log(self.fisher.diagonal() * self.fisher_errors * self.world.sigma ** 2)
        # Half of the way to twice the shift.
        offset = 2 * self.shift(denoised) - denoised
        return torch.cat([null, spread, fisher.expand_as(noised), offset, 0 * noised], -1)[None]

    def inverse(self, x):
        return 2 * self.shift(x[None, :, 1:])

    def shift(self, outcome):
        return self.world.posterior_var * outcome @ self.fisher

    def denoiser(self):
        denoiser = Denoiser(1, 2, 2, (4,), self.world.sigma)
        denoiser.prior.forward, denoiser.inverse.forward = self.prior, self.inverse
        for _ in range(600):
            denoiser(*self.draw(512))
        return denoiser.eval()


@pytest.mark.parametrize('fisher_errors', [(1.0, 1.0), (2.0, 0.5)])
def test_disturbance_undoes_the_correlation_of_scores(linear_gaussian, fisher_errors):
    shaken = Shaken(linear_gaussian(nu=0.3), fisher_errors)
    denoiser = shaken.denoiser()
    size = shaken.fisher.diagonal() ** -0.5
    correlation = size[:, None] * shaken.fisher * size
    assert correlation[0, 1] < -0.6
    # What one average over all data holds includes what fisher has wrong.
    size = shaken.fisher_errors ** -0.5
    torch.testing.assert_close(denoiser.correlation, size[:, None] * correlation * size,
                               rtol=0.03, atol=0.03)
    action, obs, outcome = shaken.draw(200_000)
    got = denoiser(action, obs, outcome)
    torch.testing.assert_close(got.score, (outcome - got.action) @ shaken.fisher,
                               rtol=1e-3, atol=1e-3)
    moment = got.disturbance.T @ got.score / len(action)
    # The ridge may take a little from the direction that the outcome hardly tells.
    taken = CORRELATION_RIDGE / torch.linalg.eigvalsh(denoiser.correlation)[0]
    assert taken < 0.05
    torch.testing.assert_close(moment, torch.eye(2), rtol=0, atol=taken.item() + 0.02)
    if fisher_errors == (1.0, 1.0):
        by_element = (got.score / shaken.fisher.diagonal()).T @ got.score / len(action)
        assert by_element[0, 1] < -0.6
        error = got.disturbance - (outcome - got.action)
        assert rms(error) < 0.05 * rms(got.disturbance)


def test_elements_that_the_outcome_cannot_tell_apart_share_the_disturbance():
    denoiser = Denoiser(1, 2, 2, (4,), 0.2).eval()
    denoiser.correlation.fill_(1.0)
    got = denoiser._disturbance(torch.tensor([[3.0, 3.0]]), torch.tensor([[2.0, 2.0]]))
    # [[1, 0.99], [0.99, 1]] doubles (1, 1), nearly; without the ridge it would be singular.
    expected = 3.0 / 2.0 / (2.0 - CORRELATION_RIDGE) / 2.0
    torch.testing.assert_close(got, torch.full((1, 2), expected))


def test_correlation_follows_in_training_only(linear_gaussian):
    shaken = Shaken(linear_gaussian(nu=0.3))
    denoiser = shaken.denoiser()
    before = denoiser.correlation.clone()
    denoiser(*shaken.draw(512))
    assert torch.equal(denoiser.correlation, before)
    denoiser.train()(*shaken.draw(512))
    assert not torch.equal(denoiser.correlation, before)
    assert (denoiser.correlation - before).abs().max() < 0.02  # slowly
    assert 'correlation' in denoiser.state_dict()


def test_sensitivity_is_the_size_of_the_score_beside_the_largest(linear_gaussian):
    shaken = Shaken(linear_gaussian(nu=0.3))
    denoiser = shaken.denoiser()
    before = denoiser.power.clone()
    denoiser(*shaken.draw(512))
    assert torch.equal(denoiser.power, before)
    action, *rest = shaken.draw(512)
    got = denoiser.train()(action, *rest)
    predicted = (action - got.action) / shaken.world.posterior_var
    power = got.score * predicted
    torch.testing.assert_close(
        denoiser.power, 0.99 * before + 0.01 * power.mean(0), rtol=1e-4, atol=1e-4)
    assert 'power' in denoiser.state_dict()
    denoiser.power.copy_(torch.tensor([0.09, 4.0]))
    assert denoiser.sensitivity.tolist() == pytest.approx([0.15, 1.0])
    denoiser.power.copy_(torch.tensor([-0.1, 4.0]))  # an estimate of nothing
    assert denoiser.sensitivity.tolist() == pytest.approx([LEAST_SENSITIVITY, 1.0])
    denoiser.power.copy_(torch.tensor([-0.1, -0.2]))
    assert denoiser.sensitivity.tolist() == [1.0, 1.0]


def test_what_may_do_nothing_is_told_from_what_does_something(linear_gaussian):
    denoiser = Shaken(linear_gaussian(nu=0.3)).denoiser()
    assert denoiser.certainty.tolist() == [1.0, 1.0]

    def tell(first, second, num=4000):
        """Let so many transitions tell these means, each with a deviation of 1."""
        denoiser.num_unseen.zero_()
        both = torch.tensor([[first + 1, second + 1], [first - 1, second - 1]])
        denoiser.follow_unseen(both.repeat(num // 2, 1), num, num)
        torch.testing.assert_close(denoiser.unseen_power, torch.tensor([first, second]))
        return denoiser.certainty.tolist()
    for second in (0.12, 0.4):
        sure, unsure = (1 - (9 / 4000 + 0.1 ** 2) / power ** 2 for power in (2.0, second))
        assert tell(2.0, second) == pytest.approx([1.0, unsure / sure], rel=1e-3)
    assert tell(2.0, 0.09, 400_000) == [1.0, 0.0]  # negligible, for sure
    assert tell(2.0, 0.04) == tell(2.0, -0.1) == tell(2.0, -2.0) == [1.0, 0.0]
    assert tell(0.04, 0.1) == pytest.approx([0.0, 1.0])
    assert tell(0.04, -2.0) == [1.0, 1.0]  # as long as nothing is certain
    assert tell(2.0, 0.0, LEAST_UNSEEN - 2) == [1.0, 1.0]  # or too little is known
    assert tell(2.0, 0.0, LEAST_UNSEEN) == [1.0, 0.0]
    assert {'unseen_power', 'unseen_square', 'num_unseen'} <= set(denoiser.state_dict())


def test_certainty_forgets_what_is_long_ago(linear_gaussian):
    denoiser = Shaken(linear_gaussian(nu=0.3)).denoiser()
    told = torch.randn(50, 10, 2)
    for number, power in enumerate(told):
        denoiser.follow_unseen(power, 10, 100)
        if number < 10:
            torch.testing.assert_close(
                denoiser.unseen_power, told[:number + 1].flatten(0, 1).mean(0))
    assert denoiser.num_unseen == 100
    expected = told[:10].flatten(0, 1).mean(0)
    for power in told[10:]:
        expected = expected + 0.1 * (power.mean(0) - expected)
    torch.testing.assert_close(denoiser.unseen_power, expected)


def test_errors_of_the_score_do_not_count_as_its_power(linear_gaussian):
    shaken = Shaken(linear_gaussian(nu=0.3))
    denoiser = shaken.denoiser().train()
    error = torch.tensor([0.0, 0.6])

    exact = denoiser.answers

    def erring(*question):
        # One error of the answer without the outcome, and one of what the outcome changes.
        given, null, *rest = exact(*question)
        change = given - null + error * torch.randn_like(null)
        null = null + error * torch.randn_like(null)
        return null + change, null, *rest
    denoiser.answers = erring
    denoiser.moment_rate = 1.0
    score = denoiser(*shaken.draw(400_000)).score
    fisher = shaken.fisher.diagonal()
    assert score[:, 1].square().mean() > 1.2 * fisher[1]
    torch.testing.assert_close(denoiser.power, fisher, rtol=0.03, atol=0.0)


class Uneven:
    """The world above with mu = s / 2 and an exploration that depends on s, for training."""

    nu, sigma, num_steps, batch_size = 0.25, 0.2, 2500, 512

    def world(self, linear_gaussian, obs, sigma=None):
        tau = 0.25 * torch.exp(0.5 * obs)
        return linear_gaussian(tau=tau, sigma=sigma or self.sigma, nu=self.nu)

    def draw(self, linear_gaussian, num):
        obs = 2 * torch.rand(num, 1) - 1
        return obs, *self.world(linear_gaussian, obs).draw(num, obs / 2)

    def train(self, linear_gaussian, ratio, width):
        torch.manual_seed(1)
        denoiser = Denoiser(1, 1, width, (64,), self.sigma, ratio)
        optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for _ in range(self.num_steps):
            obs, action, outcome = self.draw(linear_gaussian, self.batch_size)
            optimizer.zero_grad()
            denoiser(action, obs, F.pad(outcome, (0, width - 1))).loss.backward()
            optimizer.step()
            schedule.step()
        return denoiser


@pytest.fixture(scope='module')
def trained():
    """Return denoisers trained with one noise level or many, made on demand.

    ``width`` is that of the outcome, of which all but the first element is nought: 1 for several
    products of outcome and action, 2 for one.
    """
    made = {}

    def get(linear_gaussian, ratio, width=1):
        if (ratio, width) not in made:
            made[ratio, width] = Uneven().train(linear_gaussian, ratio, width)
        return made[ratio, width]

    return get


def answers(denoiser, linear_gaussian, sigma, width=1, num=20_000):
    """Return a trained denoiser's answers, and the closed form's."""
    obs, action, outcome = Uneven().draw(linear_gaussian, num)
    noised = action + sigma * torch.randn(num, 1)
    with torch.no_grad():
        given, null, spread, fisher = denoiser.answers(
            noised, torch.full((num, 1), sigma), obs, F.pad(outcome, (0, width - 1)))
    world = Uneven().world(linear_gaussian, obs, sigma)
    return world, obs, noised, outcome, given, null, spread, fisher


def rms(x):
    return x.square().mean().sqrt().item()


# One noise level, then many, and the error allowed relative to what is learned: the score is
# harder to learn far from the middle of the range, where it has to be told from more noise.
CASES = [(1.0, 0.2, 0.1), (3.0, 0.07, 0.3), (3.0, 0.2, 0.15), (3.0, 0.5, 0.35)]


@pytest.mark.parametrize('width', [1, 2])
@pytest.mark.parametrize('ratio, sigma, tolerance', CASES)
def test_trained_denoiser_reproduces_the_closed_form(
        linear_gaussian, trained, ratio, sigma, tolerance, width):
    world, obs, noised, outcome, given, null, _, _ = answers(
        trained(linear_gaussian, ratio, width), linear_gaussian, sigma, width)
    at = world.denoise(noised, obs / 2)
    # Tweedie: the residual over sigma is sigma times the score of p(a~ | s).
    density = Normal(obs / 2, (world.tau ** 2 + sigma ** 2) ** 0.5)
    leaf = noised.clone().requires_grad_()
    exact = sigma * torch.autograd.grad(density.log_prob(leaf).sum(), leaf)[0]
    exact_given = (world.denoise_given(noised, obs / 2, outcome) - noised) / sigma
    assert rms(null - exact) < tolerance * rms(exact)
    assert rms(given - exact_given) < tolerance * rms(exact_given)
    score = sigma * (given - null) / world.posterior_var
    assert rms(score - world.score(at, outcome)) < tolerance * rms(world.score(at, outcome))


@pytest.mark.parametrize('ratio, sigma, tolerance', CASES)
def test_spread_and_fisher_are_learned(linear_gaussian, trained, ratio, sigma, tolerance):
    world, *_, spread, fisher = answers(trained(linear_gaussian, ratio), linear_gaussian, sigma)
    assert world.tau.max() > 2 * world.tau.min()
    assert rms(spread / world.tau - 1) < 0.1
    assert rms(fisher / world.fisher - 1) < tolerance


@pytest.mark.parametrize('ratio, sigma, tolerance', CASES[:3])
def test_second_order_tweedie_holds_for_what_was_learned(
        linear_gaussian, trained, ratio, sigma, tolerance):
    denoiser = trained(linear_gaussian, ratio)
    obs = torch.linspace(-0.8, 0.8, 50)[:, None]
    noised = (obs / 2).requires_grad_()
    _, null, spread, _ = denoiser.answers(noised, torch.full_like(obs, sigma), obs, obs)
    slope = torch.autograd.grad((noised + sigma * null).sum(), noised)[0]
    variance = 1 / (sigma ** -2 + spread ** -2)
    assert rms(sigma ** 2 * slope / variance - 1) < tolerance


@pytest.mark.parametrize('ratio, sigma, tolerance', CASES)
def test_learned_score_has_zero_mean_given_the_denoised_action(
        linear_gaussian, trained, ratio, sigma, tolerance):
    denoiser, num = trained(linear_gaussian, ratio), 10_000
    for state, offset in ((0.0, 0.0), (0.6, -0.3), (-0.6, 0.2)):
        obs = torch.full((num, 1), state)
        world = Uneven().world(linear_gaussian, obs, sigma)
        noised = torch.full((num, 1), state / 2 + offset)
        at = world.denoise(noised, obs / 2)
        outcome = at + world.outcome_var ** 0.5 * torch.randn(num, 1)
        with torch.no_grad():
            given, null, spread, _ = denoiser.answers(
                noised, torch.full_like(obs, sigma), obs, outcome)
        score = sigma * (given - null) * (sigma ** -2 + spread ** -2)
        std = world.fisher[0].item() ** 0.5
        assert abs(score.mean().item()) < tolerance * std
        assert score.std().item() == pytest.approx(std, rel=tolerance)


def test_answer_without_the_outcome_does_not_see_it():
    denoiser = Denoiser(2, 1, 3, (8,), 0.2)
    noised, obs, sigma = torch.randn(5, 1), torch.randn(5, 2), torch.full((5, 1), 0.2)
    given, *rest = denoiser.answers(noised, sigma, obs, torch.randn(5, 3))
    other_given, *other_rest = denoiser.answers(noised, sigma, obs, torch.randn(5, 3))
    assert all(torch.equal(mine, other) for mine, other in zip(rest, other_rest))
    assert (given - other_given).abs().min() > 0


@pytest.mark.parametrize('outcome_dim', [1, 3])
def test_the_error_with_the_outcome_does_not_move_the_answer_without(outcome_dim):
    denoiser = Denoiser(2, 1, outcome_dim, (8,), 0.2)
    given, null, _, _ = denoiser.answers(torch.randn(5, 1), torch.full((5, 1), 0.2),
                                         torch.randn(5, 2), torch.randn(5, outcome_dim))
    bias = denoiser.prior.biases[-1]
    moved, = torch.autograd.grad((given - null).sum(), bias)
    assert moved.flatten()[0] == 0 and (moved.flatten()[3:5] != 0).all()


def test_only_the_loss_carries_gradients():
    got = Denoiser(2, 1, 3, (8,), 0.2)(torch.randn(5, 1), torch.randn(5, 2), torch.randn(5, 3))
    assert [name for name, value in got._asdict().items() if value.requires_grad] == ['loss']


@pytest.mark.parametrize('sigma', [0.0, -0.1])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(SpecError, match=f'sigma must be greater than 0, got {sigma}'):
        Denoiser(1, 1, 1, (4,), sigma)


def test_sigma_ratio_must_be_at_least_one():
    with pytest.raises(SpecError, match='denoiser sigma_ratio must be at least 1, got 0.9'):
        Denoiser(1, 1, 1, (4,), 0.2, 0.9)
