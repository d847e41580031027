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

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from dpg_robot.learn.policy import LOG_STD_MAX, SquashedGaussianPolicy


def make_policy(obs_dim=3, action_dim=2, min_std=0.1, spread=1.0):
    """Return a policy in double precision whose last layer is not near zero."""
    policy = SquashedGaussianPolicy(obs_dim, action_dim, (16,), min_std).double()
    with torch.no_grad():
        policy.net.weights[-1].normal_(0, spread)
    return policy


def fix_eps(monkeypatch, eps):
    """Make sample() draw these."""
    monkeypatch.setattr(torch, 'randn_like', lambda like: eps)


def test_eps_zero_gives_the_mode_and_eps_counts_standard_deviations():
    policy, obs = make_policy(), torch.randn(6, 3).double()
    mean, log_std = policy.distribution(obs)
    eps = torch.randn(6, 2).double()
    torch.testing.assert_close(policy(obs, torch.zeros_like(eps)), mean.tanh())
    torch.testing.assert_close(policy(obs, eps).atanh(), mean + log_std.exp() * eps)
    assert not torch.allclose(mean[0], mean[1])


@pytest.mark.parametrize('mean', [0.0, 0.8, -2.0])
def test_density_of_one_action_integrates_to_one(monkeypatch, mean):
    policy = make_policy(1, 1, spread=0.0)
    with torch.no_grad():
        policy.net.biases[-1][..., 0] = mean
    # Equal steps in eps out to 8 standard deviations; the actions then cover their whole range.
    eps = torch.linspace(-8, 8, 4001).double()[:, None]
    fix_eps(monkeypatch, eps)
    with torch.no_grad():
        action, log_density = policy.sample(torch.zeros(4001, 1).double())
    total = torch.trapezoid(log_density.exp(), action[:, 0])
    assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_density_equals_that_of_torch_distributions():
    policy, obs = make_policy(), torch.randn(50, 3).double()
    with torch.no_grad():
        action, log_density = policy.sample(obs)
        mean, log_std = policy.distribution(obs)
    normal = Normal(mean, log_std.exp())
    expected = Independent(TransformedDistribution(normal, [TanhTransform()]), 1)
    torch.testing.assert_close(log_density, expected.log_prob(action), rtol=1e-6, atol=1e-6)


def test_density_is_finite_far_into_the_saturation():
    policy = make_policy(1, 1).float()
    with torch.no_grad():
        policy.net.biases[-1][..., 0] = 60.0
    action, log_density = policy.sample(torch.zeros(8, 1))
    log_density.sum().backward()
    assert torch.isfinite(log_density).all() and (action <= 1).all()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


def directional_derivatives(policy, objective):
    """Return d objective / d theta along a random direction: autograd's, finite difference's."""
    parameters = list(policy.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(objective(), parameters)
    exact = sum((g * d).sum() for g, d in zip(gradients, direction)).item()

    def moved(step):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=step)
            value = objective().item()
            torch._foreach_add_(parameters, direction, alpha=-step)
        return value

    return exact, (moved(1e-5) - moved(-1e-5)) / 2e-5


def test_gradient_through_alpha_equals_finite_differences():
    policy, obs = make_policy(), torch.randn(9, 3).double()
    eps, weight = torch.randn(9, 2).double(), torch.randn(9, 2).double()
    exact, numeric = directional_derivatives(policy, lambda: (weight * policy(obs, eps)).sum())
    assert abs(numeric) > 0.1
    assert exact == pytest.approx(numeric, rel=1e-6)


def test_gradient_of_a_sample_equals_finite_differences(monkeypatch):
    policy, obs = make_policy(), torch.randn(9, 3).double()
    eps = torch.randn(9, 2).double()
    draw_direction = torch.randn_like

    def draw(like):
        return eps if like.shape == eps.shape else draw_direction(like)

    monkeypatch.setattr(torch, 'randn_like', draw)
    weight = torch.randn(9, 2).double()

    def objective():
        action, log_density = policy.sample(obs)
        return (weight * action).sum() + log_density.sum()

    exact, numeric = directional_derivatives(policy, objective)
    assert abs(numeric) > 0.1
    assert exact == pytest.approx(numeric, rel=1e-6)


def test_std_keeps_its_floor_and_ceiling():
    policy, obs = make_policy(min_std=0.15, spread=1e3), torch.randn(200, 3).double()
    std = policy.distribution(obs)[1].exp()
    assert std.min().item() == pytest.approx(0.15)
    assert std.max().item() == pytest.approx(math.exp(LOG_STD_MAX))


def test_the_normaliser_is_inside():
    policy = make_policy()
    data = torch.randn(500, 3).double() * 20 + 100
    policy.norm.update(data)
    normalised = (data - data.mean(0)) / data.std(0, unbiased=False)
    mean = policy.net(normalised)[0, :, :2]
    torch.testing.assert_close(policy(data, torch.zeros(500, 2)), mean.tanh(),
                               rtol=1e-4, atol=1e-4)
