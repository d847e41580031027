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

import copy
import io
import math

from bandit import Bandit
import pytest
import torch
from torch.distributions import kl_divergence, Normal

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.networks import EnsembleMLP
from dpg_robot.learn.replay import Batch

NAMES = tuple(ESTIMATORS)
# What else changes which networks and buffers there are.
VARIANTS = [(name, {}) for name in NAMES] + [
    ('doubly_robust', {'lean_on': 'both', 'baseline': 'model', 'drift': 0.1, 'sigma_ratio': 2.0}),
    ('critic', {'soft_value': True, 'value_samples': 3, 'temperature': 0.1})]


def make_learner(estimator='doubly_robust', obs_dim=2, action_dim=1, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {'hidden': (32,), 'denoiser_hidden': (32,), 'gradient_hidden': (32,),
                'gamma': 0.0, 'target_entropy': None, 'temperature': 0.0} | changes
    return Learner(LearnerConfig(estimator=estimator, **settings), obs_dim, action_dim)


class ReplayBandit(Bandit):
    def play(self, learner, num):
        obs, _, action, reward, next_obs = self.draw(learner.policy, num)
        return Batch(obs, action, reward, next_obs, torch.zeros(num), (torch.rand(num) < 0.5) + 0.,
                     learner.policy.log_prob(obs, action).detach())

    def best_modes(self, states, std):
        """Return the modes that maximise E[-(tanh(m + std eps) - slope s)^2], by quadrature."""
        eps = torch.linspace(-4, 4, 81)
        weight = torch.exp(-0.5 * eps ** 2) / torch.exp(-0.5 * eps ** 2).sum()
        mean = torch.linspace(-1.5, 1.5, 601)
        action = torch.tanh(mean[:, None] + std * eps)
        cost = ((action[None] - self.slope * states[:, None, None]).square() * weight).sum(-1)
        return mean[cost.argmin(1)].tanh()


@pytest.mark.parametrize('estimator', NAMES)
def test_policy_finds_the_optimum_of_a_stochastic_bandit(estimator):
    # One gradient for all actions says nothing of their spread, and nothing but new data turns
    # a policy that has gone too far.
    slow = estimator == 'reinforce'
    learner, bandit, states = make_learner(
        estimator, min_std=0.3, policy_rate=5e-4 if slow else 4e-3, critic_rate=1e-2,
        denoiser_rate=1e-2, gradient_rate=4e-3, gradient_weight_decay=0.01), ReplayBandit(0.6), \
        torch.linspace(-0.9, 0.9, 9)
    modes = []
    for step in range(400 if slow else 300):
        with torch.no_grad():
            modes.append(learner.policy(bandit.obs(states), torch.zeros(9, 1))[:, 0])
        batch = bandit.play(learner, 256)
        if step < 50:
            learner.observe(batch)
        learner.update(batch)
    best = bandit.best_modes(states, 0.3)
    # With constant step sizes the policy wanders about the optimum: look at its average.
    last = torch.stack(modes[-100:]).mean(0)
    distance = [(m - best).square().mean().sqrt().item() for m in (modes[0], last)]
    assert distance[0] > 0.3 and distance[1] < 0.1, distance
    std = learner.policy.distribution(bandit.obs(states))[1].exp()
    assert slow or std.max() < 0.4


def fix_policy(learner, mean, std):
    """Make the policy one Gaussian, before the tanh, in all states."""
    for parameter in learner.policy.net.parameters():
        torch.nn.init.zeros_(parameter)
    fraction = (math.log(std) - learner.policy.log_std_min) / learner.policy.span
    with torch.no_grad():
        learner.policy.net.biases[-1][0, 0] = torch.tensor(
            [mean, math.log(fraction / (1 - fraction))])


def value_goal(learner, advantages, slow_value=0.0):
    """Return what V(s) is drawn to, given Q(s, a) - V_slow(s) of each critic."""
    for net, value in ((learner.value, 0.0), (learner.value_target, slow_value)):
        for parameter in net.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(net.biases[-1], value)
    learner.action_gradient.advantages = advantages
    obs = torch.zeros(20, 2)
    action, log_prob = (x.detach() for x in learner.policy.sample(obs))
    normal = learner.policy.norm(obs)
    loss = learner._value_loss(obs, normal, learner.value_target(normal)[0, :, 0].detach(),
                               advantages(obs, action), log_prob)
    loss.backward()  # d (v - goal)^2 / dv at v = 0
    return -0.5 * learner.value.biases[-1].grad.item()


@pytest.mark.parametrize('mean, std', [(0.0, 0.08), (0.05, 0.12)])
@pytest.mark.parametrize('soft', [True, False])
def test_value_against_the_closed_form_of_a_quadratic(soft, mean, std):
    # int exp(-c a^2 / T) da = sqrt(pi T / c), whatever policy draws the actions; but for it
    # V = E[Q] + T entropy. All is narrow enough that the tanh does not matter.
    c, temperature, slow = 4.0, 0.05, 0.7
    learner = make_learner('critic', temperature=temperature, min_std=0.02, soft_value=soft,
                           value_samples=2000)
    fix_policy(learner, mean, std)

    def advantages(obs, action):
        q = -c * action[:, 0].square() - slow
        return torch.stack([q + 1.0, q])  # the least of the critics counts

    expected = 0.5 * temperature * math.log(math.pi * temperature / c) if soft else \
        -c * (mean ** 2 + std ** 2) + temperature * 0.5 * math.log(2 * math.pi * math.e * std ** 2)
    goal = value_goal(learner, advantages, slow)
    assert goal == pytest.approx(expected, abs=0.002)


def test_value_without_temperature_is_the_mean_of_q():
    learner = make_learner('critic', temperature=0.0, value_samples=50)
    goal = value_goal(learner, lambda obs, action: torch.full((2, len(obs)), -0.3), 0.5)
    assert goal == pytest.approx(0.2)


def test_soft_optimum_of_a_quadratic_reward():
    # pi ~ exp(Q / T) with Q = -c a^2 is N(0, T / 2c), and V = T log int exp(Q / T) da. Narrow
    # enough that the tanh does not matter.
    c, temperature = 4.0, 0.05
    learner = make_learner('critic', temperature=temperature, min_std=0.02, policy_rate=3e-3,
                           critic_rate=5e-3, target_rate=0.1)
    obs = torch.zeros(256, 2)
    values, stds = [], []
    for step in range(1000):
        with torch.no_grad():
            action = learner.policy(obs, torch.randn(256, 1)) + 0.1 * torch.randn(256, 1)
        learner.update(Batch(obs, action, -c * action[:, 0].square(), obs, torch.zeros(256),
                             torch.zeros(256), torch.zeros(256)))
        if step >= 800:
            with torch.no_grad():
                mean, log_std = learner.policy.distribution(obs[:1])
                stds.append(log_std.exp().item())
                values.append(learner.value(obs[:1]).item())
    assert abs(mean.item()) < 0.03
    assert sum(stds) / 200 == pytest.approx((temperature / (2 * c)) ** 0.5, rel=0.08)
    expected = temperature * 0.5 * math.log(math.pi * temperature / c)
    assert sum(values) / 200 == pytest.approx(expected, abs=0.012)


def test_policy_climbs_the_gradient_at_its_own_actions(random_batch):
    # Without entropy theta moves along E[g . d alpha / d theta], up or down.
    for sign in (1.0, -1.0):
        learner, batch = make_learner('critic', temperature=0.0), random_batch(32)
        learner.action_gradient.estimate = lambda obs, action: (
            torch.full_like(action, 2.5 * sign), torch.zeros(2, 32))
        before = learner.policy(batch.obs, torch.zeros(32, 1)).mean()
        metrics = learner.update(batch)
        assert metrics['gradient/norm'].item() == pytest.approx(2.5)
        assert sign * (learner.policy(batch.obs, torch.zeros(32, 1)).mean() - before) > 0


@pytest.mark.parametrize('offset, rises', [(0.1, True), (-0.1, False)])
def test_temperature_rises_while_the_entropy_is_below_its_target(random_batch, offset, rises):
    def update(target):
        learner = make_learner(temperature=0.1, target_entropy=target, action_dim=2)
        metrics = learner.update(random_batch(32, action_dim=2))
        return metrics['policy/entropy'].item() / 2, learner.temperature.item()

    entropy, _ = update(0.0)
    assert abs(entropy) > 0.2
    _, temperature = update(entropy + offset)
    assert (temperature > 0.1) is rises
    assert temperature == pytest.approx(0.1, rel=0.01)


def test_temperature_stays_without_a_target_or_at_zero(random_batch):
    for first, target in ((0.1, None), (0.0, -1.0), (0.0, None)):
        learner = make_learner(temperature=first, target_entropy=target)
        learner.update(random_batch(32))
        assert learner.temperature.item() == pytest.approx(first)


def test_slow_copies_follow_slowly(random_batch):
    learner = make_learner('critic', target_rate=0.25, drift=0.1, drift_rate=0.125)
    pairs = ((learner.value_target, learner.value, 0.25),
             (learner.slow_policy, learner.policy.net, 0.125))
    before = [[p.clone() for p in target.parameters()] for target, *_ in pairs]
    for old, (_, source, _) in zip(before, pairs):
        assert all(torch.equal(a, b) for a, b in zip(old, source.parameters()))
    learner.update(random_batch(32))
    for old, (target, source, rate) in zip(before, pairs):
        for a, now, b in zip(old, target.parameters(), source.parameters()):
            assert not torch.equal(a, b)
            torch.testing.assert_close(now, (1 - rate) * a + rate * b)


def test_drift_is_the_divergence_of_the_slow_policy_from_the_policy(random_batch):
    learner, batch = make_learner(drift=3.0, action_dim=2), random_batch(32, action_dim=2)
    for parameter in learner.slow_policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    dists = []
    for net in (learner.slow_policy, learner.policy.net):
        mean, log_std = learner.policy.distribution(batch.obs, net)
        dists.append(Normal(mean, log_std.exp()))
    expected = 3.0 * kl_divergence(*dists).sum(-1).mean()
    reverse = 3.0 * kl_divergence(*dists[::-1]).sum(-1).mean()
    assert abs(expected / reverse - 1) > 0.1
    torch.testing.assert_close(learner.update(batch)['loss/drift'], expected.detach())


def test_drift_slows_the_policy(random_batch):
    moved = []
    for drift in (0.0, 1.0, 100.0):
        learner, batch = make_learner('critic', drift=drift, policy_rate=1e-3), random_batch(64)
        learner.action_gradient.forward = lambda obs, action: torch.ones_like(action)
        first = copy.deepcopy(learner.policy)
        for _ in range(30):
            learner.update(batch)
        means = [policy.distribution(batch.obs)[0] for policy in (learner.policy, first)]
        moved.append((means[0] - means[1]).mean().item())
    assert moved[0] > 1.5 * moved[1] > 0
    assert moved[1] > 1.5 * moved[2] > 0


@pytest.mark.parametrize('estimator, changes', [*VARIANTS, ('denoising', {'route': 'inverted'})])
def test_an_update_without_report_is_the_same_update(random_batch, estimator, changes):
    batch, learners = random_batch(32)._replace(log_prob=-torch.rand(32)), []
    for report in (True, False):
        learner = make_learner(
            estimator, **{'temperature': 0.1, 'target_entropy': -1.0} | changes)
        torch.manual_seed(1)
        for _ in range(3):
            assert bool(learner.update(batch, report)) is report
        learners.append(learner.state_dict())
    for name, value in learners[0].items():
        assert torch.equal(value, learners[1][name]), name


@pytest.mark.parametrize('estimator', NAMES)
def test_every_network_but_the_slow_ones_has_its_own_step_size_and_decay(estimator):
    rates = {'policy': 1e-5, 'action_gradient.critic': 2e-5, 'value': 2e-5,
             'action_gradient.model': 2e-5, 'action_gradient.denoiser': 3e-5,
             'action_gradient.gradient': 4e-5, 'log_temperature': 1e-5}
    decays = {'action_gradient.gradient': 0.7, 'action_gradient.denoiser': 0.8, 'value': 0.9}
    learner = make_learner(estimator, policy_rate=1e-5, critic_rate=2e-5, denoiser_rate=3e-5,
                           gradient_rate=4e-5, gradient_weight_decay=0.7, value_weight_decay=0.9,
                           denoiser_weight_decay=0.8,
                           drift=0.1)
    got = {parameter: (group['lr'], group['weight_decay'])
           for group in learner.optimizer.param_groups for parameter in group['params']}
    expected = {}
    for name, parameter in learner.named_parameters():
        parts = name.split('.')
        key = '.'.join(parts[:2]) if parts[0] == 'action_gradient' else parts[0]
        if key in rates:
            expected[parameter] = rates[key], decays.get(key, 0.0)
        else:
            assert key in ('value_target', 'slow_policy')
    assert got == expected
    settings = [(group['lr'], group['weight_decay']) for group in learner.optimizer.param_groups]
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_precision_reaches_every_network(precision):
    learner = make_learner(lean_on='both', baseline='model', drift=0.1, precision=precision)
    found = {'.'.join(name.split('.')[:2]): module.narrow
             for name, module in learner.named_modules() if isinstance(module, EnsembleMLP)}
    assert {*found.values()} == {precision == 'bfloat16'}
    assert found.keys() == {
        'policy.net', 'slow_policy', 'value', 'value_target', *(
            f'action_gradient.{name}' for name in ('critic', 'denoiser', 'model', 'gradient'))}


@pytest.mark.parametrize('estimator', NAMES)
def test_narrow_products_change_an_update_a_little(random_batch, estimator):
    batch, got = random_batch(64), []
    for precision in ('float32', 'bfloat16'):
        learner = make_learner(estimator, precision=precision, temperature=0.1, hidden=(32, 32),
                               denoiser_hidden=(32, 32), gradient_hidden=(32, 32))
        torch.manual_seed(1)
        got.append(learner.update(batch)['loss/critic'].item())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in learner.parameters())
    assert got[0] != got[1]
    assert got[1] == pytest.approx(got[0], rel=0.02)


@pytest.mark.parametrize('estimator, changes', VARIANTS)
def test_update_does_not_change_the_batch_and_reports_finite_scalars(
        random_batch, estimator, changes):
    learner = make_learner(
        estimator, **{'temperature': 0.1, 'target_entropy': -1.0} | changes)
    batch = random_batch(32)
    before = [x.clone() for x in batch[:6]]
    for _ in range(3):
        metrics = learner.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(batch, before))
    assert all(value.ndim == 0 and math.isfinite(value) for value in metrics.values())
    assert {'loss/policy', 'loss/critic', 'loss/value', 'policy/entropy', 'critic/scale',
            'critic/residual', 'gradient/norm'} <= metrics.keys()
    gradient = learner.action_gradient
    for name in ('denoiser', 'model', 'gradient'):
        assert (f'loss/{name}' in metrics) is (getattr(gradient, name) is not None)
    assert ('score/explained' in metrics) is (gradient.denoiser is not None)
    assert ('exploration/spread_over_sigma' in metrics) is (gradient.denoiser is not None)


def state_of(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert not different


@pytest.mark.parametrize('estimator, changes', VARIANTS)
def test_measuring_changes_nothing(random_batch, estimator, changes):
    learner = make_learner(estimator, **changes)
    learn(learner, 3, random_batch)
    before, optimizer = state_of(learner), copy.deepcopy(learner.optimizer.state_dict())
    unseen = random_batch(50)._replace(held_out=torch.ones(50))
    metrics = learner.measure(unseen)
    assert_same(before, learner.state_dict())
    assert not learner.training and all(p.grad is None or p.grad.isfinite().all()
                                        for p in learner.parameters())
    for mine, other in zip(optimizer['state'].values(),
                           learner.optimizer.state_dict()['state'].values()):
        assert_same(mine, other)
    assert metrics and all(name.startswith('held_out/') for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert 'held_out/loss/critic' in metrics


def learn(learner, num, random_batch):
    for _ in range(num):
        batch = random_batch(32)
        learner.observe(batch)
        learner.update(batch)


@pytest.mark.parametrize('estimator, changes', VARIANTS)
def test_the_same_seed_gives_the_same_parameters_to_the_bit(random_batch, estimator, changes):
    learners = [make_learner(estimator, seed=seed, **{
        'gamma': 0.9, 'temperature': 0.1, 'target_entropy': -1.0} | changes)
        for seed in (1, 1, 2)]
    for learner, seed in zip(learners, (1, 1, 2)):
        torch.manual_seed(seed)
        learn(learner, 10, random_batch)
    assert_same(learners[0].state_dict(), learners[1].state_dict())
    for mine, others in zip(learners[0].policy.parameters(), learners[2].policy.parameters()):
        assert not torch.equal(mine, others)


@pytest.mark.parametrize('estimator, changes', VARIANTS)
def test_saved_state_resumes_to_the_bit(random_batch, estimator, changes):
    settings = {'gamma': 0.9, 'temperature': 0.1, 'target_entropy': -1.0} | changes
    learner, resumed = (make_learner(estimator, seed=seed, **settings) for seed in (1, 2))
    learn(learner, 10, random_batch)
    file = io.BytesIO()
    torch.save({'learner': learner.state_dict(), 'optimizer': learner.optimizer.state_dict(),
                'random': torch.get_rng_state()}, file)
    learn(learner, 10, random_batch)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state['learner'])
    resumed.optimizer.load_state_dict(state['optimizer'])
    torch.set_rng_state(state['random'])
    learn(resumed, 10, random_batch)
    assert_same(learner.state_dict(), resumed.state_dict())


@pytest.mark.parametrize('data, message', [
    ({'estimator': 'magic'}, f"estimator must be one of {', '.join(NAMES)}; got"),
    ({'outcome': 'weather'}, 'outcome must be one of state, achieved_goal, reward, value; got'),
    ({'lean_on': 'luck'}, 'lean_on must be one of critic, model, both; got'),
    ({'gamma': 1.0}, r'gamma must be at most 0\.9999, got 1\.0'),
    ({'sigma': 0}, r'sigma must be greater than 0, got 0'),
    ({'sigma_ratio': 0.5}, r'sigma_ratio must be at least 1, got 0\.5'),
    ({'drift': -1}, r'drift must be at least 0, got -1'),
    ({'num_critics': 11}, r'num_critics must be at most 10, got 11'),
    ({'precision': 'half'}, 'precision must be one of auto, float32, bfloat16; got'),
    ({'soft_value': True}, 'value_samples must be at least 2 for soft_value, .*, got 1'),
    ({'soft_value': True, 'value_samples': 9, 'temperature': 0},
     'temperature must be greater than 0 for soft_value, .*, got 0'),
    ({'hidden': [64, 0]}, r'hidden\[1\] must be at least 1, got 0')])
def test_bad_settings_are_named(data, message):
    with pytest.raises(SpecError, match='learner.' + message):
        load(LearnerConfig, data, 'learner')


@pytest.mark.parametrize('outcome', ['reward', 'value'])
@pytest.mark.parametrize('estimator', ['doubly_robust', 'disturbance_critic'])
def test_a_scalar_outcome_is_refused_where_it_would_bias(estimator, outcome):
    data = {'estimator': estimator, 'outcome': outcome}
    with pytest.raises(SpecError, match='learner.outcome must be state or achieved_goal .* got '):
        load(LearnerConfig, data, 'learner')
    assert load(LearnerConfig, data | {'estimator': 'denoising'}, 'learner').outcome == outcome
