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
import math

from bandit import Bandit
import pytest
from small_training import stop_after, tiny_config, train
import torch
from torch.distributions import kl_divergence, Normal

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.networks import set_products
from dpg_robot.learn.policy import SATURATION, SquashedGaussianPolicy
from dpg_robot.learn.replay import Batch, Replay
from dpg_robot.learn.routes import importance_weights, inverted_ascent, sample_gradient


def make_policy(spread=1.0):
    policy = SquashedGaussianPolicy(3, 2, (16,), 0.1)
    with torch.no_grad():
        policy.net.weights[-1].normal_(0, spread)
    return policy


def make_learner(estimator='denoising', **changes):
    torch.manual_seed(0)
    settings = {'hidden': (32,), 'denoiser_hidden': (32,), 'gradient_hidden': (32,), 'gamma': 0.0,
                'target_entropy': None, 'temperature': 0.0, 'route': 'inverted'} | changes
    return Learner(LearnerConfig(estimator=estimator, **settings), 2, 1)


def test_inversion_returns_the_eps_that_acted():
    policy, obs, eps = make_policy(0.1), torch.randn(500, 3), torch.randn(500, 2)
    torch.testing.assert_close(policy.invert(obs, policy(obs, eps)), eps, rtol=1e-3, atol=1e-3)
    policy, obs, eps = policy.double(), obs.double(), 3 * eps.double()
    torch.testing.assert_close(policy.invert(obs, policy(obs, eps)), eps)


def test_saturated_actions_are_inverted_to_the_nearest_that_can_be():
    policy, obs = make_policy(0.0), torch.zeros(2, 3)
    action = torch.tensor([[1.0, -1.0], [1 - SATURATION / 9, SATURATION / 9 - 1]])
    eps = policy.invert(obs, action)
    assert torch.isfinite(eps).all() and torch.equal(eps[0], eps[1])
    assert (policy(obs, eps) - action).abs().max() < 1.1 * SATURATION
    assert torch.isfinite(policy.log_prob(obs, action)).all()
    near = torch.tensor([[0.9999, -0.9999]])
    torch.testing.assert_close(policy(obs[:1], policy.invert(obs[:1], near)), near)


def test_density_of_an_action_is_that_of_the_eps_that_gave_it():
    policy, obs, eps = make_policy().double(), torch.randn(50, 3).double(), torch.randn(50, 2)
    action, log_prob = policy.sample(obs, eps.double())
    torch.testing.assert_close(action, policy(obs, eps.double()))
    torch.testing.assert_close(policy.log_prob(obs, action), log_prob)


def test_divergence_is_that_of_the_gaussians():
    policy, other, obs = make_policy(), make_policy(), torch.randn(50, 3)
    gaussians = [Normal(mean, log_std.exp()) for mean, log_std in (
        policy.distribution(obs, other.net), policy.distribution(obs))]
    expected = kl_divergence(*gaussians).sum(-1).mean()
    torch.testing.assert_close(policy.divergence(obs, other.net), expected)


def batch_with(obs, action, reward, next_obs, log_prob):
    num = len(obs)
    return Batch(obs, action, reward, next_obs, torch.ones(num), torch.arange(num) % 2.0, log_prob)


def test_weights_are_ratios_of_densities_truncated():
    policy, obs, action = make_policy(), torch.randn(9, 3), torch.rand(9, 2) * 1.9 - 0.95
    ratio = torch.linspace(0.1, 4.0, 9)
    log_prob = policy.log_prob(obs, action).detach() - ratio.log()
    batch = batch_with(obs, action, torch.zeros(9), obs, log_prob)
    torch.testing.assert_close(importance_weights(policy, batch, 2.5), ratio.clamp(max=2.5))
    unknown = Batch(*batch[:-1])
    with pytest.raises(ValueError, match='log_prob of every transition must be finite'):
        importance_weights(policy, unknown, 2.5)


def test_the_same_policy_has_weight_one_in_bfloat16_too():
    torch.manual_seed(0)
    policy = SquashedGaussianPolicy(6, 8, (64, 64), min_std=0.1).eval()
    set_products(policy, 'bfloat16')
    obs = torch.randn(200, 6)
    action = policy.sample(obs)[0].detach()
    log_prob = policy.log_prob(obs, action).detach()
    batch = batch_with(obs, action, torch.zeros(200), obs, log_prob)
    weight = importance_weights(policy.train(), batch, cap=2.0)
    torch.testing.assert_close(weight, torch.ones(200))
    assert policy.net.training and policy.training


def test_replay_keeps_the_density_of_the_behaviour():
    replay, obs = Replay(4, 2, 1), torch.zeros(2, 2)
    replay.add(batch_with(obs, obs[:, :1], obs[:, 0], obs, torch.tensor([-0.5, 0.5])))
    assert replay.data.log_prob.tolist()[:2] == [-0.5, 0.5]
    assert replay.data.log_prob[2:].isnan().all()


def test_trainer_records_the_density_of_the_behaviour(tmp_path):
    config = tiny_config('learner.estimator=critic', 'trainer.updates_per_step=0.01')
    trainer = train(config, tmp_path, should_stop=stop_after(15))
    data, dims = trainer.algorithm.replay.data, trainer.learner.action_dim
    torch.testing.assert_close(data.log_prob[:20], torch.full((20,), -dims * math.log(2.0)))
    # No update has come yet, and only the normaliser has moved since the last step was taken.
    later = slice(28, 30)
    expected = trainer.learner.policy.log_prob(data.obs[later], data.action[later])
    torch.testing.assert_close(data.log_prob[later], expected, rtol=0.2, atol=0.2)
    assert not torch.allclose(data.log_prob[later], data.log_prob[:2], atol=1e-3)


BEHAVIOUR, MEAN, STD, NU, GOAL = 0.0, 0.05, 0.12, 0.15, 0.3


def test_gradient_through_the_inverted_eps_is_the_closed_form(linear_gaussian, make_exact):
    # The behaviour is N(BEHAVIOUR, STD^2), the policy N(MEAN, STD^2); nothing is truncated.
    world = linear_gaussian(tau=STD, sigma=0.06, nu=NU)
    learner = make_learner('denoising', sigma=world.sigma, min_std=0.05)
    source, policy, num = learner.action_gradient, learner.policy, 200_000
    make_exact(source.denoiser, world, 1, 2)
    source._advantages = lambda obs, a: -((a[None, :, 0] - GOAL).square()
                                          + world.outcome_var).expand(2, -1)
    for parameter in (*policy.net.parameters(), *learner.value_target.parameters()):
        torch.nn.init.zeros_(parameter)
    share = math.log(STD / 0.05) / policy.span
    bias = policy.net.biases[-1]
    with torch.no_grad():
        source.scale.fill_(1.0)
        bias[..., 0], bias[..., 1] = math.atanh(MEAN), math.log(share / (1 - share))
    obs = torch.tensor([[BEHAVIOUR, 0.0]]).expand(num, 2)
    action, outcome = world.draw(num, BEHAVIOUR)
    log_prob = Normal(BEHAVIOUR, STD).log_prob(action)[:, 0]
    next_obs = obs + torch.cat([outcome, torch.zeros(num, 1)], -1)
    batch = batch_with(obs, action, -(outcome[:, 0] - GOAL).square(), next_obs, log_prob)
    metrics = {}
    ascent, _ = inverted_ascent(policy, source, batch, 1e6, metrics)
    found, = torch.autograd.grad(ascent.mean(), bias)
    assert metrics['route/weight'].item() == pytest.approx(1.0, abs=0.02)
    eps = torch.linspace(-6, 6, 2001)
    density = torch.exp(-0.5 * eps ** 2) / torch.exp(-0.5 * eps ** 2).sum()
    std = torch.exp(policy.log_std_min + policy.span * bias[0, 0, 1].sigmoid())
    value = -((torch.tanh(bias[0, 0, 0] + std * eps) - GOAL).square() * density).sum()
    expected, = torch.autograd.grad(value, bias)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.0)
    ascent, _ = inverted_ascent(policy, source, batch, 1.0, metrics)
    assert metrics['route/truncated'] > 0.2 and metrics['route/weight'] < 0.95


def bandit_batch(learner, num):
    """One step: o = a + 0.25 w, reward -(o - 0.4 s)^2, a = tanh(0.6 x), whatever s is."""
    bandit = Bandit(0.4)
    obs, raw = bandit.obs(torch.rand(num) * 2 - 1), 0.6 * torch.randn(num, 1)
    action = raw.tanh()
    reward, next_obs = bandit.step(obs, action)
    return batch_with(obs, action, reward, next_obs,
                      (Normal(0.0, 0.6).log_prob(raw) - (1 - action.square()).log())[:, 0])


@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust', 'critic', 'model'])
def test_inverted_route_finds_the_optimum_from_the_actions_of_another_policy(estimator):
    learner = make_learner(estimator, min_std=0.3, policy_rate=3e-3, critic_rate=5e-3,
                           denoiser_rate=5e-3, max_weight=4.0, sigma=0.1)
    learner.observe(bandit_batch(learner, 5000))
    states, modes = torch.linspace(-0.8, 0.8, 9), []
    for _ in range(350):
        learner.update(bandit_batch(learner, 256))
        with torch.no_grad():
            obs = torch.stack([states, torch.zeros(9)], -1)
            modes.append(learner.policy(obs, torch.zeros(9, 1))[:, 0])
    last = torch.stack(modes[-100:]).mean(0)
    distance = [(mode - 0.4 * states).square().mean().sqrt().item() for mode in (modes[0], last)]
    assert distance[0] > 0.18 and distance[1] < 0.1, distance


def test_per_sample_estimate_without_a_denoiser_is_the_learned_function():
    learner, batch = make_learner('critic'), bandit_batch(None, 32)
    torch.testing.assert_close(sample_gradient(learner.action_gradient, batch),
                               learner.action_gradient(batch.obs, batch.action))


def test_per_sample_estimate_with_a_denoiser_leans_on_its_guide_in_units_of_y():
    learner = make_learner('doubly_robust')
    batch, source = bandit_batch(learner, 64), learner.action_gradient.train()
    learner.observe(batch)
    source.scale.fill_(1.7)
    source.moments[0] = torch.tensor([1.0, 0.0, 0.7])
    twin = copy.deepcopy(source)
    torch.manual_seed(1)  # the same denoising noise
    found = sample_gradient(source, batch)
    torch.manual_seed(1)
    sample, _ = twin.per_sample(batch)
    guide, = sample.guides
    explained = (guide * sample.disturbance).sum(-1)
    expected = (sample.advantage - 0.7 * explained)[:, None] * sample.score + 0.7 * guide
    torch.testing.assert_close(found, 1.7 * expected, rtol=5e-3, atol=5e-3)


def test_inverted_route_fits_no_amortised_gradient():
    learner = make_learner('doubly_robust')
    before = [p.clone() for p in learner.action_gradient.gradient.parameters()]
    learner.update(bandit_batch(learner, 64))
    after = learner.action_gradient.gradient.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_a_route_that_is_wrong_for_the_estimator_is_refused():
    with pytest.raises(SpecError, match='learner.route must be amortised for .* reinforce'):
        load(LearnerConfig, {'route': 'inverted', 'estimator': 'reinforce'}, 'learner')
    with pytest.raises(SpecError, match='learner.route must be one of amortised, inverted'):
        load(LearnerConfig, {'route': 'other'}, 'learner')
