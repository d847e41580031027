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

"""What the tests of the learning core share: one thread, and a world with a closed form."""

import math
from typing import NamedTuple

import pytest
import torch

from dpg_robot.learn.action_gradient import ActionGradient
from dpg_robot.learn.denoiser import FIRST_SPREAD
from dpg_robot.learn.gradient_config import GradientConfig
from dpg_robot.learn.networks import EnsembleMLP, RunningNorm
from dpg_robot.learn.replay import Batch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class LinearGaussian(NamedTuple):
    """The world ``a ~ N(mu, tau^2)``, ``a~ = a + sigma eta``, ``o = a + nu w``, per element.

    Everything follows from conditioning Gaussians on independent evidence: precisions add, and
    means are averaged with the precisions as weights. ``a_hat`` is E[a | a~], ``Sigma`` its
    Var[a | a~]. Each parameter may be a tensor.
    """

    tau: float = 0.3
    sigma: float = 0.2
    nu: float = 0.25

    def denoise(self, noised, mu):
        """Return a_hat = E[a | a~]."""
        return self._average((mu, self.tau), (noised, self.sigma))

    def denoise_given(self, noised, mu, outcome):
        """Return E[a | a~, o]."""
        return self._average((mu, self.tau), (noised, self.sigma), (outcome, self.nu))

    def _average(self, *evidence):
        total = sum(std ** -2 for _, std in evidence)
        return sum(value * std ** -2 for value, std in evidence) / total

    @property
    def shrink(self):
        """Return k = d a_hat / d a~."""
        return self.tau ** 2 / (self.tau ** 2 + self.sigma ** 2)

    @property
    def posterior_var(self):
        """Return Sigma = Var[a | a~]."""
        return 1 / (self.tau ** -2 + self.sigma ** -2)

    @property
    def outcome_var(self):
        """Return Var[o | a_hat]."""
        return self.posterior_var + self.nu ** 2

    def score(self, denoised, outcome):
        """Return grad_a_hat log p(o | a_hat), with o | a_hat ~ N(a_hat, outcome_var)."""
        return (outcome - denoised) / self.outcome_var

    @property
    def fisher(self):
        """Return E[score^2 | a_hat]."""
        return 1 / self.outcome_var

    def draw(self, num, mu=0.0, action_dim=1):
        """Draw actions and their outcomes, each (num, action_dim)."""
        action = mu + self.tau * torch.randn(num, action_dim)
        return action, action + self.nu * torch.randn(num, action_dim)

    def draw_outcome(self, denoised, num):
        """Draw outcomes that follow one denoised action, shape (num, action_dim)."""
        noise = torch.randn(num, denoised.shape[-1], dtype=denoised.dtype)
        return denoised + self.outcome_var ** 0.5 * noise


@pytest.fixture
def linear_gaussian():
    return LinearGaussian


class ExactPrior(torch.nn.Module):
    """What a perfect denoiser would say without the outcome, and of what the outcome is worth.

    ``world.tau`` and ``world.nu`` hold at any noise level; ``world.sigma`` is the level 0. The
    observation begins with mu. ``error`` is added to where e(s, o) is expected, ``gain_error`` to
    the part of the way.
    """

    def __init__(self, world, action_dim, obs_dim, num_more):
        super().__init__()
        self.world, self.sizes, self.error = world, (action_dim, obs_dim, 1), 0.0
        self.gain_error, self.num_more = 0.0, num_more

    def forward(self, x):
        noised, mu, level = x.split(self.sizes, -1)
        mu = mu[:, :noised.shape[1]]
        sigma = self.world.sigma * level.exp()
        world = self.world._replace(sigma=sigma)
        null = (world.denoise(noised, mu) - noised) \
            * (sigma ** 2 + self.world.sigma ** 2) ** 0.5 / sigma ** 2
        spread = torch.full_like(noised, math.log(self.world.tau / FIRST_SPREAD))
        fisher = torch.log(world.fisher * self.world.sigma ** 2).expand_as(noised)
        # The part of the way, world.posterior_var / world.outcome_var.
        gain = world.posterior_var / world.outcome_var * (1 + self.world.sigma ** 2 / sigma ** 2)
        self.seen, self.sigma = noised, sigma
        offset = torch.full_like(noised, self.error)
        gain = (gain.expand_as(noised) - 1) / 2 + self.gain_error
        more = noised.new_zeros(len(noised), self.num_more)
        return torch.cat([null, spread, fisher, offset, gain, more], -1)[None]


def _make_exact(denoiser, world, action_dim, obs_dim):
    num_more = (denoiser.rank - 1) * action_dim
    denoiser.prior = ExactPrior(world, action_dim, obs_dim, num_more)
    denoiser.inverse.forward = lambda x: torch.nn.functional.pad(
        x[None, :, obs_dim:obs_dim + action_dim], (0, num_more))


@pytest.fixture
def make_exact():
    """Give a denoiser the answers of a perfect one, where the outcome begins with o."""
    return _make_exact


def _make_gradient(estimator='doubly_robust', obs_dim=2, action_dim=1, achieved_goal=(),
                   **changes):
    settings = {'hidden': (32,), 'denoiser_hidden': (32,), 'gradient_hidden': (32,),
                'gamma': 0.0} | changes
    return ActionGradient(GradientConfig(estimator=estimator, **settings), obs_dim, action_dim,
                          RunningNorm(obs_dim), EnsembleMLP(obs_dim, (8,), 1), achieved_goal)


@pytest.fixture
def make_gradient():
    return _make_gradient


def _with_known_value(value):
    for parameter in value.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        value.weights[0][0, 0, 0] = 3.0
        value.weights[1][0, 0, 0] = 1.0


@pytest.fixture
def with_known_value():
    """Make a network V(s) = relu(3 s_0), in normalised observations."""
    return _with_known_value


def _random_batch(num, obs_dim=2, action_dim=1):
    return Batch(torch.randn(num, obs_dim), torch.rand(num, action_dim) * 2 - 1, torch.randn(num),
                 torch.randn(num, obs_dim), (torch.rand(num) < 0.2).float(),
                 torch.zeros(num))


@pytest.fixture
def random_batch():
    return _random_batch


def _assert_mean(samples, expected, errors=4.0):
    standard_error = samples.std(0) / samples.shape[0] ** 0.5
    distance = (samples.mean(0) - expected).abs()
    assert (distance <= errors * standard_error + 1e-12).all(), (
        f'mean {samples.mean(0)}, expected {expected}, standard error {standard_error}')


@pytest.fixture
def assert_mean():
    """Check that samples, shape (num, ...), have a mean, to four standard errors."""
    return _assert_mean
