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

import io
import math

import pytest
import torch

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.learner import Learner, LearnerConfig, outcome_of
from dpg_robot.learn.replay import Batch

NAMES = tuple(ESTIMATORS)
WITH_DENOISER = tuple(name for name in NAMES if ESTIMATORS[name].correction)


def make_learner(estimator='doubly_robust', obs_dim=2, action_dim=1, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {'hidden': (32,), 'denoiser_hidden': (32,), 'gradient_hidden': (32,),
                'gamma': 0.0, 'target_entropy': None, 'temperature': 0.0} | changes
    return Learner(LearnerConfig(estimator=estimator, **settings), obs_dim, action_dim)


def random_batch(num, obs_dim=2, action_dim=1):
    return Batch(torch.randn(num, obs_dim), torch.rand(num, action_dim) * 2 - 1, torch.randn(num),
                 torch.randn(num, obs_dim), (torch.rand(num) < 0.2).float())


def with_known_value(learner):
    """Make V(s) = relu(3 s_0) of the target network, in normalised observations."""
    for parameter in learner.value_target.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        learner.value_target.weights[0][0, 0, 0] = 3.0
        learner.value_target.weights[1][0, 0, 0] = 1.0
    return learner


def test_target_bootstraps_unless_terminated():
    learner = with_known_value(make_learner(gamma=0.9, reward_scale=0.5))
    # The first row goes on, or was truncated: that is the same. The second row terminated.
    batch = Batch(torch.full((3, 2), 50.0), torch.zeros(3, 1), torch.tensor([1.0, 1.0, 1.0]),
                  torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]), torch.tensor([0., 1., 0.]))
    torch.testing.assert_close(learner._target(batch), torch.tensor([0.5 + 0.9 * 6, 0.5, 0.5]))


def test_target_normalises_the_next_observation_like_the_policy():
    learner = with_known_value(make_learner(gamma=0.5))
    batch = random_batch(100)
    batch = batch._replace(obs=batch.obs * 10 + 40)
    learner.observe(batch)
    bootstrap = 3 * (batch.next_obs[:, 0] - batch.obs[:, 0].mean()) \
        / batch.obs[:, 0].std(unbiased=False)
    expected = batch.reward + 0.5 * (1 - batch.terminated) * bootstrap.clamp(0, 30)
    torch.testing.assert_close(learner._target(batch), expected, rtol=1e-4, atol=1e-4)


def test_outcome_is_the_change_and_the_reward():
    batch = Batch(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1), torch.tensor([5.0]),
                  torch.tensor([[1.5, 4.0]]), torch.zeros(1))
    assert outcome_of(batch).tolist() == [[0.5, 2.0, 5.0]]


class Bandit:
    """One step: s in (-1, 1), o = a + nu w, reward -(o - 0.6 s)^2; the next state shows o."""

    nu = 0.25

    @staticmethod
    def obs(states):
        return torch.stack([states, torch.zeros_like(states)], -1)

    def play(self, learner, num):
        obs = self.obs(torch.rand(num) * 2 - 1)
        with torch.no_grad():
            action = learner.policy(obs, torch.randn(num, 1))
        outcome = action + self.nu * torch.randn(num, 1)
        reward = -(outcome[:, 0] - 0.6 * obs[:, 0]).square()
        next_obs = torch.cat([obs[:, :1], outcome], -1)
        return Batch(obs, action, reward, next_obs, torch.zeros(num))

    @staticmethod
    def best_modes(states, std):
        """Return the modes that maximise E[-(tanh(m + std eps) - 0.6 s)^2], by quadrature."""
        eps = torch.linspace(-4, 4, 81)
        weight = torch.exp(-0.5 * eps ** 2) / torch.exp(-0.5 * eps ** 2).sum()
        mean = torch.linspace(-1.5, 1.5, 601)
        action = torch.tanh(mean[:, None] + std * eps)
        cost = ((action[None] - 0.6 * states[:, None, None]).square() * weight).sum(-1)
        return mean[cost.argmin(1)].tanh()


@pytest.mark.parametrize('estimator', NAMES)
def test_policy_finds_the_optimum_of_a_stochastic_bandit(estimator):
    learner, bandit, states = make_learner(
        estimator, min_std=0.3, policy_rate=2e-3, critic_rate=5e-3, denoiser_rate=5e-3,
        gradient_rate=2e-3, gradient_weight_decay=0.01), Bandit(), torch.linspace(-0.9, 0.9, 9)
    modes = []
    for step in range(600):
        with torch.no_grad():
            modes.append(learner.policy(bandit.obs(states), torch.zeros(9, 1))[:, 0])
        batch = bandit.play(learner, 256)
        if step < 50:
            learner.observe(batch)
        learner.update(batch)
    best = bandit.best_modes(states, 0.3)
    # With constant step sizes the policy wanders about the optimum: look at its average.
    last = torch.stack(modes[-200:]).mean(0)
    distance = [(m - best).square().mean().sqrt().item() for m in (modes[0], last)]
    assert distance[0] > 0.3 and distance[1] < 0.08, distance
    std = learner.policy.distribution(bandit.obs(states))[1].exp()
    assert std.max() < 0.35


@pytest.mark.parametrize('estimator', WITH_DENOISER)
def test_critic_and_gradient_are_those_of_the_smoothed_value(linear_gaussian, estimator):
    # y = -o^2, mu = 0: E[y | a~] = -(k a~)^2 - outcome_var, with gradient -2 k^2 a~. With the
    # clean action in place of the noised one they would be -a^2 - nu^2 and -2 k a.
    world = linear_gaussian(tau=0.3, sigma=0.3, nu=0.25)
    learner = make_learner(estimator, sigma=world.sigma, critic_rate=5e-3, denoiser_rate=5e-3,
                           gradient_rate=5e-3, gradient_weight_decay=0.0)
    obs, actions = torch.zeros(512, 2), torch.linspace(-0.6, 0.6, 512)[:, None]
    critics, gradients, spreads = [], [], []
    for step in range(700):
        action = world.tau * torch.randn(512, 1)
        outcome = action + world.nu * torch.randn(512, 1)
        batch = Batch(obs, action, -outcome[:, 0].square(),
                      torch.cat([outcome, torch.zeros(512, 1)], -1), torch.zeros(512))
        if step < 10:
            learner.observe(batch)
        learner.update(batch)
        if step >= 500:
            metrics = {}
            gradients.append(learner._learn_gradient(
                batch, learner.policy.norm(obs), batch.reward, actions, {}, metrics)[:, 0])
            spreads.append(metrics['value/advantage_std'].square())
            with torch.no_grad():
                critics.append(learner.critic(torch.cat([obs, actions], -1)).mean((0, 2)))
    at, k = actions[:, 0], world.shrink
    expected = -(k * at) ** 2 - world.outcome_var
    assert (torch.stack(critics).mean(0) - expected).square().mean().sqrt() < 0.01
    # Var[o^2 | a~] = 4 m^2 v + 2 v^2 with E[m^2] = k tau^2; without the baseline 10 % more.
    v = world.outcome_var
    expected = 4 * k * world.tau ** 2 * v + 2 * v ** 2
    assert torch.stack(spreads).mean().item() == pytest.approx(expected, rel=0.04)
    # Least squares through the origin: the slope of the gradient.
    slope = (torch.stack(gradients).mean(0) * at).sum() / at.square().sum()
    assert slope.item() == pytest.approx(-2 * k ** 2, rel=0.15)


@pytest.mark.parametrize('estimator, share', [('doubly_robust', 0.3), ('denoising', 0.0)])
def test_gradient_adds_the_critics_as_far_as_it_leans_on_it(estimator, share):
    learner, batch = make_learner(estimator), random_batch(32)
    for parameter in learner.gradient.parameters():
        torch.nn.init.zeros_(parameter)
    learner.lean_moments.copy_(torch.tensor([0.6, 2.0]))
    actions = torch.rand(32, 1)
    gradient = learner._learn_gradient(batch, batch.obs, batch.reward, actions, {}, {})
    at = actions.clone().requires_grad_()
    learner.critic(torch.cat([batch.obs, at], -1)).mean(0).sum().backward()
    assert at.grad.abs().min() > 0
    torch.testing.assert_close(gradient, share * at.grad)


def test_soft_optimum_of_a_quadratic_reward():
    # pi ~ exp(Q / T) with Q = -c a^2 is N(0, T / 2c), and V = T log int exp(Q / T) da. Narrow
    # enough that the tanh does not matter.
    c, temperature = 4.0, 0.05
    learner = make_learner('critic', temperature=temperature, min_std=0.02, policy_rate=3e-3,
                           critic_rate=5e-3, target_rate=0.1)
    obs = torch.zeros(256, 2)
    values, stds = [], []
    for step in range(900):
        with torch.no_grad():
            action = learner.policy(obs, torch.randn(256, 1)) + 0.1 * torch.randn(256, 1)
        learner.update(Batch(obs, action, -c * action[:, 0].square(), obs, torch.zeros(256)))
        if step >= 700:
            with torch.no_grad():
                mean, log_std = learner.policy.distribution(obs[:1])
                stds.append(log_std.exp().item())
                values.append(learner.value(obs[:1]).item())
    assert abs(mean.item()) < 0.03
    assert sum(stds) / 200 == pytest.approx((temperature / (2 * c)) ** 0.5, rel=0.06)
    expected = temperature * 0.5 * math.log(math.pi * temperature / c)
    assert sum(values) / 200 == pytest.approx(expected, abs=0.008)


@pytest.mark.parametrize('offset, rises', [(0.1, True), (-0.1, False)])
def test_temperature_rises_while_the_entropy_is_below_its_target(offset, rises):
    def update(target):
        learner = make_learner(temperature=0.1, target_entropy=target, action_dim=2)
        metrics = learner.update(random_batch(32, action_dim=2))
        return metrics['policy/entropy'].item() / 2, learner.temperature.item()

    entropy, _ = update(0.0)
    assert abs(entropy) > 0.2
    _, temperature = update(entropy + offset)
    assert (temperature > 0.1) is rises
    assert temperature == pytest.approx(0.1, rel=0.01)


def test_temperature_stays_without_a_target_or_at_zero():
    for first, target in ((0.1, None), (0.0, -1.0), (0.0, None)):
        learner = make_learner(temperature=first, target_entropy=target)
        learner.update(random_batch(32))
        assert learner.temperature.item() == pytest.approx(first)


def test_target_networks_follow_slowly():
    learner = make_learner(target_rate=0.25)
    pairs = ((learner.critic_target, learner.critic), (learner.value_target, learner.value))
    before = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    for old, (_, source) in zip(before, pairs):
        assert all(torch.equal(a, b) for a, b in zip(old, source.parameters()))
    learner.update(random_batch(32))
    for old, (target, source) in zip(before, pairs):
        for a, now, b in zip(old, target.parameters(), source.parameters()):
            assert not torch.equal(a, b)
            torch.testing.assert_close(now, 0.75 * a + 0.25 * b)


@pytest.mark.parametrize('estimator', NAMES)
def test_every_network_but_the_targets_has_its_own_step_size(estimator):
    rates = {'policy': 1e-5, 'critic': 2e-5, 'value': 2e-5, 'denoiser': 3e-5, 'gradient': 4e-5,
             'log_temperature': 1e-5}
    learner = make_learner(estimator, policy_rate=1e-5, critic_rate=2e-5, denoiser_rate=3e-5,
                           gradient_rate=4e-5, gradient_weight_decay=0.7)
    got = {parameter: (group['lr'], group['weight_decay'])
           for group in learner.optimizer.param_groups for parameter in group['params']}
    expected = {parameter: (rates[name.split('.')[0]], 0.7 * name.startswith('gradient.'))
                for name, parameter in learner.named_parameters() if '_target.' not in name}
    assert got == expected


@pytest.mark.parametrize('estimator', NAMES)
def test_update_does_not_change_the_batch_and_reports_finite_scalars(estimator):
    learner = make_learner(estimator, temperature=0.1, target_entropy=-1.0)
    batch = random_batch(32)
    before = [x.clone() for x in batch]
    for _ in range(3):
        metrics = learner.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(batch, before))
    assert all(value.ndim == 0 and math.isfinite(value) for value in metrics.values())
    assert {'loss/policy', 'loss/critic', 'loss/value', 'policy/entropy'} <= metrics.keys()
    assert ('loss/denoiser' in metrics) is (estimator in WITH_DENOISER)


def assert_same(one, other):
    state = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, state[name]), name


def learn(learner, num):
    for _ in range(num):
        batch = random_batch(32)
        learner.observe(batch)
        learner.update(batch)


@pytest.mark.parametrize('estimator', NAMES)
def test_the_same_seed_gives_the_same_parameters_to_the_bit(estimator):
    learners = [make_learner(estimator, seed=seed, gamma=0.9, temperature=0.1,
                             target_entropy=-1.0) for seed in (1, 1, 2)]
    for learner, seed in zip(learners, (1, 1, 2)):
        torch.manual_seed(seed)
        learn(learner, 20)
    assert_same(learners[0], learners[1])
    for mine, others in zip(learners[0].policy.parameters(), learners[2].policy.parameters()):
        assert not torch.equal(mine, others)


@pytest.mark.parametrize('estimator', NAMES)
def test_saved_state_resumes_to_the_bit(estimator):
    settings = {'gamma': 0.9, 'temperature': 0.1, 'target_entropy': -1.0}
    learner, resumed = (make_learner(estimator, seed=seed, **settings) for seed in (1, 2))
    learn(learner, 10)
    file = io.BytesIO()
    torch.save({'learner': learner.state_dict(), 'optimizer': learner.optimizer.state_dict(),
                'random': torch.get_rng_state()}, file)
    learn(learner, 10)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state['learner'])
    resumed.optimizer.load_state_dict(state['optimizer'])
    torch.set_rng_state(state['random'])
    learn(resumed, 10)
    assert_same(learner, resumed)


@pytest.mark.parametrize('data, message', [
    ({'estimator': 'magic'}, 'estimator must be one of denoising, critic, doubly_robust; got'),
    ({'gamma': 1.0}, r'gamma must be at most 0\.9999, got 1\.0'),
    ({'sigma': 0}, r'sigma must be greater than 0, got 0'),
    ({'hidden': [64, 0]}, r'hidden\[1\] must be at least 1, got 0')])
def test_bad_settings_are_named(data, message):
    with pytest.raises(SpecError, match='learner.' + message):
        load(LearnerConfig, data, 'learner')
