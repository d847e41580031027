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

"""The parts of the action gradient, each against what it must compute."""

import pytest
import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.action_gradient import UNSEEN_MEMORY, UNSEEN_ROUNDS
from dpg_robot.learn.denoiser import DOUBT, NEGLIGIBLE
from dpg_robot.learn.estimators import (
    best_lean,
    ESTIMATORS,
    lean_moments,
    regression_error,
    regression_loss,
)
from dpg_robot.learn.outcome import change_and_reward
from dpg_robot.learn.replay import Batch

NAMES = tuple(ESTIMATORS)


def spy(gradient):
    """Record the samples that a gradient collects for its estimator."""
    samples, collect = [], gradient._sample

    def record(*args):
        samples.append(collect(*args))
        return samples[-1]
    gradient._sample = record
    return samples


def asked_for(gradient):
    """Make the corrections something else than zero."""
    gradient.scale.fill_(1.0)
    torch.nn.init.normal_(gradient.gradient.weights[-1])


def make_certain(denoiser, *certainties):
    """Make it so certain that the outcome depends on each element of the action, one beyond doubt.

    The mean of each is 1; what differs is the square of its standard error.
    """
    doubt = (1 - torch.tensor(certainties)) * (1 - NEGLIGIBLE ** 2) / DOUBT ** 2
    for buffer, value in ((denoiser.unseen_power, 1.0), (denoiser.num_unseen, 500.0),
                          (denoiser.unseen_square, 1 + 500 * doubt)):
        buffer.copy_(torch.as_tensor(value))
    torch.testing.assert_close(denoiser.certainty, torch.tensor(certainties))


def share_out(gradient, *shares):
    """Give guides and, last, the amortised gradient these shares, and moments that lead there."""
    shares = torch.tensor(shares)
    gradient.moments.copy_(torch.cat([torch.eye(len(shares)), shares[:, None]], -1))
    gradient.shares.copy_(shares)


def test_target_bootstraps_unless_terminated(make_gradient, with_known_value):
    gradient = make_gradient(gamma=0.9, reward_scale=0.5)
    with_known_value(gradient.value)
    # The first row goes on, or was truncated: that is the same. The second row terminated.
    batch = Batch(torch.full((3, 2), 50.0), torch.zeros(3, 1), torch.tensor([1.0, 1.0, 1.0]),
                  torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]),
                  torch.tensor([0., 1., 0.]), torch.zeros(3))
    torch.testing.assert_close(gradient.target(batch), torch.tensor([0.5 + 0.9 * 6, 0.5, 0.5]))


def test_target_normalises_the_next_observation(make_gradient, with_known_value, random_batch):
    gradient, batch = make_gradient(gamma=0.5), random_batch(100)
    with_known_value(gradient.value)
    batch = batch._replace(obs=batch.obs * 10 + 40)
    gradient.norm.update(batch.obs)
    bootstrap = 3 * (batch.next_obs[:, 0] - batch.obs[:, 0].mean()) \
        / batch.obs[:, 0].std(unbiased=False)
    expected = batch.reward + 0.5 * (1 - batch.terminated) * bootstrap.clamp(0, 30)
    torch.testing.assert_close(gradient.target(batch), expected, rtol=1e-4, atol=1e-4)


def test_outcome_is_the_change_and_the_reward():
    batch = Batch(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1), torch.tensor([5.0]),
                  torch.tensor([[1.5, 4.0]]), torch.zeros(1), torch.zeros(1))
    assert change_and_reward(batch).tolist() == [[0.5, 2.0, 5.0]]


def test_denoiser_is_told_the_outcome_that_was_chosen(make_gradient, random_batch, monkeypatch):
    batch = random_batch(50, obs_dim=3)
    batch = batch._replace(reward=4 * batch.reward + 2)
    raw = change_and_reward(batch)
    normal = (raw - raw.mean(0)) / raw.std(0, unbiased=False)
    expected = {'state': normal, 'achieved_goal': normal[:, [2, 0, 3]], 'reward': normal[:, 3:]}
    for outcome in ('state', 'achieved_goal', 'reward', 'value'):
        gradient = make_gradient('denoising', 3, outcome=outcome, achieved_goal=(2, 0))
        gradient.observe(batch)
        told = []
        gradient.denoiser.register_forward_pre_hook(lambda module, args: told.append(args[2]))
        gradient.losses(batch)
        if outcome == 'value':  # (y - V(s)) / scale
            difference = batch.reward - gradient._value(batch.obs).detach()
            expected['value'] = (difference / difference.square().mean().sqrt())[:, None]
        torch.testing.assert_close(told[0], expected[outcome], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('estimator, is_used', [
    ('critic', False), ('disturbance_critic', False), ('denoising', True), ('reinforce', True)])
def test_a_model_as_baseline_is_learned_where_there_is_a_baseline(
        make_gradient, estimator, is_used):
    gradient = make_gradient(estimator=estimator, baseline='model')
    assert (gradient.model is not None) == is_used


def test_achieved_goal_as_outcome_needs_one(make_gradient):
    with pytest.raises(ValueError, match='^learner.outcome must not be achieved_goal, since '
                                         'the task has no achieved goal, got achieved_goal$'):
        make_gradient(outcome='achieved_goal')


def test_scale_is_the_deviation_of_the_target_from_the_value(
        make_gradient, with_known_value, random_batch):
    gradient, batch = make_gradient('critic', gamma=0.9), random_batch(100)
    with_known_value(gradient.value)
    difference = gradient.target(batch) - 3 * batch.obs[:, 0].clamp(min=0)
    first = difference.square().mean().sqrt()
    gradient.losses(batch)
    torch.testing.assert_close(gradient.scale, first)
    # The critic learns the advantage in that unit.
    q = gradient.critic(torch.cat([batch.obs, batch.action], -1))[..., 0]
    loss = (q - difference / first).square().mean(1).sum()
    torch.testing.assert_close(gradient.losses(batch)[0]['critic'], loss)
    torch.testing.assert_close(gradient.advantages(batch.obs, batch.action), first * q)
    gradient.losses(batch._replace(reward=batch.reward + 100))
    assert first < gradient.scale < 1.3 * first  # the scale follows slowly


def test_a_scale_that_was_set_stays(make_gradient, random_batch):
    gradient, batch = make_gradient('critic', gamma=0.9), random_batch(100)
    gradient.norm.update(3 * batch.obs + 1)
    gradient.set_scale(batch)
    with torch.no_grad():
        difference = gradient.target(batch) - gradient._value(gradient.norm(batch.obs))
    expected = difference.square().mean().sqrt()
    for _ in range(3):
        gradient.losses(batch._replace(reward=batch.reward + 100))
    torch.testing.assert_close(gradient.scale, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('estimator', NAMES)
def test_a_look_at_the_losses_changes_nothing(make_gradient, random_batch, estimator):
    gradient, batch = make_gradient(estimator, lean_on='both'), random_batch(40)
    gradient.observe(batch)
    gradient.losses(batch)
    before = {name: value.clone() for name, value in gradient.state_dict().items()}
    gradient.eval()
    gradient.losses(random_batch(40)._replace(reward=5 * torch.randn(40)))
    after = gradient.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_only_the_wanted_losses_come_back(make_gradient, random_batch):
    gradient, batch = make_gradient(lean_on='both'), random_batch(40)
    for wanted in ('denoiser',), ('model',), ('critic',), ('gradient',), ('critic', 'gradient'):
        assert tuple(gradient.losses(batch, wanted)[0]) == wanted
    assert set(gradient.losses(batch)[0]) == {'denoiser', 'model', 'critic', 'gradient'}


@pytest.mark.parametrize('estimator', NAMES)
def test_losses_touch_disjoint_parameters(make_gradient, random_batch, estimator):
    gradient, batch = make_gradient(estimator, lean_on='both', baseline='model'), random_batch(40)
    losses, _ = gradient.losses(batch)
    parameters = dict(gradient.named_parameters())
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, parameters.values(), retain_graph=True,
                                    allow_unused=True)
        touched = {key.split('.')[0] for key, grad in zip(parameters, grads) if grad is not None}
        assert touched == {name}


ON_DISTURBANCE = [('denoising', 'state'), ('denoising', 'achieved_goal'),
                  ('doubly_robust', 'state'), ('doubly_robust', 'achieved_goal')]
ON_CORRECTIONS = [('denoising', 'reward'), ('denoising', 'value'), ('discriminative', 'state'),
                  ('reinforce', 'state')]


@pytest.mark.parametrize('weigh_action', [True, False])
@pytest.mark.parametrize('estimator, outcome', ON_DISTURBANCE + ON_CORRECTIONS)
def test_amortised_gradient_is_fitted_to_what_the_disturbance_did_where_there_is_one(
        make_gradient, random_batch, estimator, outcome, weigh_action):
    gradient = make_gradient(estimator, action_dim=2, outcome=outcome, achieved_goal=(1, 0),
                             weigh_action=weigh_action)
    batch, at = random_batch(40, action_dim=2), []
    gradient.losses(batch)
    asked_for(gradient)
    gradient.eval()
    if gradient.denoiser is not None:
        gradient.denoiser.power[1] = 0.04
        make_certain(gradient.denoiser, 1.0, 0.3)
    if estimator == 'doubly_robust':
        share_out(gradient, 0.4, 0.7)
    samples = spy(gradient)
    gradient.gradient.register_forward_hook(lambda module, args, got: at.append(got))
    loss = gradient.losses(batch)[0]['gradient'].detach()
    sample, guess = samples[0], at[0].detach()
    if (estimator, outcome) in ON_DISTURBANCE:
        if weigh_action and outcome == 'state':
            guess = guess * torch.tensor([1.0, 0.3])
        errors = regression_loss(guess * gradient.denoiser.sensitivity, sample)
    else:
        errors = (guess - gradient.estimator.correction(sample)).square().sum(-1)
    torch.testing.assert_close(loss, errors.mean(1).sum())


def test_the_amortised_gradient_moves_along_the_mean_of_noise_and_disturbance(
        make_gradient, random_batch):
    gradient, denoised, at = make_gradient('denoising', action_dim=2), [], []
    asked_for(gradient)
    gradient.eval()
    gradient.denoiser.power.copy_(torch.tensor([1.0, 4.0]))
    gradient.denoiser.register_forward_hook(lambda module, args, got: denoised.append(got))
    gradient.gradient.register_forward_hook(lambda module, args, got: at.append(got.detach()))
    samples = spy(gradient)
    gradient.losses(random_batch(40, action_dim=2))[0]['gradient'].backward()
    instrument = (denoised[0].residual + denoised[0].disturbance) / 2
    torch.testing.assert_close(samples[0].instrument, instrument)
    sensitivity = torch.tensor([0.5, 1.0])
    error = regression_error(at[0] * sensitivity, samples[0])
    expected = (-2 * error[..., None] * instrument * sensitivity).mean(1, keepdim=True)
    torch.testing.assert_close(gradient.gradient.biases[-1].grad, expected)


@pytest.mark.parametrize('weigh_action', [True, False])
@pytest.mark.parametrize('estimator, outcome', [*ON_DISTURBANCE, *ON_CORRECTIONS,
                                                ('critic', 'state')])
def test_networks_see_the_action_by_its_certainty_where_the_outcome_tells_all(
        make_gradient, random_batch, estimator, outcome, weigh_action):
    gradient = make_gradient(estimator, action_dim=2, outcome=outcome, achieved_goal=(1, 0),
                             weigh_action=weigh_action)
    batch, seen = random_batch(40, action_dim=2), []
    weight = torch.ones(2)
    if gradient.denoiser is not None:
        make_certain(gradient.denoiser, 1.0, 0.2)
    if weigh_action and (estimator, outcome) in ON_DISTURBANCE and outcome == 'state':
        weight = torch.tensor([1.0, 0.2])
    for network in (gradient.critic, gradient.gradient):
        if network is not None:
            network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    slope = gradient.critic.slope
    gradient.critic.slope = lambda x, *rest: (seen.append(x), slope(x, *rest))[1]
    gradient.eval().estimate(batch.obs, batch.action)
    expected = torch.cat([gradient.norm(batch.obs), weight * batch.action], -1)
    assert len(seen) == 1 + (gradient.gradient is not None)
    for number, got in enumerate(seen):
        # That of reinforce is a function of the state alone.
        of_state = estimator == 'reinforce' and number == 1
        torch.testing.assert_close(got[:, :-2], expected[:, :-2])
        torch.testing.assert_close(got[:, -2:], expected[:, -2:] * (not of_state))


@pytest.mark.parametrize('weigh_action', [True, False])
def test_slope_of_the_critics_is_that_with_the_action_itself(
        make_gradient, random_batch, weigh_action):
    gradient = make_gradient('doubly_robust', action_dim=2, weigh_action=weigh_action)
    make_certain(gradient.denoiser, 1.0, 0.2)
    batch = random_batch(40, action_dim=2)
    obs, action = gradient.norm(batch.obs), batch.action.clone().requires_grad_()
    q = gradient._advantages(obs, action)
    expected, = torch.autograd.grad(q.mean(0).sum(), action)
    slope, values = gradient._critic_slope(obs, batch.action)
    torch.testing.assert_close(slope, expected)
    assert torch.equal(values, q) and expected[:, 1].abs().max() > 0


@pytest.mark.parametrize('count, memory', [
    (3, UNSEEN_MEMORY), (UNSEEN_MEMORY, UNSEEN_ROUNDS * UNSEEN_MEMORY)])
@pytest.mark.parametrize('weigh_action', [True, False])
def test_certainty_follows_new_transitions_where_it_counts(
        make_gradient, random_batch, weigh_action, count, memory):
    gradient = make_gradient('denoising', action_dim=2, weigh_action=weigh_action).eval()
    denoiser, batch, seen = gradient.denoiser, random_batch(count, action_dim=2), []
    gradient.observe(batch)
    assert denoiser.num_unseen == 0  # before the first update nothing has been learned
    assert torch.equal(denoiser.unseen_power, torch.zeros(2))
    gradient.scale.fill_(1.0)
    denoiser.register_forward_hook(lambda module, args, got: seen.append(got.power))
    gradient.observe(batch)
    gradient.observe(batch)
    assert len(seen) == 2 and not denoiser.training
    if weigh_action:
        both = torch.cat(seen)
        torch.testing.assert_close(denoiser.unseen_power, both.mean(0))
        torch.testing.assert_close(denoiser.unseen_square, both.square().mean(0))
        denoiser.num_unseen.fill_(memory)
        gradient.observe(batch)
        torch.testing.assert_close(
            denoiser.unseen_power,
            both.mean(0) + (seen[2].mean(0) - both.mean(0)) * count / memory)
    assert denoiser.num_unseen == (memory if weigh_action else 0)
    assert torch.equal(denoiser.power, torch.ones(2))


def constant_critics(gradient, *values):
    for parameter in gradient.critic.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        gradient.critic.biases[-1][:, 0, 0] = torch.tensor(values)


@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust', 'discriminative'])
def test_the_mean_of_the_critics_is_the_baseline(make_gradient, random_batch, estimator):
    batch, gradient = random_batch(30), make_gradient(estimator, num_critics=3)
    constant_critics(gradient, 10.0, 20.0, 60.0)
    samples = spy(gradient)
    gradient.losses(batch)
    target = (batch.reward - gradient._value(batch.obs).detach()) / gradient.scale
    torch.testing.assert_close(samples[0].advantage, target - 30.0)


def physical_model(gradient, batch):
    """Give the model a linear mean; return r + gamma V(s') - V(s) as a function of the action."""
    size = gradient.outcome_norm.shift.shape[0]
    matrix, offset = 0.5 * torch.randn(size, 3), torch.randn(size)
    with torch.no_grad():
        for parameter in gradient.model.mean.parameters():
            parameter.zero_()
        gradient.model.mean.weights[0][0, :, :2 * size] = torch.cat([matrix, -matrix]).T
        gradient.model.mean.weights[1][0, :2 * size] = torch.cat(
            [torch.eye(size), -torch.eye(size)])
        gradient.model.mean.biases[1][0, 0] = offset
    raw = change_and_reward(batch)
    mean, std = raw.mean(0), raw.std(0, unbiased=False)

    def target(obs, action):
        normal = (obs - batch.obs.mean(0)) / batch.obs.std(0, unbiased=False)
        outcome = mean + std * (torch.cat([normal, action], -1) @ matrix.T + offset)
        next_normal = (obs[:, 0] + outcome[:, 0] - batch.obs[:, 0].mean()) \
            / batch.obs[:, 0].std(unbiased=False)
        return 0.5 * outcome[:, -1] + 0.9 * 3 * next_normal.clamp(min=0) \
            - 3 * normal[:, 0].clamp(min=0)
    return target


@pytest.fixture
def with_model(make_gradient, with_known_value, random_batch):
    """Return a gradient with a known model and value, a batch, and the model's target."""
    def build(estimator, **changes):
        gradient = make_gradient(estimator, gamma=0.9, reward_scale=0.5, **changes)
        batch = random_batch(60)
        batch = batch._replace(obs=2 * batch.obs + 0.3, reward=3 * batch.reward + 1)
        gradient.norm.update(batch.obs)
        gradient.observe(batch)
        with_known_value(gradient.value)
        gradient.scale.fill_(1.7)
        return gradient, batch, physical_model(gradient, batch)
    return build


def slope(function, action):
    at = action.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def test_gradient_of_the_model_is_that_of_its_target(with_model):
    gradient, batch, target = with_model('model')
    expected = slope(lambda action: target(batch.obs, action), batch.action)
    assert len(expected.unique()) > 1  # V(s') has a kink
    torch.testing.assert_close(gradient(batch.obs, batch.action), expected, rtol=1e-4, atol=1e-4)


def test_gradient_of_the_critic_is_that_of_the_mean_critic(make_gradient, random_batch):
    gradient, batch = make_gradient('critic'), random_batch(60)
    gradient.scale.fill_(1.7)
    expected = slope(lambda action: 1.7 * gradient.critic(
        torch.cat([batch.obs, action], -1)).mean((0, 2)), batch.action)
    torch.testing.assert_close(gradient(batch.obs, batch.action), expected)


@pytest.mark.parametrize('lean_on, shares', [
    ('critic', (0.3, 0.0, 0.8)), ('model', (0.0, 0.6, 1.2)), ('both', (0.3, 0.6, 0.8))])
def test_gradient_adds_up_guides_and_amortised_gradient_by_their_shares(
        with_model, lean_on, shares):
    # The baseline of the model has the model made in each case.
    gradient, batch, target = with_model('doubly_robust', lean_on=lean_on, baseline='model')
    asked_for(gradient)
    gradient.scale.fill_(1.7)
    share_out(gradient, *(share for share in shares if share))
    with torch.no_grad():
        amortised = 1.7 * gradient.denoiser.sensitivity * gradient.gradient(
            torch.cat([gradient.norm(batch.obs), batch.action], -1)).mean(0)
    critic = slope(lambda action: gradient.advantages(
        gradient.norm(batch.obs), action).mean(0), batch.action)
    model = slope(lambda action: target(batch.obs, action), batch.action)
    torch.testing.assert_close(gradient(batch.obs, batch.action),
                               shares[0] * critic + shares[1] * model + shares[2] * amortised,
                               rtol=3e-3, atol=1e-3)


@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust'])
def test_baseline_of_the_model(with_model, estimator):
    gradient, batch, target = with_model(estimator, baseline='model')
    gradient.eval()
    samples, at = spy(gradient), []
    gradient.denoiser.register_forward_hook(lambda module, args, got: at.append(got.action))
    gradient.losses(batch)
    value = 3 * gradient.norm(batch.obs)[:, 0].clamp(min=0)
    expected = gradient.target(batch) - value - target(batch.obs, at[0])
    torch.testing.assert_close(1.7 * samples[0].advantage, expected, rtol=1e-3, atol=1e-3)


def test_guides_are_the_gradients_of_critic_and_model_at_the_denoised_action(with_model):
    gradient, batch, target = with_model('doubly_robust', lean_on='both', num_critics=3)
    gradient.eval()
    samples, at = spy(gradient), []
    gradient.denoiser.register_forward_hook(lambda module, args, got: at.append(got.action))
    gradient.losses(batch)
    model = slope(lambda action: target(batch.obs, action), at[0])

    critic = slope(lambda action: gradient.advantages(gradient.norm(batch.obs), action).mean(0),
                   at[0])
    torch.testing.assert_close(1.7 * samples[0].guides, torch.stack([critic, model]),
                               rtol=1e-3, atol=1e-3)


def test_discriminative_score_is_the_models_at_the_executed_action(make_gradient, random_batch):
    gradient, batch = make_gradient('discriminative'), random_batch(40)
    gradient.observe(batch)
    samples = spy(gradient)
    gradient.losses(batch)
    raw = change_and_reward(batch)
    normal = (raw - raw.mean(0)) / raw.std(0, unbiased=False)
    expected = gradient.model.score(batch.obs, batch.action, normal)
    torch.testing.assert_close(samples[0].score, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('estimator, baseline', [
    ('denoising', 'model'), ('doubly_robust', 'critic'), ('discriminative', 'critic')])
def test_samples_are_those_that_the_losses_are_made_of(with_model, estimator, baseline):
    gradient, batch, _ = with_model(estimator, lean_on='both', baseline=baseline)
    asked_for(gradient)
    gradient.scale.fill_(1.7)
    if estimator == 'doubly_robust':
        share_out(gradient, 0.4, 0.7, 0.9)
    gradient.eval()
    samples, at = spy(gradient), []
    gradient.gradient.register_forward_hook(lambda module, args, got: at.append(got.mean(0)))
    torch.manual_seed(1)  # the same denoising noise
    gradient.losses(batch)
    torch.manual_seed(1)
    sample, own = gradient.per_sample(batch)
    torch.testing.assert_close(sample._replace(lean=samples[0].lean), samples[0])
    torch.testing.assert_close(own, at[0].detach())
    expected = [0.4, 0.7] if estimator == 'doubly_robust' else []
    torch.testing.assert_close(sample.lean, torch.tensor(expected), rtol=2e-3, atol=0)


def test_model_is_fitted_to_normalised_outcomes(make_gradient, random_batch):
    gradient, batch = make_gradient('model'), random_batch(40)
    batch = batch._replace(reward=4 * batch.reward + 2)
    gradient.observe(batch)
    raw = change_and_reward(batch)
    normal = (raw - raw.mean(0)) / raw.std(0, unbiased=False)
    expected = gradient.model.loss(batch.obs, batch.action, normal)
    torch.testing.assert_close(gradient.losses(batch)[0]['model'], expected, rtol=1e-4, atol=0)


def test_calibration_is_the_slope_of_the_advantage_on_what_the_gradient_explains(with_model):
    gradient, batch, _ = with_model('doubly_robust', lean_on='both')
    asked_for(gradient)
    share_out(gradient, 0.4, 0.2, 0.7)
    gradient.eval()
    samples, at = spy(gradient), []
    gradient.gradient.register_forward_hook(lambda module, args, got: at.append(got.mean(0)))
    metrics = gradient.losses(batch)[1]
    critic, model = samples[0].guides
    estimate = 0.4 * critic + 0.2 * model + 0.7 * at[0].detach()
    signal = (estimate * samples[0].disturbance).sum(-1)
    slope = torch.linalg.lstsq(signal[:, None], samples[0].advantage[:, None]).solution
    assert metrics['gradient/calibration'].item() == pytest.approx(slope.item(), rel=5e-3)
    assert metrics['gradient/signal'].item() == pytest.approx(
        signal.square().mean().sqrt().item(), rel=5e-3)
    share_out(gradient, 0.1, 0.1, 0.1)  # what was told stays
    assert [metrics[f'gradient/share_{name}'].item() for name in ('critic', 'model', 'own')] == \
        pytest.approx([0.4, 0.2, 0.7])


def test_shares_follow_new_transitions_and_no_others(make_gradient, random_batch):
    gradient, at = make_gradient(lean_on='both', action_dim=2).eval(), []
    batches = random_batch(10, action_dim=2), random_batch(30, action_dim=2)
    gradient.observe(batches[0])  # nothing has been learned yet
    assert gradient.moments.eq(0).all() and gradient.num_followed == 0
    asked_for(gradient)
    gradient.denoiser.power[1] = 0.04
    samples = spy(gradient)
    gradient.gradient.register_forward_hook(lambda module, args, got: at.append(got.mean(0)))
    assert gradient.lean.tolist() == [0, 0] and gradient.shares.tolist() == [0, 0, 0]
    place = gradient.shares.data_ptr()
    for batch in batches:
        gradient.observe(batch)
    assert gradient.shares.data_ptr() == place  # where a recorded update reads them
    weight = gradient.denoiser.sensitivity
    assert weight.min() < 0.5
    moments = []
    for sample, own in zip(samples, at):
        together = torch.cat([sample.guides, (weight * own.detach())[None]])
        moments.append(lean_moments(sample._replace(guides=together), weight.square()))
    followed = 0.25 * moments[0] + 0.75 * moments[1]  # each transition as much as another
    torch.testing.assert_close(gradient.moments, followed)
    torch.testing.assert_close(gradient.shares, best_lean(followed))
    assert (gradient.shares > 0).any()
    # The correction of one sample leans on the guides alone.
    torch.testing.assert_close(
        gradient.lean, best_lean(torch.cat([followed[:2, :2], followed[:2, 3:]], 1)))
    # What is learned from is not new.
    gradient.train().losses(batch)
    torch.testing.assert_close(gradient.moments, followed)
    assert gradient.num_followed == 40


def test_guides_are_collected_where_someone_asks(make_gradient, random_batch):
    gradient = make_gradient()
    for report in (True, False):
        samples = spy(gradient)
        gradient.losses(random_batch(10), report=report)
        assert samples[0].guides.shape == (report, 10, 1)


@pytest.mark.parametrize('count, memory', [
    (3, UNSEEN_MEMORY), (UNSEEN_MEMORY, UNSEEN_ROUNDS * UNSEEN_MEMORY)])
def test_shares_forget_old_transitions(make_gradient, random_batch, count, memory):
    gradient = make_gradient('denoising').eval()
    asked_for(gradient)
    gradient.moments.fill_(1.0)
    gradient.num_followed.fill_(memory)
    samples = spy(gradient)
    gradient.gradient.register_forward_hook(lambda module, args, got: samples.append(got.mean(0)))
    gradient.observe(random_batch(count))
    sample, own = samples
    now = lean_moments(sample._replace(guides=own.detach()[None]),
                       gradient.denoiser.sensitivity.square())
    torch.testing.assert_close(gradient.moments, 1 + (now - 1) * count / memory)
    assert gradient.num_followed == memory


@pytest.mark.parametrize('estimator', ['denoising', 'doubly_robust', 'reinforce'])
def test_nothing_is_corrected_before_data_ask_for_it(make_gradient, random_batch, estimator):
    gradient, batch = make_gradient(estimator), random_batch(20)
    gradient.scale.fill_(1.0)
    assert (gradient(batch.obs, batch.action) == 0).all()
    asked_for(gradient)
    if estimator != 'reinforce':  # what is fitted to disturbances has to show its share, too
        assert (gradient(batch.obs, batch.action) == 0).all()
        share_out(gradient, *[0.5] * len(gradient.shares))
    assert (gradient(batch.obs, batch.action) != 0).any()


def test_reinforce_has_one_gradient_for_all_actions(make_gradient, random_batch):
    gradient, batch = make_gradient('reinforce'), random_batch(20)
    asked_for(gradient)
    first = gradient(batch.obs, batch.action)
    assert torch.equal(first, gradient(batch.obs, -batch.action))
    assert len(first.unique()) > 1


@pytest.mark.parametrize('outcome', ['reward', 'value'])
def test_doubly_robust_refuses_an_outcome_of_one_number(make_gradient, outcome):
    with pytest.raises(SpecError, match=f'must be state or achieved_goal .* got {outcome}'):
        make_gradient('doubly_robust', outcome=outcome)


@pytest.mark.parametrize('estimator, outcome, networks', [
    ('denoising', 'state', 'denoiser critic gradient'),
    ('reinforce', 'state', 'denoiser critic gradient'),
    ('doubly_robust', 'state', 'denoiser critic gradient'),
    ('critic', 'state', 'critic'), ('disturbance_critic', 'state', 'denoiser critic'),
    ('model', 'state', 'model critic'), ('discriminative', 'state', 'model critic gradient')])
def test_each_estimator_has_the_networks_that_it_needs(
        make_gradient, estimator, outcome, networks):
    gradient = make_gradient(estimator, outcome=outcome)
    found = {name for name in ('denoiser', 'model', 'critic', 'gradient')
             if getattr(gradient, name) is not None}
    assert found == set(networks.split())
    assert len(gradient.parameter_groups()) == len(found)


@pytest.mark.parametrize('baseline', ['critic', 'model'])
def test_reinforce_adds_the_gradient_of_its_own_baseline(make_gradient, random_batch, baseline):
    gradient, batch = make_gradient('reinforce', baseline=baseline), random_batch(20)
    gradient.scale.fill_(1.0)
    gradient.eval()
    obs = gradient.norm(batch.obs)
    torch.manual_seed(0)
    sample, _ = gradient.per_sample(batch)
    torch.manual_seed(0)
    action = gradient._denoise(batch, obs).action.requires_grad_()
    value = gradient._model_target(batch.obs, obs, action) if baseline == 'model' else \
        gradient.advantages(obs, action).mean(0)
    expected, = torch.autograd.grad(value.sum(), action)
    torch.testing.assert_close(sample.guides[0], expected)
    assert len(sample.guides) == 1 and expected.abs().max() > 0


def test_every_advantage_of_the_disturbance_critic_is_averaged_over_it(make_gradient,
                                                                       random_batch):
    gradient, batch = make_gradient('disturbance_critic'), random_batch(20)
    gradient.scale.fill_(1.0)
    gradient.disturbance_std.fill_(0.5)
    answers = []
    for ask in (lambda: gradient.estimate(batch.obs, batch.action)[1],
                lambda: gradient.advantages(gradient.norm(batch.obs), batch.action)):
        torch.manual_seed(0)
        answers.append(ask())
    torch.testing.assert_close(*answers)
    raw = gradient._advantages(gradient.norm(batch.obs), batch.action)
    assert (answers[0] - raw).abs().max() > 1e-3


def test_an_outcome_that_the_task_lacks_is_bad_input(make_gradient):
    with pytest.raises(SpecError, match='learner.outcome must not be achieved_goal, since'):
        make_gradient('denoising', outcome='achieved_goal')
