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

from bandit import Bandit
import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence, Normal

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.learn.gae import generalised_advantage
from dpg_robot.learn.on_policy import collect
from dpg_robot.learn.on_policy_learner import OnPolicyConfig, OnPolicyLearner, Rollout
from dpg_robot.learn.worlds import HostWorlds

NAMES = ('denoising', 'doubly_robust', 'critic', 'reinforce')


def make_learner(estimator='doubly_robust', obs_dim=2, action_dim=1, achieved_goal=(), **changes):
    torch.manual_seed(0)
    settings = {'hidden': (32,), 'denoiser_hidden': (32,), 'temperature': 0.0, 'drift': 0.0,
                'gamma': 0.9}
    return OnPolicyLearner(OnPolicyConfig(estimator=estimator, **settings | changes), obs_dim,
                           action_dim, achieved_goal)


def column(*values):
    return torch.tensor(values)[:, None]


def advantages(differences, lam=0.5, corrected=False, terminated=(), truncated=()):
    marks = [torch.zeros(len(differences), 1) for _ in range(2)]
    for mark, places in zip(marks, (terminated, truncated)):
        mark[list(places)] = 1.0
    return generalised_advantage(column(*differences), *marks, 0.5, lam, corrected)[:, 0].tolist()


def test_advantages_worked_out_by_hand():
    assert advantages([1.0, 2.0, 3.0]) == [1 + 0.25 * 2.75, 2.75, 3.0]
    assert advantages([1.0, 2.0, 3.0], lam=0.0) == [1.0, 2.0, 3.0]
    assert advantages([1.0, 2.0, 3.0], lam=1.0) == [2.75, 3.5, 3.0]
    # Two steps to go: weights 1/2 and 1/4 become 2/3 and 1/3; three: 4/7, 2/7, 1/7.
    expected = [4 / 7 * 1 + 2 / 7 * 2 + 1 / 7 * 2.75, 2 / 3 * 2 + 1 / 3 * 3.5, 3.0]
    assert advantages([1.0, 2.0, 3.0], corrected=True) == pytest.approx(expected)


@pytest.mark.parametrize('corrected', [False, True])
def test_nothing_flows_back_over_the_end_of_an_episode(corrected):
    for end in ({'terminated': [1]}, {'truncated': [1]}):
        ends = advantages([1.0, 2.0, 9.0, 9.0], corrected=corrected, **end)
        assert ends[1] == 2.0
    # The truncated episode is cut off, the terminated one is complete.
    assert advantages([1.0, 2.0, 9.0], corrected=True, truncated=[1])[0] == pytest.approx(4 / 3)
    assert advantages([1.0, 2.0, 9.0], corrected=True, terminated=[1])[0] == 1.5


def k_step_average(reward, value, next_value, terminated, truncated, t, gamma, lam, corrected):
    """Average the k-step advantages of one world at time t, one by one."""
    steps, weights, total = [], [], 0.0
    for k in range(1, len(reward) - t + 1):
        at = t + k - 1
        total += gamma ** (k - 1) * reward[at]
        bootstrap = 0.0 if terminated[at] else gamma ** k * next_value[at]
        steps.append(total + bootstrap - value[t])
        weights.append((1 - lam) * lam ** (k - 1) if lam < 1 or not corrected else 1.0)
        if terminated[at] or truncated[at]:
            break
    if corrected and not terminated[at]:
        weights = [weight / sum(weights) for weight in weights]
    else:  # all longer sums, or what is missing, are the last one's
        weights = (*weights[:-1], lam ** (len(steps) - 1))
        if lam == 1:
            weights = (*[0.0] * (len(steps) - 1), 1.0)
    assert sum(weights) == pytest.approx(1.0)
    return sum(weight * step for weight, step in zip(weights, steps))


@pytest.mark.parametrize('corrected', [False, True])
@pytest.mark.parametrize('lam', [0.0, 0.3, 0.95, 1.0])
def test_advantages_are_weighted_averages_of_k_step_advantages(lam, corrected):
    shape, gamma = (10, 8), 0.9
    reward, value, after = (torch.randn(shape).double() for _ in range(3))
    terminated = (torch.rand(shape) < 0.1).double()
    truncated = (torch.rand(shape) < 0.15).double() * (1 - terminated)
    # Within an episode the next state's value is the next value.
    goes_on = (1 - terminated - truncated)[:-1]
    next_value = after.clone()
    next_value[:-1] = torch.where(goes_on > 0, value[1:], after[:-1])
    found = generalised_advantage(reward + gamma * (1 - terminated) * next_value - value,
                                  terminated, truncated, gamma, lam, corrected)
    expected = [[k_step_average(*(x[:, n].tolist() for x in (
        reward, value, next_value, terminated, truncated)), t, gamma, lam, corrected)
        for n in range(shape[1])] for t in range(shape[0])]
    torch.testing.assert_close(found, torch.tensor(expected).double())


class CountingWorlds:
    """Two worlds whose observation counts steps; world 0 is truncated at 3, world 1 ends at 2."""

    num_envs = 2

    def reset(self, seed):
        self.count = np.zeros(2)
        return self._obs(), {}

    def _obs(self):
        return np.stack([self.count, [100.0, 200.0]], -1).astype(np.float32)

    def step(self, action):
        self.count += 1
        ends = self.count == [3, 2]
        info = {'final_obs': np.array([None, None])}
        for i in np.flatnonzero(ends):
            info['final_obs'][i] = self._obs()[i]
            self.count[i] = 0
        return self._obs(), action[:, 0], ends & [False, True], ends & [True, False], info


def counting():
    worlds = HostWorlds(CountingWorlds())
    worlds.reset(0)
    return worlds


def test_a_rollout_records_eps_and_the_true_last_observations():
    learner, worlds = make_learner(), counting()
    first, second = (collect(learner.policy, worlds, 4) for _ in range(2))
    assert first.obs[:, :, 0].tolist() == [[0, 0], [1, 1], [2, 0], [0, 1]]
    assert first.next_obs[:, :, 0].tolist() == [[1, 1], [2, 2], [3, 1], [1, 2]]
    assert first.truncated.tolist() == [[0, 0], [0, 0], [1, 0], [0, 0]]
    assert first.terminated.tolist() == [[0, 0], [0, 1], [0, 0], [0, 1]]
    assert second.obs[0, :, 0].tolist() == [1, 0]
    with torch.no_grad():
        again = learner.policy(first.obs.flatten(0, 1), first.eps.flatten(0, 1))
    torch.testing.assert_close(again, first.action.flatten(0, 1))
    torch.testing.assert_close(first.reward, first.action[..., 0])


def with_known_value(learner):
    """Make V(s) = relu(s_0)."""
    for parameter in learner.value.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        learner.value.weights[0][0, 0, 0] = 1.0
        learner.value.weights[1][0, 0, 0] = 1.0
    return learner


def test_truncation_bootstraps_in_the_middle_and_termination_does_not():
    learner = with_known_value(make_learner(horizon=4, lam=0.5))
    rollout = collect(learner.policy, counting(), 4)._replace(reward=torch.ones(4, 2))
    data, _ = learner.prepare(rollout)
    a3 = 1 + 0.9 * 1 - 0, 1 - 1
    a2 = 1 + 0.9 * 3 - 2, 1 + 0.9 * 1 - 0 + 0.45 * a3[1]
    a1 = 1 + 0.9 * 2 - 1 + 0.45 * a2[0], 1 - 1
    a0 = 1 + 0.9 * 1 - 0 + 0.45 * a1[0], 1 + 0.9 * 1 - 0 + 0.45 * a1[1]
    expected = torch.tensor([a0, a1, a2, a3])
    torch.testing.assert_close(data.value_goal.view(4, 2) - rollout.obs[..., 0], expected)
    torch.testing.assert_close(
        data.advantage.view(4, 2), (expected - expected.mean()) / expected.std(correction=0))


MEAN, STD, GOAL = 0.1, 0.1, 0.3


def linear_gaussian_learner(linear_gaussian, make_exact, estimator, **changes):
    """Return a learner whose policy is nearly N(MEAN, STD^2), its denoiser exact, its V zero."""
    world = linear_gaussian(tau=STD, sigma=0.1, nu=0.15)
    learner = make_learner(estimator, sigma=world.sigma, min_std=0.05, outcome='state', **changes)
    if learner.denoiser is not None:
        make_exact(learner.denoiser, world, 1, 2)
    for network in (learner.policy.net, learner.value):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
    share = math.log(STD / 0.05) / learner.policy.span
    bias = learner.policy.net.biases[-1]
    with torch.no_grad():
        bias[..., 0], bias[..., 1] = math.atanh(MEAN), math.log(share / (1 - share))
    return learner, world, bias


def objective(learner, bias):
    """Return E[-(a + nu w - GOAL)^2], but for a constant, by quadrature."""
    eps = torch.linspace(-6, 6, 2001)
    weight = torch.exp(-0.5 * eps ** 2)
    std = torch.exp(learner.policy.log_std_min + learner.policy.span * bias[0, 0, 1].sigmoid())
    action = torch.tanh(bias[0, 0, 0] + std * eps)
    return -((action - GOAL).square() * weight).sum() / weight.sum()


def play(learner, world, num):
    obs = torch.tensor([MEAN, 0.0]).expand(1, num, 2)
    eps = torch.randn(1, num, 1)
    with torch.no_grad():
        action = learner.policy(obs[0], eps[0])[None]
    outcome = action + world.nu * torch.randn_like(action)
    reward = -(outcome[..., 0] - GOAL).square()
    next_obs = obs + torch.cat([outcome, torch.zeros_like(outcome)], -1)
    return Rollout(obs, eps, action, reward, next_obs, torch.ones(1, num), torch.zeros(1, num))


@pytest.mark.parametrize('estimator', NAMES)
def test_gradient_through_the_recorded_eps_is_the_closed_form(linear_gaussian, make_exact,
                                                              estimator):
    learner, world, bias = linear_gaussian_learner(linear_gaussian, make_exact, estimator)
    data, metrics = learner.prepare(play(learner, world, 150_000))
    scale = metrics['value/residual']
    if estimator == 'critic':  # the right one
        learner._advantages = lambda obs, a: -(a[None, :, 0] - GOAL).square().expand(2, -1) / scale
    else:  # a wrong one, of the right mean: it must not bias the others
        learner._advantages = lambda obs, a: -4.0 * (a[None, :, 0] - MEAN).expand(2, -1)
    learner.moments.copy_(torch.tensor([[1.0, 0.7]]))
    losses = learner._policy_losses(data, learner.estimates(data), {})
    found, = torch.autograd.grad(-losses['policy'], bias)
    expected, = torch.autograd.grad(objective(learner, bias) / scale, bias)
    assert expected.abs().min() > 0.05
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.0)


@pytest.mark.parametrize('lam', [0.0, 1.0])
def test_what_comes_later_counts_through_the_outcome_of_the_step(linear_gaussian, make_exact, lam):
    # The first action's reward comes with the second step, after a noise of its own.
    learner, world, _ = linear_gaussian_learner(
        linear_gaussian, make_exact, 'denoising', baseline='value', lam=lam)
    num = 150_000
    one, two = play(learner, world, num), play(learner, world, num)
    rollout = Rollout(*(torch.cat(pair) for pair in zip(one, two)))
    rollout = rollout._replace(
        reward=torch.cat([torch.zeros(1, num), one.reward + 0.1 * torch.randn(1, num)]),
        terminated=torch.cat([torch.zeros(1, num), torch.ones(1, num)]))
    data, metrics = learner.prepare(rollout)
    estimate = learner.estimates(data)[:num].mean() * metrics['value/residual']
    # V is zero, so only lambda = 1 hears of it.
    expected = 0.9 * -2 * (MEAN - GOAL) if lam else 0.0
    assert estimate.item() == pytest.approx(expected, rel=0.03, abs=0.004)


class RolloutBandit(Bandit):
    def play(self, learner, num):
        obs, eps, action, reward, next_obs = self.draw(learner.policy, num)
        return Rollout(*(x[None] for x in (
            obs, eps, action, reward, next_obs, torch.ones(num), torch.zeros(num))))


def prepared(learner, num=300):
    """Return a rollout of random changes, with large rewards, and what is prepared of it."""
    rollout = RolloutBandit(0.8).play(learner, num)
    rollout = rollout._replace(next_obs=torch.randn(1, num, 2), reward=4 * rollout.reward + 20)
    learner.observe(rollout)
    return rollout, learner.prepare(rollout)[0]


def test_outcomes_are_normalised_changes_or_the_advantage():
    for outcome in ('state', 'achieved_goal', 'value'):
        rollout, data = prepared(make_learner('denoising', outcome=outcome, achieved_goal=(1,)))
        raw = torch.cat([rollout.next_obs - rollout.obs, rollout.reward[..., None]], -1)[0]
        normal = (raw - raw.mean(0)) / raw.std(0, correction=0)
        expected = {'state': normal, 'achieved_goal': normal[:, 1:],
                    'value': data.advantage[:, None]}
        torch.testing.assert_close(data.outcome, expected[outcome], rtol=1e-4, atol=1e-4)


def test_the_value_is_learned_in_units_of_the_returns():
    learner = make_learner('critic')
    rollout, data = prepared(learner)
    goal, normal = data.value_goal, learner.policy.norm(data.obs)
    torch.testing.assert_close(goal, rollout.reward[0])  # each episode is one step
    raw = learner.value(normal)[0, :, 0].detach()
    torch.testing.assert_close(learner._values(rollout.obs)[0].detach(),
                               goal.mean() + goal.std(correction=0) * raw)
    error = (raw - (goal - goal.mean()) / goal.std(correction=0)).square().mean()
    torch.testing.assert_close(learner._fit_losses(data, {})['value'].detach(), error)


@pytest.mark.parametrize('baseline', ['critic', 'value'])
@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust'])
def test_estimates_are_those_of_the_estimator_at_the_denoised_action(estimator, baseline):
    learner = make_learner(estimator, action_dim=2, baseline=baseline, minibatches=1).eval()
    _, data = prepared(learner)
    learner.moments.copy_(torch.tensor([[1.0, 0.7]]))
    learner.denoiser.power[1] = 0.25
    torch.manual_seed(1)  # the same denoising noise
    found = learner.estimates(data)
    torch.manual_seed(1)
    obs = learner.policy.norm(data.obs)
    denoised = learner.denoiser(data.action, obs, data.outcome)
    action = denoised.action.requires_grad_()
    q = learner._advantages(obs, action).gather(0, 1 - data.fold[None])[0]
    guide, = torch.autograd.grad(q.sum(), action)
    error = (data.advantage - (q if baseline == 'critic' else 0.0)).detach()
    explained = (guide * denoised.disturbance).sum(-1)
    lean = 0.7 if estimator == 'doubly_robust' else 0.0
    expected = (error - lean * explained)[:, None] * denoised.score + lean * guide
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    if lean:  # the moments follow
        weight = learner.denoiser.sensitivity.square()
        assert weight.min() < 1
        weighed = (weight * guide * denoised.disturbance).sum(-1)
        now = torch.stack([(weighed * explained).mean(), (weighed * error).mean()])
        torch.testing.assert_close(learner.moments[0], 0.9 * torch.tensor([1.0, 0.7]) + 0.1 * now)


def test_each_critic_is_fitted_at_the_denoised_action_and_measured_on_the_other_half():
    learner, metrics = make_learner().eval(), {}
    _, data = prepared(learner)
    torch.manual_seed(1)  # the same denoising noise
    loss = learner._fit_losses(data, metrics)['critic']
    torch.manual_seed(1)
    obs = learner.policy.norm(data.obs)
    q = learner._advantages(obs, learner.denoiser(data.action, obs, data.outcome).action)
    own, other = ((q.gather(0, fold[None])[0] - data.advantage).square().mean()
                  for fold in (data.fold, 1 - data.fold))
    torch.testing.assert_close(loss, 2 * own)
    torch.testing.assert_close(metrics['critic/residual'], other.sqrt().detach())


def test_an_update_sees_observations_as_the_policy_did_that_acted():
    learner, seen = make_learner(), []
    bandit = RolloutBandit(0.8)
    learner.observe(bandit.play(learner, 100))
    rollout, estimates = bandit.play(learner, 64), learner.estimates

    def look(data):
        seen.append((learner.policy(data.obs, data.eps).detach(), data.action))
        return estimates(data)
    learner.estimates = look
    learner.update(rollout)
    torch.testing.assert_close(*seen[0])
    assert learner.policy.norm.count == 164 == learner.outcome_norm.count


def test_each_critic_is_fitted_to_one_half_and_used_for_the_other():
    learner = make_learner(horizon=1, minibatches=1)
    rollout = RolloutBandit(0.8).play(learner, 64)
    learner.observe(rollout)
    data, _ = learner.prepare(rollout)
    assert data.fold.tolist() == [0, 1] * 32
    weight = learner.critic.weights[0]
    for fold in (0, 1):
        part = type(data)(*(x[data.fold == fold] for x in data))
        gradient, = torch.autograd.grad(learner._fit_losses(part, {})['critic'], weight)
        assert gradient[fold].abs().sum() > 0 and gradient[1 - fold].abs().sum() == 0
        learner.zero_grad()
        before = learner._advantages
        learner._advantages = lambda obs, a: torch.stack([3 * a[:, 0], 5 * a[:, 0]])
        learner.config = OnPolicyConfig(estimator='critic')
        denoiser, learner.denoiser = learner.denoiser, None
        assert learner.estimates(part).unique().tolist() == [5.0 if fold == 0 else 3.0]
        learner.denoiser, learner._advantages = denoiser, before


def test_drift_and_temperature_have_their_weights():
    learner = make_learner('critic', action_dim=2, drift=3.0, temperature=0.5, target_entropy=-1.5)
    for parameter in learner.slow_policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    _, data = prepared(learner)
    data = data._replace(eps=torch.randn(300, 2))
    losses = learner._policy_losses(data, torch.zeros(300, 2), {})
    dists = [Normal(mean, log_std.exp()) for mean, log_std in (
        learner.policy.distribution(data.obs, net)
        for net in (learner.slow_policy, learner.policy.net))]
    torch.testing.assert_close(losses['drift'], 3.0 * kl_divergence(*dists).sum(-1).mean())
    entropy = -learner.policy.sample(data.obs, data.eps)[1].mean()
    torch.testing.assert_close(losses['policy'], -0.5 * entropy)
    torch.testing.assert_close(losses['temperature'], 0.5 * (entropy + 1.5 * 2))


def test_the_slow_policy_follows_once_a_rollout():
    learner = make_learner('critic', drift=1.0, drift_rate=0.25)
    before = [p.clone() for p in learner.slow_policy.parameters()]
    learner.update(RolloutBandit(0.8).play(learner, 64))
    for old, now, goal in zip(before, learner.slow_policy.parameters(),
                              learner.policy.net.parameters()):
        assert not torch.equal(old, goal)
        torch.testing.assert_close(now, 0.75 * old + 0.25 * goal)


def test_reinforce_clips_the_ratio_where_it_would_gain_from_it():
    learner = make_learner('reinforce', clip=0.2)
    _, data = prepared(learner, 5)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    expected = torch.tensor([1.2, -1.5, 0.5, -0.8, 2.2])
    log_prob = learner.policy.log_prob(data.obs, data.action).detach()
    data = data._replace(log_prob=log_prob - ratio.log())
    loss = learner._policy_losses(data, advantage[:, None], {})['policy'].detach()
    torch.testing.assert_close(loss, -expected.mean())


@pytest.mark.parametrize('estimator, outcome', [
    *((name, 'state') for name in NAMES), ('denoising', 'value'),
    ('doubly_robust', 'achieved_goal')])
def test_policy_finds_the_optimum_of_a_stochastic_bandit(estimator, outcome):
    learner = make_learner(
        estimator, outcome=outcome, achieved_goal=(1,), min_std=0.2, policy_rate=5e-3,
        value_rate=5e-3, denoiser_rate=5e-3, minibatches=2, num_epochs=2)
    bandit, states, modes = RolloutBandit(0.8), torch.linspace(-0.8, 0.8, 9), []
    learner.observe(bandit.play(learner, 1000))
    for _ in range(120):
        learner.update(bandit.play(learner, 512))
        with torch.no_grad():
            modes.append(learner.policy(bandit.obs(states), torch.zeros(9, 1))[:, 0])
    # With constant step sizes the policy wanders about the optimum: look at its average.
    last = torch.stack(modes[-40:]).mean(0)
    distance = [(mode - 0.8 * states).square().mean().sqrt().item() for mode in (modes[0], last)]
    assert distance[0] > 0.3 and distance[1] < 0.1, distance
    assert learner.policy.distribution(bandit.obs(states))[1].exp().max() < 0.3


def test_drift_and_entropy_change_the_policy_as_they_should():
    rollout = RolloutBandit(0.8).play(make_learner(), 256)
    rollout = rollout._replace(reward=torch.zeros(1, 256))

    def width(**changes):
        learner = make_learner('reinforce', policy_rate=3e-3, **changes)
        for parameter in learner.value.parameters():  # then there is no advantage either
            torch.nn.init.zeros_(parameter)
        for _ in range(10):
            metrics = learner.update(rollout)
        return metrics['policy/entropy'].item(), learner.log_temperature.exp().item()

    still, _ = width()
    free, _ = width(temperature=1.0)
    held, _ = width(temperature=1.0, drift=100.0, drift_rate=1e-6)
    assert free > still + 0.2 and abs(held - still) < 0.1
    assert width(temperature=0.1, target_entropy=2.0)[1] > 0.1 > width(
        temperature=0.1, target_entropy=-5.0)[1]


def test_a_rare_return_far_from_all_others_is_told():
    """A value that is clipped before it is learned comes back too small."""
    learner = make_learner()
    returns = torch.zeros(10_000, 1)
    returns[:10] = 100.0
    learner.return_norm.update(returns)
    torch.testing.assert_close(
        learner.return_norm.invert(learner.return_norm(returns)), returns, rtol=0, atol=1e-4)


def test_settings_are_bounded():
    with pytest.raises(SpecError, match='learner.lam must be at most 1, got 1.5'):
        load(OnPolicyConfig, {'lam': 1.5}, 'learner')
    with pytest.raises(SpecError, match='learner.estimator must be one of .* got model'):
        load(OnPolicyConfig, {'estimator': 'model'}, 'learner')
    with pytest.raises(SpecError, match='on_policy.outcome must not be achieved_goal, since'):
        make_learner(outcome='achieved_goal')
