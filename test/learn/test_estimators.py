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

import pytest
import torch

from dpg_robot.learn.estimators import (
    best_lean,
    denoising,
    doubly_robust,
    ESTIMATORS,
    lean_moments,
    MAX_LEAN,
    regression_error,
    regression_loss,
    reinforce,
    RIDGE,
    Sample,
    unexplained,
)

NUM = 100_000
SLOPE = torch.tensor([1.5, -0.7], dtype=torch.float64)
CURVE = torch.tensor([[1.0, 0.6], [0.6, -2.0]], dtype=torch.float64)
WRONG = torch.tensor([-2.0, 3.0], dtype=torch.float64)
OTHER = torch.tensor([1.0, 0.5], dtype=torch.float64)


class Case:
    """One denoised action, many outcomes, exact scores; y is linear or quadratic in the outcome.

    ``E[y | a_hat]`` and its gradient follow from ``o | a_hat ~ N(a_hat, v I)``: ``y = c . o``
    gives ``c . a_hat`` and ``c``; ``y = o . A o`` gives ``a_hat . A a_hat + v tr A`` and
    ``2 A a_hat``.
    """

    def __init__(self, world, reward):
        denoised = torch.tensor([0.7, -1.2], dtype=torch.float64)
        outcome = world.draw_outcome(denoised, NUM)
        if reward == 'linear':
            self.target = outcome @ SLOPE
            self.value, self.gradient = SLOPE @ denoised, SLOPE
        else:
            self.target = (outcome @ CURVE * outcome).sum(-1)
            self.value = denoised @ CURVE @ denoised + world.outcome_var * CURVE.trace()
            self.gradient = 2 * CURVE @ denoised
        self.score = world.score(denoised, outcome)
        self.disturbance = self.score / world.fisher

    def sample(self, *guides, baseline=None, lean=(1.0,)):
        baseline = self.value if baseline is None else baseline
        guides = torch.stack(guides or (self.gradient,))[:, None].expand(-1, NUM, 2)
        return Sample(self.target - baseline, self.score, guides, self.disturbance,
                      torch.tensor(lean, dtype=torch.float64))


@pytest.fixture(params=['linear', 'quadratic'])
def case(request, linear_gaussian):
    return Case(linear_gaussian(), request.param)


@pytest.fixture
def quadratic(linear_gaussian):
    return Case(linear_gaussian(), 'quadratic')


@pytest.mark.parametrize('offset', [0.0, 1.0, -2.0])
def test_denoising_has_the_mean_of_the_analytic_gradient_with_any_baseline(
        case, assert_mean, offset):
    assert_mean(denoising(case.sample(baseline=case.value + offset)), case.gradient)


@pytest.mark.parametrize('sigma', [0.05, 0.1, 0.6])
@pytest.mark.parametrize('tau', [0.1, 0.5])
def test_denoising_is_exact_and_not_shrunk_at_any_noise_and_exploration(
        linear_gaussian, assert_mean, sigma, tau):
    case = Case(linear_gaussian(tau=tau, sigma=sigma), 'quadratic')
    assert_mean(denoising(case.sample()), case.gradient)


@pytest.mark.parametrize('lean', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('right', [True, False])
def test_doubly_robust_is_unbiased_for_any_guide_and_lean(case, assert_mean, right, lean):
    guide = case.gradient if right else WRONG
    assert_mean(lean * guide + doubly_robust(case.sample(guide, lean=(lean,))), case.gradient)


@pytest.mark.parametrize('lean', [(0.3, 0.9), (1.0, 1.0), (2.0, -1.0)])
def test_doubly_robust_is_unbiased_for_any_two_guides(case, assert_mean, lean):
    sample = case.sample(WRONG, OTHER, lean=lean)
    assert_mean(lean[0] * WRONG + lean[1] * OTHER + doubly_robust(sample), case.gradient)


def test_doubly_robust_without_lean_is_denoising(case):
    sample = case.sample(WRONG, lean=(0.0,))
    torch.testing.assert_close(doubly_robust(sample), denoising(sample))


def test_doubly_robust_leaves_nothing_to_correct_if_the_guide_explains_all(linear_gaussian):
    # y - b = c . (o - a_hat) = h . xi for a linear reward, sample by sample.
    case = Case(linear_gaussian(), 'linear')
    assert doubly_robust(case.sample()).abs().max() < 1e-9


def test_doubly_robust_varies_less_if_the_guide_is_right(quadratic):
    def spread(guide):
        return doubly_robust(quadratic.sample(guide)).var(0).sum()

    plain = denoising(quadratic.sample()).var(0).sum()
    # What is left is the curvature's part of y - b: d . A d - E[d . A d], against 2 a . A d.
    assert spread(quadratic.gradient) < 0.5 * plain
    assert spread(-quadratic.gradient) > 2 * plain


@pytest.mark.parametrize('scale', [0.5, 2.0])
def test_a_wrong_score_biases_doubly_robust_as_it_biases_denoising(case, assert_mean, scale):
    # E[xi score^T] = I holds for any score whose own F is used, so c h cancels from the mean: a
    # right guide lowers the variance, and does not take away the bias of a wrong denoiser.
    sample = case.sample()
    wrong = sample._replace(score=scale * sample.score, disturbance=sample.disturbance / scale)
    assert_mean(case.gradient + doubly_robust(wrong), scale * case.gradient)


def lean_of(sample, weight=1.0):
    return best_lean(lean_moments(sample, weight))


def least_squares(sample):
    """Return the c that leave the least mean square unexplained, by a generic solver."""
    explained = (sample.guides * sample.disturbance).sum(-1)
    return torch.linalg.lstsq(explained.T, sample.advantage).solution


@pytest.mark.parametrize('weight', [1.0, torch.tensor([0.1, 1.0])])
@pytest.mark.parametrize('factor', [1.0, 2.0, 4.0])
def test_best_lean_is_one_for_a_right_guide_that_explains_everything(
        linear_gaussian, factor, weight):
    # With h' = f h the same explanation needs c = 1 / f, whatever the weights.
    case = Case(linear_gaussian(), 'linear')
    assert lean_of(case.sample(factor * case.gradient), weight).item() == pytest.approx(
        1 / factor, rel=2e-3)


def test_best_lean_is_least_squares_for_one_guide(quadratic):
    sample = quadratic.sample(quadratic.gradient + 0.3 * WRONG)
    expected = least_squares(sample)
    assert 0.1 < expected < 0.9
    torch.testing.assert_close(lean_of(sample), expected, rtol=2e-3, atol=0)


def test_best_lean_is_least_squares_for_two_guides(quadratic):
    half = 0.6 * quadratic.gradient
    sample = quadratic.sample(half + 0.5 * WRONG, half - 0.4 * WRONG + 0.5 * OTHER)
    expected = least_squares(sample)
    assert 0.1 < expected.min() and expected.max() < 0.95
    torch.testing.assert_close(lean_of(sample), expected, rtol=0.01, atol=0)
    # Either alone would be leaned on with another weight.
    assert (lean_of(sample._replace(guides=sample.guides[:1])) - expected[0]).abs() > 0.05


def test_best_lean_gives_large_scores_no_more_weight_than_small_ones():
    score = torch.randn(NUM, 2).double() * torch.tensor([3.0, 0.5])
    guides = torch.tensor([[1.0, 1.0], [0.5, -1.0]]).double()[:, None].expand(-1, NUM, 2)
    explained = (guides * score).sum(-1)
    advantage = (explained[0] + explained[1]) \
        / (0.5 + score.square().sum(-1)) ** 0.5
    sample = Sample(advantage, score, guides, score, torch.zeros(2).double())
    expected = least_squares(sample)
    columns = (explained[..., None] * score).flatten(1).T
    weighted = torch.linalg.lstsq(columns, denoising(sample).flatten()).solution
    assert (expected - weighted).abs().max() > 0.05
    assert 0.1 < expected.min() and expected.max() < 1
    torch.testing.assert_close(lean_of(sample), expected, rtol=0, atol=0.01)


def test_best_lean_leaves_the_least_unexplained(quadratic):
    guide = quadratic.gradient + 0.3 * WRONG
    lean = least_squares(quadratic.sample(guide)).item()

    def size(c):
        return unexplained(quadratic.sample(guide, lean=(c,))).square().mean()

    # The mean square is a parabola in c: lowest at its best, equal on either side.
    assert size(lean) < size(lean + 0.1)
    assert size(lean - 0.1).item() == pytest.approx(size(lean + 0.1).item(), rel=1e-9)


def test_what_the_outcome_hardly_shows_does_not_decide_the_lean():
    # The score of the second element is small, and so the disturbance that is read from it large:
    # the guide's small error there is no reason to distrust the guide.
    deviation = torch.tensor([5.0, 0.5]).double()
    score = deviation * torch.randn(NUM, 2).double()
    disturbance = score / deviation.square()
    guide = torch.tensor([1.0, 0.3]).double()
    sample = Sample(disturbance[:, 0], score, guide.expand(1, NUM, 2), disturbance,
                    torch.ones(1).double())
    assert least_squares(sample) < 0.12
    lean = lean_of(sample, torch.tensor([1.0, 0.01]))
    # 1 / 25 and 0.01 * 0.09 / 0.25: M by the weights.
    assert lean.item() == pytest.approx(0.04 / (0.04 + 0.0036), rel=0.05)


@pytest.mark.parametrize('factor, expected', [(0.5, MAX_LEAN), (-1.0, 0.0)])
def test_best_lean_stays_within_its_limits(quadratic, factor, expected):
    sample = quadratic.sample(factor * quadratic.gradient)
    assert not 0 <= least_squares(sample) <= MAX_LEAN
    assert lean_of(sample).item() == expected


def test_guides_that_agree_share_the_weight(linear_gaussian):
    case = Case(linear_gaussian(), 'linear')
    lean = lean_of(case.sample(case.gradient, case.gradient))
    torch.testing.assert_close(lean, torch.full_like(lean, 0.5), rtol=1e-3, atol=0)


def test_guides_that_are_the_same_share_the_weight_in_single_precision():
    lean = best_lean(torch.tensor([[1.0, 1.0, 0.8], [1.0, 1.0, 0.8]]))
    assert lean.tolist() == pytest.approx([0.4, 0.4], rel=1e-3)


@pytest.mark.parametrize('moments, expected', [
    ([[1, 0.9, 0.8], [0.9, 1, 0.95]], [0, 0.95]),  # without bounds: [-0.29, 1.21]
    ([[1, 0.5, 2.5], [0.5, 1, 1.5]], [1.5, 0.75])])  # without bounds: [2.33, 0.33]
def test_what_a_bound_takes_from_one_guide_is_not_left_in_another(moments, expected):
    assert best_lean(torch.tensor(moments)).tolist() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize('correlation', [0.0, 0.5, 0.95])
def test_best_lean_is_right_where_disturbances_are_correlated_and_weighed(correlation):
    torch.manual_seed(0)
    size, true = 200_000, torch.tensor([0.8, 0.3], dtype=torch.float64)
    xi = torch.randn(size, 2).double() @ torch.linalg.cholesky(
        torch.tensor([[1.0, correlation], [correlation, 1.0]])).T.double()
    one, other = torch.randn(2, size).double()
    guides = torch.stack([torch.stack([one, 2 * one], -1), torch.stack([other, one], -1)])
    advantage = true @ (guides * xi).sum(-1) + 0.1 * torch.randn(size)
    sample = Sample(advantage, xi, guides, xi, torch.ones(2).double())
    lean = lean_of(sample, torch.tensor([1.0, 0.01]))
    torch.testing.assert_close(lean, true, rtol=0, atol=0.01)


def test_best_lean_before_the_first_batch_is_zero():
    assert best_lean(torch.zeros(2, 3)).tolist() == [0, 0]


@pytest.mark.parametrize('num_guides', [1, 2, 3])
def test_each_lean_solves_its_equation_or_is_at_the_bound_that_keeps_it(num_guides):
    at_bounds, eye = set(), torch.eye(num_guides)
    for _ in range(200):
        guides = torch.randn(40, num_guides) + 0.5 * torch.randn(40, 1)
        goal = guides @ (1.5 * torch.randn(num_guides)) + torch.randn(40)
        instruments = guides + 0.3 * torch.randn(40, num_guides)
        moments = instruments.T @ torch.cat([guides, goal[:, None]], 1) / 40
        matrix, covariance = moments[:, :-1] * (1 + RIDGE * eye), moments[:, -1]
        lean = best_lean(moments)
        alone = lean + (covariance - matrix @ lean) / matrix.diagonal()
        torch.testing.assert_close(lean, alone.clamp(0, MAX_LEAN), rtol=1e-4, atol=1e-4)
        at_bounds |= {(lean == 0).any().item(), (lean == MAX_LEAN).any().item()}
    assert at_bounds == {True, False}


def test_guides_that_no_equation_tells_apart_share_what_they_explain():
    half = 1001 * 0.5  # the ridge makes each moment of a guide with itself 1001 too
    lean = best_lean(torch.tensor([[1000, 1001, half], [1001, 1000, half]]))
    assert lean.sum().item() == pytest.approx(0.5)


@pytest.mark.parametrize('moments, expected', [
    ([[-0.5, 0.3], ], [0.0]),
    ([[-0.5, 0.2, 0.3], [0.2, 2.0, 1.0]], [0.0, 0.5]),
    ([[1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.5], [0.0, 0.0, -1.0, 1.0]], [0.25, 0.25, 0.0])])
def test_a_guide_whose_instrument_tells_nothing_of_it_gets_nothing(moments, expected):
    assert best_lean(torch.tensor(moments)).tolist() == pytest.approx(expected, rel=2e-3)


def test_best_lean_is_near_zero_for_a_random_guide(case):
    sample = case.sample()._replace(guides=torch.randn(1, NUM, 2).double())
    matrix, covariance = lean_moments(sample)[0]
    assert abs(covariance / matrix) < 0.05


def test_moments_of_halves_average_to_those_of_the_whole(case):
    sample = case.sample(WRONG, OTHER)
    halves = [part_of(sample, part) for part in (slice(NUM // 2), slice(NUM // 2, NUM))]
    torch.testing.assert_close((lean_moments(halves[0]) + lean_moments(halves[1])) / 2,
                               lean_moments(sample))


COVARIANCE = torch.tensor([[0.3, 0.16], [0.16, 0.2]], dtype=torch.float64)
GUIDES = [((WRONG,), (0.0,)), ((WRONG,), (0.5,)), ((WRONG,), (1.0,)),
          ((WRONG,), (2.0,)), ((WRONG, OTHER), (0.3, 0.9)), ((WRONG, OTHER), (2.0, -1.0))]


class Correlated(Case):
    """As :class:`Case`, where the world shakes both elements of the action together.

    ``o | a_hat ~ N(a_hat, C)``: the score is ``C^-1 (o - a_hat)`` and ``F = C^-1``. With ``full``
    the disturbance is ``F^-1 score``, else F is taken for diagonal.
    """

    def __init__(self, reward, full=True):
        denoised = torch.tensor([0.7, -1.2], dtype=torch.float64)
        shake = torch.randn(NUM, 2).double() @ torch.linalg.cholesky(COVARIANCE).T
        fisher = torch.linalg.inv(COVARIANCE)
        self.score = shake @ fisher
        self.disturbance = shake if full else self.score / fisher.diagonal()
        outcome = denoised + shake
        if reward == 'linear':
            self.target = outcome @ SLOPE
            self.value, self.gradient = SLOPE @ denoised, SLOPE
        else:
            self.target = (outcome @ CURVE * outcome).sum(-1)
            self.value = denoised @ CURVE @ denoised + (COVARIANCE * CURVE).sum()
            self.gradient = 2 * CURVE @ denoised


def part_of(sample, rows):
    return sample._replace(advantage=sample.advantage[rows], score=sample.score[rows],
                           guides=sample.guides[:, rows], disturbance=sample.disturbance[rows])


def regress(sample):
    """Return the guess with the least mean square of its error, and each sample's share in it."""
    def loss(guess):
        guess = guess.expand(1, len(sample.score), 2)
        return regression_error(guess, sample).square().mean()

    nought = torch.zeros(2, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, nought)
    curve = torch.autograd.functional.hessian(loss, nought)
    guess = -torch.linalg.solve(curve, slope)  # the loss is a parabola: one step of Newton
    error = regression_error(guess.expand(1, len(sample.score), 2), sample)[0]
    shares = torch.linalg.solve(curve, 2 * error[:, None] * sample.disturbance, left=False)
    return guess, guess + shares


def test_the_regression_loss_descends_along_the_instrument():
    advantage, (xi, z, guess) = torch.randn(7), torch.randn(3, 7, 2)
    guess = torch.stack([guess, 2 * guess]).requires_grad_()
    sample = Sample(advantage, xi, torch.zeros(0, 7, 2), xi, torch.zeros(0), z)
    error = (advantage - (guess * xi).sum(-1)).detach()
    loss = regression_loss(guess, sample)
    torch.testing.assert_close(
        loss.detach(), advantage ** 2 - (guess * z).sum(-1).detach() * (advantage + error))
    loss.sum().backward()
    torch.testing.assert_close(guess.grad, -2 * error[..., None] * z)
    square = regression_loss(guess, sample._replace(instrument=xi))
    torch.testing.assert_close(square, error.square())


def test_the_regression_loss_is_least_where_it_no_longer_descends():
    noise, world = torch.linalg.qr(torch.randn(NUM, 4).double()).Q.mul(NUM ** 0.5).chunk(2, -1)
    xi = noise + world @ torch.tensor([[0.5, 0.2], [0.0, 0.3]]).double()
    advantage = noise[:, 0] - 2 * xi[:, 1] + torch.randn(NUM)
    sample = Sample(advantage, xi, torch.zeros(0, NUM, 2), xi, torch.zeros(0), (noise + xi) / 2)

    def loss(guess):
        return regression_loss(guess.expand(1, NUM, 2), sample).mean()
    moment = sample.instrument.T @ xi / NUM
    best = torch.linalg.solve(moment, sample.instrument.T @ advantage / NUM).requires_grad_()
    least = loss(best)
    least.backward()
    torch.testing.assert_close(best.grad, torch.zeros(2).double())
    for away in torch.cat([torch.eye(2), -torch.eye(2)]).double():
        torch.testing.assert_close(loss(best.detach() + away) - least, away @ moment @ away)


def test_an_instrument_is_right_where_the_disturbance_errs_with_the_target(assert_mean):
    gradient = torch.tensor([1.0, -0.5])
    noise, world, error = 0.3 * torch.randn(3, NUM, 2)
    xi = noise + world + error  # whose error y depends on
    advantage = (noise + world) @ gradient + error.sum(-1)

    def solve(z):
        moments = z.T @ xi / NUM, z.T @ advantage / NUM
        guess = torch.linalg.solve(*moments)
        sample = Sample(advantage, xi, torch.zeros(0, NUM, 2), xi, torch.zeros(0), z)
        at = guess.expand(1, NUM, 2).clone().requires_grad_()
        regression_loss(at, sample).mean().backward()
        torch.testing.assert_close(at.grad[0].sum(0), torch.zeros(2), atol=1e-3, rtol=0.0)
        return guess, (advantage - xi @ guess)[:, None] * z @ torch.linalg.inv(moments[0]).T
    guess, shares = solve(noise)
    assert_mean(guess + shares, gradient)
    biased, shares = solve(xi)  # least squares: two parts of G, and one of ones
    assert_mean(biased + shares, (2 * gradient + 1) / 3)
    # The mean of both: noise counts twice as much as the rest.
    between, shares = solve((noise + xi) / 2)
    assert_mean(between + shares, (3 * gradient + 1) / 4)


def leant(guides, lean):
    return sum((c * guide for c, guide in zip(lean, guides)), torch.zeros(2).double())


@pytest.mark.parametrize('guides, lean', GUIDES)
@pytest.mark.parametrize('reward', ['linear', 'quadratic'])
def test_correlated_scores_do_not_bias_doubly_robust(assert_mean, reward, guides, lean):
    case = Correlated(reward)
    sample = case.sample(*guides, lean=lean)
    assert_mean(leant(guides, lean) + doubly_robust(sample), case.gradient)


@pytest.mark.parametrize('guides, lean', GUIDES[1:])
def test_doubly_robust_is_biased_where_correlation_is_ignored(assert_mean, guides, lean):
    case = Correlated('quadratic', full=False)
    h = leant(guides, lean)
    fisher = torch.linalg.inv(COVARIANCE)
    bias = h - fisher @ (h / fisher.diagonal())
    assert bias.norm() > 0.1 * case.gradient.norm()
    assert_mean(h + doubly_robust(case.sample(*guides, lean=lean)), case.gradient + bias)


@pytest.mark.parametrize('offset', [0.0, 1.0, -2.0])
@pytest.mark.parametrize('reward', ['linear', 'quadratic'])
def test_regression_on_the_disturbance_has_the_analytic_gradient_with_any_baseline(
        assert_mean, reward, offset):
    case = Correlated(reward)
    sample = case.sample(baseline=case.value + offset)
    guess, shares = regress(sample)
    torch.testing.assert_close(shares.mean(0), guess, rtol=0, atol=1e-9)
    assert_mean(shares, case.gradient)
    # It is the mean of (y - b) score, whatever the guides and how far one leans on them.
    assert_mean(denoising(sample) - guess, torch.zeros(2).double())
    other = case.sample(WRONG, OTHER, baseline=case.value + offset, lean=(0.3, 0.9))
    torch.testing.assert_close(regress(other)[0], guess)


def test_regression_on_the_disturbance_is_wrong_where_correlation_is_ignored(assert_mean):
    case = Correlated('quadratic', full=False)
    # With D = diag F the fixed point solves D^-1 F D^-1 g = D^-1 grad.
    wrong = torch.linalg.inv(COVARIANCE).diagonal() * (COVARIANCE @ case.gradient)
    assert (wrong - case.gradient).norm() > 0.3 * case.gradient.norm()
    assert_mean(regress(case.sample())[1], wrong)


def test_regression_on_the_disturbance_varies_less_than_an_average_of_corrections():
    sample, size = Correlated('quadratic').sample(), 100
    parts = [part_of(sample, slice(i, i + size)) for i in range(0, NUM // 5, size)]
    fitted = torch.stack([regress(part)[0] for part in parts])
    averaged = torch.stack([denoising(part).mean(0) for part in parts])
    assert fitted.var(0).sum() < 0.5 * averaged.var(0).sum()
    # What of y - b is linear in the disturbance is no noise to it.
    linear = part_of(Correlated('linear').sample(), slice(size))
    torch.testing.assert_close(regress(linear)[0], SLOPE)


class Actions:
    """Many actions with their outcomes: y = -|o|^2, with E[y | a_hat] = -|a_hat|^2 - 2 v."""

    def __init__(self, world):
        self.mu = torch.tensor([0.4, -0.3], dtype=torch.float64)
        variance = world.shrink * world.tau ** 2
        self.at = self.mu + variance ** 0.5 * torch.randn(NUM, 2).double()
        outcome = self.at + world.outcome_var ** 0.5 * torch.randn(NUM, 2).double()
        self.target = -outcome.square().sum(-1)
        self.surprise = (self.at - self.mu) / variance
        self.expected = -2 * self.mu

    def reinforce(self, baseline, *guides):
        guides = torch.stack(guides) if guides else self.at.new_zeros(0, NUM, 2)
        return reinforce(Sample(self.target - baseline, self.surprise, guides, self.surprise,
                                torch.ones(len(guides), dtype=torch.float64)))


def test_reinforce_integrates_by_parts(linear_gaussian, assert_mean):
    actions = Actions(linear_gaussian())
    assert_mean(actions.reinforce(0.0), actions.expected)
    assert_mean(actions.reinforce(-3.0), actions.expected)


def test_reinforce_is_unbiased_with_any_control_variate(linear_gaussian, assert_mean):
    actions = Actions(linear_gaussian())
    wrong = actions.at.sin()
    assert_mean(actions.reinforce(wrong.sum(-1), actions.at.cos()), actions.expected)
    right = -actions.at.square().sum(-1), -2 * actions.at
    assert_mean(actions.reinforce(*right), actions.expected)
    # Without the gradient of a baseline that depends on the action it is biased.
    biased = actions.reinforce(right[0]).mean(0)
    assert ((biased - actions.expected).abs() > 0.4).all()
    assert actions.reinforce(*right).var(0).sum() < 0.8 * actions.reinforce(0.0).var(0).sum()


def test_table_says_what_each_estimator_needs():
    assert {name: tuple(entry) for name, entry in ESTIMATORS.items()} == {
        'denoising': (denoising, False), 'doubly_robust': (doubly_robust, True),
        'critic': (None, False), 'disturbance_critic': (None, False), 'model': (None, False),
        'discriminative': (denoising, False), 'reinforce': (reinforce, False)}
