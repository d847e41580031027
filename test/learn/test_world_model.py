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
from torch.distributions import Normal

from dpg_robot.learn.world_model import LOG_STD_RANGE, WorldModel

OBS_DIM, ACTION_DIM, OUTCOME_DIM = 2, 2, 3


def set_linear(net, matrix, offset):
    """Make a network of one hidden layer linear: W x = relu(W x) - relu(-W x)."""
    rows, dim = matrix.shape
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.weights[0][0, :, :2 * rows] = torch.cat([matrix, -matrix]).T
        net.weights[1][0, :2 * rows] = torch.cat([torch.eye(rows), -torch.eye(rows)])
        net.biases[1][0, 0] = offset
    return net


@pytest.fixture
def linear():
    """Return a model with a known linear mean and log deviation, and these."""
    model = WorldModel(OBS_DIM, ACTION_DIM, OUTCOME_DIM, (2 * OUTCOME_DIM,))
    mean = torch.randn(OUTCOME_DIM, OBS_DIM + ACTION_DIM), torch.randn(OUTCOME_DIM)
    log_std = 0.2 * torch.randn(OUTCOME_DIM, OBS_DIM + ACTION_DIM), torch.randn(OUTCOME_DIM) - 1
    set_linear(model.mean, *mean)
    set_linear(model.log_std, *log_std)
    return model, mean, log_std


@pytest.mark.parametrize('uneven', [False, True])
def test_score_is_exact_in_a_gaussian_linear_world(linear, uneven):
    model, mean, log_std = linear
    if not uneven:
        log_std = (0 * log_std[0], log_std[1])
        set_linear(model.log_std, *log_std)
    obs, action = torch.randn(20, OBS_DIM), torch.randn(20, ACTION_DIM).requires_grad_()
    outcome = torch.randn(20, OUTCOME_DIM)
    x = torch.cat([obs, action], -1)
    std = (x @ log_std[0].T + log_std[1]).exp()
    center = x @ mean[0].T + mean[1]
    expected, = torch.autograd.grad(Normal(center, std).log_prob(outcome).sum(), action)
    score = model.score(obs, action, outcome)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-3)
    assert not score.requires_grad
    if not uneven:  # J^T Sigma^-1 (o - m), worked out by hand
        by_hand = ((outcome - center) / std ** 2) @ mean[0][:, OBS_DIM:]
        torch.testing.assert_close(score, by_hand.detach(), rtol=1e-4, atol=1e-3)


def test_prediction_is_the_mean(linear):
    model, mean, _ = linear
    obs, action = torch.randn(5, OBS_DIM), torch.randn(5, ACTION_DIM)
    expected = torch.cat([obs, action], -1) @ mean[0].T + mean[1]
    torch.testing.assert_close(model.predict(obs, action), expected)


def test_density_is_normal_up_to_a_constant(linear):
    model, mean, log_std = linear
    obs, action = torch.randn(5, OBS_DIM), torch.randn(5, ACTION_DIM)
    outcome, x = torch.randn(5, OUTCOME_DIM), torch.cat([obs, action], -1)
    normal = Normal(x @ mean[0].T + mean[1], (x @ log_std[0].T + log_std[1]).exp())
    density = model.log_density(obs, action, outcome, model.predict(obs, action))
    constant = density - normal.log_prob(outcome).sum(-1)
    torch.testing.assert_close(constant, constant[:1].expand(5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('offset, end', [(-20.0, 0), (20.0, 1)])
def test_deviation_stays_in_its_range(linear, offset, end):
    model, _, _ = linear
    set_linear(model.log_std, torch.zeros(OUTCOME_DIM, OBS_DIM + ACTION_DIM), offset)
    x = torch.zeros(1, 2)
    density = model.log_density(x, x, torch.zeros(1, 3), torch.zeros(1, 3))
    assert density.item() == pytest.approx(-OUTCOME_DIM * LOG_STD_RANGE[end])


def test_mean_is_learned_by_plain_least_squares(linear):
    # Weighting by a deviation would let it ignore the outcomes that it finds uncertain.
    model, _, _ = linear
    obs, action, outcome = torch.randn(30, 2), torch.randn(30, 2), torch.randn(30, 3)
    loss = model.loss(obs, action, outcome)
    mean_grads = torch.autograd.grad(loss, list(model.mean.parameters()))
    squares = (model.predict(obs, action) - outcome).square().mean()
    for got, wanted in zip(mean_grads, torch.autograd.grad(squares, model.mean.parameters())):
        torch.testing.assert_close(got, wanted)


def test_training_recovers_mean_deviation_and_score():
    def draw(num):
        obs, action = 2 * torch.rand(num, 1) - 1, 2 * torch.rand(num, 1) - 1
        std = torch.exp(-1.0 + 0.5 * action)
        return obs, action, obs + 1.5 * action + std * torch.randn(num, 1), std

    model = WorldModel(1, 1, 1, (32,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        model.loss(*draw(512)[:3]).backward()
        optimizer.step()
        schedule.step()
    obs, action, outcome, std = draw(2000)
    mean = model.predict(obs, action)
    assert (mean - obs - 1.5 * action).square().mean().sqrt() < 0.03
    log_std = model.log_std(torch.cat([obs, action], -1))[0]
    assert (log_std - std.log()).square().mean().sqrt() < 0.05
    z = (outcome - obs - 1.5 * action) / std
    exact = 1.5 * z / std + 0.5 * (z ** 2 - 1)
    score = model.score(obs, action, outcome)
    assert (score - exact).square().mean().sqrt() < 0.15 * exact.square().mean().sqrt()
