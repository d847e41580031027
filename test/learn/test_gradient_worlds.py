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

"""What the action gradient learns, against worlds whose gradient is known in closed form."""

import pytest
import torch

from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.outcome import change_and_reward
from dpg_robot.learn.replay import Batch

NUM_STEPS, BATCH_SIZE = 600, 256
RATES = {'critic_rate': 1e-2, 'denoiser_rate': 1e-2, 'gradient_rate': 1e-2,
         'gradient_weight_decay': 0.0, 'denoiser_weight_decay': 0.0}  # no data comes twice


class Task:
    """One step: s in (-1, 1), a ~ N(s / 2, tau^2), o = a + nu w; the next state shows o."""

    def __init__(self, world, reward):
        self.world, self.reward = world, reward

    def draw(self, num):
        obs = torch.stack([2 * torch.rand(num) - 1, torch.zeros(num)], -1)
        action, outcome = self.world.draw(num, obs[:, :1] / 2)
        next_obs = torch.cat([obs[:, :1], outcome], -1)
        return Batch(obs, action, self.reward(action, outcome)[:, 0], next_obs, torch.zeros(num),
                     (torch.rand(num) < 0.5).float())

    def train(self, gradient, num_steps):
        """Learn and return the last metrics."""
        gradient.outcome_norm.update(change_and_reward(self.draw(4096)))
        optimizer = torch.optim.AdamW(gradient.parameter_groups(), weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in range(num_steps):
            batch = self.draw(BATCH_SIZE)
            gradient.eval().observe(batch)
            losses, metrics = gradient.train().losses(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
        gradient.eval()
        return metrics

    def places(self, wide):
        """Return observations and actions to look at: about mu, or at mu only."""
        state = torch.linspace(-0.9, 0.9, 31)
        offset = torch.linspace(-0.25, 0.25, 7) if wide else torch.zeros(1)
        state, offset = torch.meshgrid(state, offset, indexing='ij')
        obs = torch.stack([state.flatten(), torch.zeros(state.numel())], -1)
        return obs, obs[:, :1] / 2 + offset.reshape(-1, 1)


def fit(got, expected):
    """Return the slope of one on the other, and the error relative to the expected size."""
    slope = (got * expected).sum() / expected.square().sum()
    error = (got - expected).square().mean() / expected.square().mean()
    return slope.item(), error.sqrt().item()


def no_value(value):
    for parameter in value.parameters():
        torch.nn.init.zeros_(parameter)


def value_of_outcome(value):
    """Make V(s) = 3 relu(s_1)."""
    no_value(value)
    with torch.no_grad():
        value.weights[0][0, 1, 0] = 3.0
        value.weights[1][0, 0, 0] = 1.0


@pytest.fixture
def build(make_gradient, linear_gaussian):
    def build(estimator, reward, tau=0.3, sigma=0.3, num_steps=NUM_STEPS, value=no_value,
              **changes):
        task = Task(linear_gaussian(tau=tau, sigma=sigma, nu=0.25), reward)
        gradient = make_gradient(estimator, sigma=sigma, **RATES | changes)
        value(gradient.value)
        metrics = task.train(gradient, num_steps)
        return task, gradient, metrics
    return build


@pytest.mark.parametrize('estimator', [name for name in ESTIMATORS if name != 'discriminative'])
def test_gradient_and_critic_of_a_quadratic_reward(build, estimator):
    # y = -o^2: E[y | a_hat] = -a_hat^2 - Sigma - nu^2, with gradient -2 a_hat however much the
    # denoising noise shrinks a_hat; a critic learns E[y | a] = -a^2 - nu^2, and E[y | o] = -o^2,
    # of which the mean over what the world adds is the same again.
    task, gradient, metrics = build(estimator, lambda action, outcome: -outcome.square())
    obs, action = task.places(wide=estimator != 'reinforce')
    slope, error = fit(gradient(obs, action), -2 * action)
    assert slope == pytest.approx(1.0, abs=0.12)
    assert error < 0.35
    with torch.no_grad():
        q = torch.stack([gradient.advantages(obs, action) for _ in range(30)]).mean(0)
    assert (q + action[:, 0].square() + task.world.nu ** 2).square().mean().sqrt() < 0.025
    if estimator == 'disturbance_critic':  # it has nothing left that it cannot explain
        assert metrics['critic/residual'] < 0.15


def test_discriminative_score_of_an_independent_reward(build):
    # y = r + gamma V(s') with V(s) = 3 relu(o), and a reward that the next state says nothing of.
    task, gradient, _ = build('discriminative', lambda action, outcome: 0.2 * torch.randn_like(
        action), value=value_of_outcome, gamma=0.9)
    obs, action = task.places(wide=True)
    deviation = torch.distributions.Normal(action, task.world.nu)
    expected = 2.7 * (1 - deviation.cdf(torch.zeros(1)))  # E[relu(o) | a] rises with P(o > 0 | a)
    slope, error = fit(gradient(obs, action), expected)
    assert slope == pytest.approx(1.0, abs=0.12)
    assert error < 0.35


def test_discriminative_score_counts_twice_what_two_outcomes_tell(build):
    # Its model takes the elements of the outcome for independent; here the reward follows from
    # the next state. The denoiser assumes nothing of the kind.
    task, gradient, _ = build('discriminative', lambda action, outcome: -outcome.square())
    obs, action = task.places(wide=True)
    slope, _ = fit(gradient(obs, action), -2 * action)
    assert slope > 1.5


@pytest.mark.parametrize('outcome', ['reward', 'state', 'value'])
def test_a_control_cost_is_not_lost(build, outcome):
    # The reward alone knows of it: -2 a^2, whatever comes next.
    task, gradient, _ = build('denoising', lambda action, outcome: -2 * action.square(),
                              outcome=outcome, denoiser_hidden=(64, 64))
    obs, action = task.places(wide=True)
    slope, error = fit(gradient(obs, action), -4 * action)
    assert slope == pytest.approx(1.0, abs=0.15)
    assert error < 0.25


class ShakenTask(Task):
    """Two action elements about 0, shaken together: o = a + nu w with correlated w."""

    def draw(self, num):
        obs = torch.zeros(num, 2)
        action, _ = self.world.draw(num, action_dim=2)
        shake = torch.randn(num, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.19 ** 0.5]])
        outcome = action + self.world.nu * shake
        return Batch(obs, action, self.reward(action, outcome), outcome, torch.zeros(num),
                     torch.zeros(num))


@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust'])
def test_gradient_of_one_element_is_not_that_of_another_it_is_shaken_with(
        make_gradient, linear_gaussian, estimator):
    # y = -o_1^2: the second element does nothing but what the noise makes it look like.
    task = ShakenTask(linear_gaussian(tau=0.3, sigma=0.3, nu=0.4),
                      lambda action, outcome: -outcome[:, 0].square())
    gradient = make_gradient(estimator, action_dim=2, sigma=0.3, **RATES)
    no_value(gradient.value)
    task.train(gradient, NUM_STEPS)
    action = 0.25 * (2 * torch.rand(400, 2) - 1)
    got = gradient(torch.zeros(400, 2), action)
    design = torch.linalg.lstsq(action, got).solution
    # Taken for uncorrelated, the elements would have slopes of about -4 and -2.8 there.
    torch.testing.assert_close(design, torch.tensor([[-2.0, 0.0], [0.0, 0.0]]),
                               rtol=0, atol=0.5)


def test_gradient_with_many_noise_levels(build):
    task, gradient, _ = build('doubly_robust', lambda action, outcome: -outcome.square(),
                              sigma=0.2, sigma_ratio=3.0)
    obs, action = task.places(wide=True)
    slope, error = fit(gradient(obs, action), -2 * action)
    assert slope == pytest.approx(1.0, abs=0.15)
    assert error < 0.3


def test_disturbance_critic_averages_over_the_disturbance(build):
    # y = o^3: the critic learns o^3 at a_hat + xi = o; g is the mean slope, 3 (a^2 + nu^2), of
    # what the world adds to a. That xi varies by a - a_hat too is no matter of the command's.
    task, gradient, _ = build('disturbance_critic', lambda action, outcome: outcome ** 3)
    assert gradient.disturbance_std.item() == pytest.approx(
        task.world.nu, rel=0.1)
    obs, action = task.places(wide=True)
    got = torch.stack([gradient(obs, action) for _ in range(30)]).mean(0)
    slope, error = fit(got, 3 * (action.square() + task.world.nu ** 2))
    assert slope == pytest.approx(1.0, abs=0.12)
    assert error < 0.25


def test_units_of_the_reward_do_not_matter(build):
    results = []
    for scale in (1.0, 20.0):
        torch.manual_seed(3)
        task, gradient, _ = build('doubly_robust', lambda action, outcome: -outcome.square(),
                                  num_steps=20, reward_scale=scale)
        results.append(gradient(*task.places(wide=True)))
    torch.testing.assert_close(results[1], 20 * results[0], rtol=1e-2, atol=1e-2)
