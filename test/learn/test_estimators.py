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
    recovered_disturbance,
    Sample,
)

NUM = 100_000
SLOPE = torch.tensor([1.5, -0.7], dtype=torch.float64)
CURVE = torch.tensor([[1.0, 0.6], [0.6, -2.0]], dtype=torch.float64)
WRONG = torch.tensor([-2.0, 3.0], dtype=torch.float64)


class Case:
    """One noised action, many outcomes, exact scores; y is linear or quadratic in the outcome.

    ``E[y | a~]`` and its gradient follow from ``o | a~ ~ N(m, v I)`` with ``dm / da~ = k I``:
    ``y = c . o`` gives ``c . m`` and ``k c``; ``y = o . A o`` gives ``m . A m + v tr A`` and
    ``2 k A m``.
    """

    def __init__(self, world, reward):
        noised = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
        mu = torch.tensor([[0.8, -0.9]], dtype=torch.float64)
        outcome = world.draw_outcome(noised, mu, NUM)
        mean = world.denoise(noised, mu)[0]
        if reward == 'linear':
            self.target = outcome @ SLOPE
            self.value, self.gradient = SLOPE @ mean, world.shrink * SLOPE
        else:
            self.target = (outcome @ CURVE * outcome).sum(-1)
            self.value = mean @ CURVE @ mean + world.outcome_var * CURVE.trace()
            self.gradient = 2 * world.shrink * CURVE @ mean
        self.score = world.score(noised, mu, outcome)
        self.fisher = world.fisher * torch.eye(2, dtype=torch.float64)

    def sample(self, baseline=None, critic_grad=None, lean=1.0):
        baseline = self.value if baseline is None else baseline
        critic_grad = self.gradient if critic_grad is None else critic_grad
        return Sample(self.target - baseline, self.score, critic_grad.expand(NUM, 2),
                      self.fisher, torch.tensor(lean, dtype=torch.float64))


@pytest.fixture(params=['linear', 'quadratic'])
def case(request, linear_gaussian):
    return Case(linear_gaussian(), request.param)


@pytest.fixture
def quadratic(linear_gaussian):
    return Case(linear_gaussian(), 'quadratic')


@pytest.mark.parametrize('offset', [0.0, 1.0, -2.0])
def test_denoising_has_the_mean_of_the_analytic_gradient_with_any_baseline(
        case, assert_mean, offset):
    sample = case.sample(baseline=case.value + offset)
    assert_mean(denoising(sample), case.gradient)


@pytest.mark.parametrize('sigma', [0.1, 0.6])
def test_denoising_is_exact_for_the_smoothed_value_at_any_sigma(
        linear_gaussian, assert_mean, sigma):
    case = Case(linear_gaussian(sigma=sigma), 'quadratic')
    assert_mean(denoising(case.sample()), case.gradient)


@pytest.mark.parametrize('lean', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('right', [True, False])
def test_doubly_robust_is_unbiased_for_any_critic_and_lean(case, assert_mean, right, lean):
    critic_grad = case.gradient if right else WRONG
    sample = case.sample(critic_grad=critic_grad, lean=lean)
    assert_mean(lean * critic_grad + doubly_robust(sample), case.gradient)


def test_doubly_robust_without_lean_is_denoising(case):
    sample = case.sample(critic_grad=WRONG, lean=0.0)
    torch.testing.assert_close(doubly_robust(sample), denoising(sample))


def test_doubly_robust_leaves_nothing_to_correct_if_the_critic_explains_all(linear_gaussian):
    # y - b = c . (o - m) = h . xi for a linear reward, sample by sample.
    case = Case(linear_gaussian(), 'linear')
    assert doubly_robust(case.sample()).abs().max() < 1e-9


def test_doubly_robust_varies_less_if_the_critic_is_right(quadratic):
    def spread(critic_grad):
        return doubly_robust(quadratic.sample(critic_grad=critic_grad)).var(0).sum()

    plain = denoising(quadratic.sample()).var(0).sum()
    # What is left is the curvature's part of y - b: d . A d - E[d . A d], against 2 m . A d.
    assert spread(quadratic.gradient) < 0.5 * plain
    assert spread(-quadratic.gradient) > 2 * plain


@pytest.mark.parametrize('scale', [0.5, 2.0])
def test_a_wrong_score_biases_doubly_robust_as_it_biases_denoising(case, assert_mean, scale):
    # A right critic lowers the variance; it does not take away the bias of a wrong denoiser:
    # E[xi score^T] = I holds for any score whose own F is used, so c h cancels from the mean.
    sample = case.sample()
    wrong = sample._replace(score=scale * sample.score, fisher=scale ** 2 * sample.fisher)
    assert_mean(case.gradient + doubly_robust(wrong), scale * case.gradient)


def test_an_averaged_fisher_biases_by_the_part_that_it_misses(case, assert_mean):
    # With F = r F(s) for a state, E[xi score^T | s] = I / r there, and c (1 - 1 / r) h is left.
    ratio = torch.tensor([2.0, 0.5], dtype=torch.float64)
    sample = case.sample(critic_grad=WRONG, lean=0.8)
    averaged = sample._replace(fisher=sample.fisher * ratio.diag())
    expected = case.gradient + 0.8 * (1 - 1 / ratio) * WRONG
    assert_mean(0.8 * WRONG + doubly_robust(averaged), expected)


def correlated_scores():
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.4, 2.0]]).double()
    score = torch.randn(5000, 3).double() @ mix.T
    return score, score.T @ score / 5000


def test_recovered_disturbance_and_score_have_the_identity_as_cross_moment():
    score, fisher = correlated_scores()
    disturbance = recovered_disturbance(score, fisher)
    torch.testing.assert_close(disturbance.T @ score / 5000, torch.eye(3).double())
    # Its covariance is F^-1, the Cramer-Rao bound.
    torch.testing.assert_close(disturbance.T @ disturbance / 5000, fisher.inverse())


def test_recovered_disturbance_moves_with_the_action(linear_gaussian, assert_mean):
    world = linear_gaussian()
    noised, push = torch.zeros(1, 2).double(), torch.tensor([[0.2, -0.1]]).double()
    outcome = world.draw_outcome(noised + push, 0.0, NUM)
    fisher = world.fisher * torch.eye(2).double()
    disturbance = recovered_disturbance(world.score(noised, 0.0, outcome), fisher)
    assert_mean(disturbance, push[0])


def lean_of(sample):
    covariance, variance = best_lean(sample)
    return (covariance / variance).item()


@pytest.mark.parametrize('factor', [1.0, 2.0, 0.5])
def test_best_lean_is_one_for_a_right_critic_that_explains_everything(linear_gaussian, factor):
    # With h' = f h the same explanation needs c = 1 / f.
    case = Case(linear_gaussian(), 'linear')
    sample = case.sample(critic_grad=factor * case.gradient)
    assert lean_of(sample) == pytest.approx(1 / factor, rel=1e-9)


def test_best_lean_is_near_zero_for_a_random_critic(case):
    sample = case.sample()._replace(critic_grad=torch.randn(NUM, 2).double())
    explained = (sample.critic_grad * recovered_disturbance(sample.score, sample.fisher)).sum(-1)
    products = sample.advantage * explained * sample.score.square().sum(-1)
    standard_error = products.std() / NUM ** 0.5 / best_lean(sample)[1]
    assert abs(lean_of(sample)) < 4 * standard_error
    assert standard_error < 0.05


def test_best_lean_makes_the_correction_smallest(quadratic):
    critic_grad = quadratic.gradient + 0.3 * WRONG
    lean = lean_of(quadratic.sample(critic_grad=critic_grad))
    assert 0.1 < lean < 2

    def size(c):
        correction = doubly_robust(quadratic.sample(critic_grad=critic_grad, lean=c))
        return correction.square().sum(-1).mean()

    # The mean square is a parabola in c: lowest at its best, equal on either side.
    assert size(lean) < size(lean + 0.1)
    assert size(lean - 0.1).item() == pytest.approx(size(lean + 0.1).item(), rel=1e-9)


def test_table_says_what_each_estimator_needs():
    assert ESTIMATORS['denoising'] == (denoising, False)
    assert ESTIMATORS['critic'] == (None, True)
    assert ESTIMATORS['doubly_robust'] == (doubly_robust, True)
