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
from torch.distributions import MultivariateNormal, Normal

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.denoiser import Denoiser

SIGMAS = (0.1, 0.2, 0.5)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_closed_form_satisfies_bayes_and_tweedie(linear_gaussian, sigma):
    world, mu = linear_gaussian(sigma=sigma), 0.15
    noised = torch.linspace(-1, 1, 9).double().requires_grad_()
    outcome = torch.linspace(0.8, -0.4, 9).double()

    def gradient(log_density):
        return torch.autograd.grad(log_density.sum(), noised, retain_graph=True)[0]

    # p(a~) and p(a~, o) from the covariance of a + sigma eta and a + nu w.
    shared = world.tau ** 2
    covariance = [[shared + sigma ** 2, shared], [shared, shared + world.nu ** 2]]
    joint = MultivariateNormal(torch.tensor([mu, mu], dtype=torch.float64),
                               torch.tensor(covariance, dtype=torch.float64))
    log_joint = joint.log_prob(torch.stack([noised, outcome], -1))
    log_marginal = Normal(mu, covariance[0][0] ** 0.5).log_prob(noised)

    at = noised.detach()
    null, given = world.denoise(at, mu), world.denoise_given(at, mu, outcome)
    torch.testing.assert_close((null - at) / sigma ** 2, gradient(log_marginal))
    torch.testing.assert_close((given - at) / sigma ** 2, gradient(log_joint))
    score = world.score(at, mu, outcome)
    torch.testing.assert_close(score, (given - null) / sigma ** 2)
    torch.testing.assert_close(score, gradient(log_joint - log_marginal))


class ExactNet(torch.nn.Module):
    """Answers (a_hat - a~) / sigma from the closed form; the last input is the mask."""

    def __init__(self, world, action_dim):
        super().__init__()
        self.world, self.dim = world, action_dim

    def forward(self, x):
        noised, mu, outcome = x[:, :-1].split(self.dim, -1)
        null = self.world.denoise(noised, mu)
        given = self.world.denoise_given(noised, mu, outcome)
        return ((torch.where(x[:, -1:] == 1, given, null) - noised) / self.world.sigma)[None]


@pytest.mark.parametrize('sigma', SIGMAS)
def test_exact_answers_give_the_exact_score_at_the_noised_action(linear_gaussian, sigma):
    world, num = linear_gaussian(sigma=sigma), 20_000
    mu = torch.randn(num, 2) * 0.3
    action = mu + world.tau * torch.randn(num, 2)
    outcome = action + world.nu * torch.randn(num, 2)
    denoiser = Denoiser(2, 2, 2, (4,), sigma)
    denoiser.net = ExactNet(world, 2)
    loss, noised, score = denoiser.loss_and_score(action, mu, outcome)

    torch.testing.assert_close(score, world.score(noised, mu, outcome), rtol=1e-4, atol=1e-4)
    # A standard deviation from n draws has a standard error of 1 / sqrt(2 n) of itself.
    added = (noised - action) / sigma
    assert added.std().item() == pytest.approx(1.0, abs=4 / (2 * 2 * num) ** 0.5)
    # Var[eta | a~, .] = Var[a | a~, .] / sigma^2; the loss averages two of them, halved each.
    precision = world.tau ** -2 + sigma ** -2
    expected = 0.5 * (1 / precision + 1 / (precision + world.nu ** -2)) / sigma ** 2
    errors = 0.5 * ((world.denoise(noised, mu) - action) ** 2
                    + (world.denoise_given(noised, mu, outcome) - action) ** 2) / sigma ** 2
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx(expected, abs=4 * errors.std().item() / (2 * num) ** 0.5)


def train(world, steps=2000, batch_size=1024):
    """Fit a denoiser to a one-dimensional world with mu = s; return it and its sample size."""
    denoiser = Denoiser(1, 1, 1, (32,), world.sigma)
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss, _, _ = denoiser.loss_and_score(*draw(world, batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return denoiser, steps * batch_size


def draw(world, num):
    mu = 0.5 * torch.randn(num, 1)
    action = mu + world.tau * torch.randn(num, 1)
    return action, mu, action + world.nu * torch.randn(num, 1)


@pytest.fixture(scope='module')
def fitted():
    """Return a trained denoiser for each of two noise levels, made on demand."""
    made = {}

    def get(world):
        if world not in made:
            torch.manual_seed(1)
            made[world] = train(world)
        return made[world]

    return get


@pytest.mark.parametrize('sigma', [0.2, 0.4])
def test_trained_denoiser_reproduces_the_closed_form(linear_gaussian, fitted, sigma):
    world = linear_gaussian(sigma=sigma)
    denoiser, num_seen = fitted(world)
    action, mu, outcome = draw(world, 20_000)
    noised = action + sigma * torch.randn_like(action)
    with torch.no_grad():
        given, null = denoiser.residuals(noised, mu, outcome)
        _, at, score = denoiser.loss_and_score(action, mu, outcome)

    # Least squares with P parameters on n samples errs by P Var / n in the mean square, with
    # Var < 1 that of eta. Stochastic descent is not the minimiser itself: twice the root of it.
    num_parameters = sum(p.numel() for p in denoiser.parameters())
    tolerance = 2 * (num_parameters / num_seen) ** 0.5
    exact_given = (world.denoise_given(noised, mu, outcome) - noised) / sigma
    exact_null = (world.denoise(noised, mu) - noised) / sigma
    assert tolerance < 0.1 * (exact_given - exact_null).std()
    assert (given - exact_given).square().mean().sqrt() < tolerance
    assert (null - exact_null).square().mean().sqrt() < tolerance
    error = (score - world.score(at, mu, outcome)).square().mean().sqrt()
    assert error < 2 ** 0.5 * tolerance / sigma


@pytest.mark.parametrize('sigma', [0.2, 0.4])
def test_learned_score_has_zero_mean_given_the_noised_action(linear_gaussian, fitted, sigma):
    world = linear_gaussian(sigma=sigma)
    denoiser, num_seen = fitted(world)
    num_parameters = sum(p.numel() for p in denoiser.parameters())
    num = 10_000
    for mu, offset in ((0.0, 0.0), (0.5, -0.3), (-0.5, 0.4)):
        noised = torch.full((num, 1), mu + offset)
        outcome = world.draw_outcome(noised[:1], mu, num)
        with torch.no_grad():
            given, null = denoiser.residuals(noised, torch.full_like(noised, mu), outcome)
        score = (given - null) / sigma
        fit_error = 2 * (2 * num_parameters / num_seen) ** 0.5 / sigma
        assert abs(score.mean()) < 4 * score.std() / num ** 0.5 + fit_error
        assert score.std().item() == pytest.approx(world.fisher ** 0.5, rel=0.1)


def test_answer_without_the_outcome_does_not_see_it():
    denoiser = Denoiser(2, 1, 3, (8,), 0.2)
    noised, obs = torch.randn(5, 1), torch.randn(5, 2)
    given, null = denoiser.residuals(noised, obs, torch.randn(5, 3))
    other_given, other_null = denoiser.residuals(noised, obs, torch.randn(5, 3))
    assert torch.equal(null, other_null)
    assert (given - other_given).abs().min() > 0


def test_score_is_detached_and_the_loss_is_not():
    loss, noised, score = Denoiser(2, 1, 3, (8,), 0.2).loss_and_score(
        torch.randn(5, 1), torch.randn(5, 2), torch.randn(5, 3))
    assert loss.requires_grad and not score.requires_grad and not noised.requires_grad


@pytest.mark.parametrize('sigma', [0.0, -0.1])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(SpecError, match=f'sigma must be greater than 0, got {sigma}'):
        Denoiser(1, 1, 1, (4,), sigma)
