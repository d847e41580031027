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

"""Fitting estimators hard to fixed transitions."""

import pytest
import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn import fit as module
from dpg_robot.learn.denoiser import Denoiser
from dpg_robot.learn.estimators import best_lean, ESTIMATORS, lean_moments
from dpg_robot.learn.fit import fit_gradient
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.networks import EnsembleMLP
from dpg_robot.learn.replay import Batch

CONFIG = {'hidden': (32,), 'denoiser_hidden': (32,), 'gradient_hidden': (32,), 'gamma': 0.0,
          'sigma': 0.3, 'denoiser_rate': 5e-3, 'gradient_rate': 5e-3}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, 'NUM_STEPS', 600)
    monkeypatch.setattr(module, 'CHECK_EVERY', 100)


@pytest.fixture
def very_quick(monkeypatch):
    for name, value in (('NUM_STEPS', 20), ('CHECK_EVERY', 10)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def data(linear_gaussian):
    """Return transitions of o = a + nu w with the reward -o^2."""
    obs = torch.stack([2 * torch.rand(4000) - 1, torch.zeros(4000)], -1)
    action, outcome = linear_gaussian().draw(4000, obs[:, :1] / 2)
    return Batch(obs, action, -outcome[:, 0].square(), torch.cat([obs[:, :1], outcome], -1),
                 torch.zeros(4000), torch.zeros(4000), torch.zeros(4000))


def fit(names, data, seed=0, **changes):
    torch.manual_seed(0)
    config = LearnerConfig(**CONFIG | changes)
    learner = Learner(config, 2, 1)
    for parameter in learner.value_target.parameters():
        torch.nn.init.zeros_(parameter)
    return fit_gradient(config, names, data, learner.policy, learner.value_target, seed)


def slope_of(gradient):
    obs = torch.stack([torch.linspace(-0.9, 0.9, 50), torch.zeros(50)], -1)
    action = obs[:, :1] / 2
    got = gradient(obs, action)
    return ((got * action).sum() / action.square().sum()).item()


@pytest.mark.parametrize('names', [('denoising', 'doubly_robust', 'critic', 'model'),
                                   ('disturbance_critic', 'reinforce')])
def test_fits_have_the_gradient_of_a_quadratic_reward(quick, data, names):
    fits = fit(names, data, hidden=(64, 64))
    assert tuple(fits) == names
    for name, gradient in fits.items():
        assert slope_of(gradient) == pytest.approx(-2.0, abs=0.6), name


@pytest.mark.parametrize('names', [
    ('doubly_robust', 'critic', 'model'), ('model', 'critic'),
    ('discriminative', 'critic', 'model')])
def test_an_estimator_made_of_shared_networks_has_its_scale(very_quick, data, names):
    fits = fit(names, data, lean_on='both')
    alone = fit(('model',), data)['model']
    obs, action = data.obs[:20], data.action[:20]
    assert fits['model'].model is fits[names[0]].model
    expected = data.reward.square().mean().sqrt()  # V is 0
    for gradient in (*fits.values(), alone):
        assert gradient.scale.item() == pytest.approx(expected.item(), rel=1e-5)
    assert fits['model'](obs, action).abs().min() > 0


def test_what_can_be_shared_is(very_quick, data):
    fits = fit(tuple(ESTIMATORS), data, lean_on='both', weigh_action=True)
    denoisers = {id(f.denoiser) for f in fits.values() if f.denoiser is not None}
    models = {id(f.model) for f in fits.values() if f.model is not None}
    critics = {name: id(f.critic) for name, f in fits.items()}
    assert len(denoisers) == len(models) == 1
    kinds = [('disturbance_critic',), ('denoising', 'doubly_robust'),
             ('critic', 'model', 'discriminative', 'reinforce')]
    shared = [{critics.pop(name) for name in kind} for kind in kinds]
    assert not critics and [len(each) for each in shared] == [1, 1, 1]
    assert len(set.union(*shared)) == 3


def test_the_same_seed_gives_the_same_fit(very_quick, data):
    places = data.obs[:9], data.action[:9]
    one, same, other = (fit(('denoising',), data, seed=seed)['denoising'](*places)
                        for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize('name, others', [
    ('denoising', ('critic', 'discriminative')), ('critic', ('doubly_robust',)),
    ('model', ('critic',)), ('discriminative', ('model', 'reinforce'))])
def test_a_fit_does_not_depend_on_what_else_is_asked_for(very_quick, data, name, others):
    places = data.obs[:9], data.action[:9]
    alone, among = (fit(names, data)[name](*places) for names in ((name,), (*others, name)))
    assert torch.equal(alone, among)


def test_each_network_has_its_own_decay_and_step_size(
        very_quick, data, monkeypatch):
    groups, make = [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, 'AdamW', lambda given, **rest: (
        groups.append(dict(given[0])), make(given, **rest))[1])
    gradient = fit(('doubly_robust',), data, lean_on='both', critic_rate=0.5)['doubly_robust']
    found = {name: (group['lr'], group['weight_decay']) for group in groups
             for name in ('denoiser', 'model', 'critic', 'gradient')
             if group['params'][0] is next(getattr(gradient, name).parameters())}
    assert found == {'denoiser': (5e-3, 0.0), 'model': (1e-3, 0.0), 'critic': (1e-3, 0.3),
                     'gradient': (1e-3, 0.3)}
    assert len(gradient.critic.weights[0]) == len(gradient.gradient.weights[0]) == 4


def test_the_best_parameters_on_unseen_transitions_are_kept(very_quick, data, monkeypatch):
    seen, losses = [], iter([3.0, 1.0, 2.0])

    def judge(fit, network, unseen):
        assert (unseen.held_out == 1).all() and len(unseen.held_out) == 400
        seen.append([p.clone() for p in getattr(fit, network).parameters()])
        return next(losses)
    monkeypatch.setattr(module, '_held_out_loss', judge)
    monkeypatch.setattr(module, 'NUM_STEPS', 30)
    gradient = fit(('critic',), data)['critic']
    assert len(seen) == 3
    for kept, second, last in zip(gradient.critic.parameters(), seen[1], seen[2]):
        assert torch.equal(kept, second) and not torch.equal(kept, last)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_precision_reaches_every_network_of_a_fit(very_quick, data, precision):
    fits = fit(('doubly_robust', 'critic'), data, lean_on='both', precision=precision)
    found = {name.split('.')[0]: module.narrow for gradient in fits.values()
             for name, module in gradient.named_modules() if isinstance(module, EnsembleMLP)}
    assert found == {'value': False} | dict.fromkeys(
        ('critic', 'denoiser', 'model', 'gradient'), precision == 'bfloat16')


def test_held_out_transitions_are_not_trained_on(very_quick, data):
    held_out = module.hold_out(torch.arange(4000), module.HELD_OUT_EVERY)
    poisoned = data._replace(
        held_out=held_out, reward=torch.where(held_out == 1, torch.nan, data.reward))
    torch.manual_seed(0)
    learner = Learner(LearnerConfig(**CONFIG), 2, 1)
    gradient = module.ActionGradient(
        LearnerConfig(**CONFIG | {'estimator': 'critic'}), 2, 1, learner.policy.norm,
        learner.value_target)
    # No loss is the least, so nothing can be kept.
    with pytest.raises(TypeError, match='NoneType'):
        module._fit(gradient, 'critic', poisoned, 0)
    assert all(p.isfinite().all() for p in gradient.critic.parameters())
    assert gradient.scale.isfinite()


def test_shares_are_an_average_over_transitions_that_nothing_was_fitted_to(very_quick, data):
    gradient = fit(('doubly_robust',), data)['doubly_robust']
    held_out = module.hold_out(torch.arange(4000), module.HELD_OUT_EVERY)
    unseen, draws = Batch(*(x[held_out == 1] for x in data)), []
    torch.manual_seed(1)  # the same denoising noise
    for _ in range(module.NUM_DRAWS):
        sample, own = gradient.per_sample(unseen)
        draws.append(lean_moments(sample._replace(guides=torch.cat([sample.guides, own[None]]))))
    torch.manual_seed(1)
    module._weigh(gradient, data._replace(
        held_out=held_out, reward=torch.where(held_out == 1, data.reward, torch.nan)))
    torch.testing.assert_close(gradient.moments, torch.stack(draws).mean(0))
    torch.testing.assert_close(gradient.shares, best_lean(gradient.moments))


def test_moments_of_the_denoiser_are_averages_over_the_same(very_quick, data, monkeypatch):
    seen, forward = [], Denoiser.forward

    def spied(self, action, *rest):
        before = self.power.clone()
        got = forward(self, action, *rest)
        seen.append((self.moment_rate, action, before, self.power.clone()))
        return got
    monkeypatch.setattr(Denoiser, 'forward', spied)
    denoiser = fit(('denoising', 'reinforce'), data)['reinforce'].denoiser
    held_out = module.hold_out(torch.arange(4000), module.HELD_OUT_EVERY) == 1
    first = [rate for rate, *_ in seen].index(1.0)
    last = first + module.NUM_DRAWS
    assert [rate for rate, *_ in seen[first:last]] == [
        1 / (draw + 1) for draw in range(module.NUM_DRAWS)]
    draws = []
    for rate, action, before, after in seen[first:last]:
        assert torch.equal(action, data.action[held_out])
        draws.append((after - (1 - rate) * before) / rate)
    torch.testing.assert_close(denoiser.power, torch.stack(draws).mean(0), rtol=1e-3, atol=1e-3)
    assert {rate for rate, *_ in seen[last:]} == {0.0}  # later fits leave them as they are
    torch.testing.assert_close(denoiser.unseen_power, denoiser.power)
    assert denoiser.num_unseen == held_out.sum()
    assert denoiser.unseen_square.gt(denoiser.power.square()).all()


def test_policy_and_value_stay_as_they_are(very_quick, data):
    torch.manual_seed(0)
    learner = Learner(LearnerConfig(**CONFIG), 2, 1)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    fit_gradient(learner.config, ('doubly_robust', 'critic'), data, learner.policy,
                 learner.value_target, 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_unknown_names_are_refused(data):
    with pytest.raises(SpecError, match='^estimators must be among denoising, .*, got magic$'):
        fit(('denoising', 'magic'), data)


def test_too_few_transitions_are_named(random_batch):
    with pytest.raises(SpecError, match='transitions must be at least 500, .* got 499'):
        fit_gradient(LearnerConfig(), ['critic'], random_batch(499), None, None, 0)
