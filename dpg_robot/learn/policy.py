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

"""The reparameterised policy a = alpha(s, eps; theta)."""

from __future__ import annotations

import math

import torch
from torch import nn
import torch.nn.functional as F

from dpg_robot.learn.networks import EnsembleMLP, RunningNorm

LOG_STD_MAX = 0.5
# Actions this near to -1 and 1 are inverted as if they were so far: float32 ends soon after.
SATURATION = 1e-6


class SquashedGaussianPolicy(nn.Module):
    """``alpha(s, eps) = tanh(mu(s) + std(s) * eps)``, with the observation's normaliser inside.

    ``std`` has a floor: what the outcome tells about the action drowns in the denoiser's error
    where the exploration width falls far below its sigma (docs/mathematics.md).
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...], min_std: float):
        """Create a policy.

        :param min_std: floor of std, before the tanh.
        """
        super().__init__()
        self.norm = RunningNorm(obs_dim)
        self.net = EnsembleMLP(obs_dim, hidden, 2 * action_dim)
        self.action_dim = action_dim
        self.log_std_min = math.log(min_std)
        self.span = LOG_STD_MAX - self.log_std_min
        with torch.no_grad():
            self.net.weights[-1].mul_(0.1)

    def distribution(self, obs: torch.Tensor,
                     net: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log standard deviation before the tanh, each (B, action_dim).

        :param obs: physical observations, shape (B, obs_dim).
        :param net: another network to take in place of this policy's own.
        """
        mean, raw = (net or self.net)(self.norm(obs))[0].chunk(2, dim=-1)
        return mean, self.log_std_min + self.span * torch.sigmoid(raw)

    def forward(self, obs: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return normalised actions in (-1, 1), shape (B, action_dim); eps = 0: the mode."""
        mean, log_std = self.distribution(obs)
        return torch.tanh(mean + log_std.exp() * eps)

    def sample(self, obs: torch.Tensor, eps: torch.Tensor | None = None
               ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw actions with their log densities.

        :param eps: take these, shape (B, action_dim), in place of drawing them.
        :return: actions (B, action_dim), differentiable in theta, and log pi(a | s) (B,).
        """
        mean, log_std = self.distribution(obs)
        eps = torch.randn_like(mean) if eps is None else eps
        raw = mean + log_std.exp() * eps
        return torch.tanh(raw), _log_density(eps, log_std, raw)

    def invert(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the eps with alpha(s, eps) = a, shape (B, action_dim).

        Exact but for actions beyond 1 - ``SATURATION``, which are taken for that.
        """
        mean, log_std = self.distribution(obs)
        return (_raw(action) - mean) * (-log_std).exp()

    def log_prob(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return log pi(a | s) of given actions, shape (B,), saturated as in :meth:`invert`."""
        mean, log_std = self.distribution(obs)
        raw = _raw(action)
        return _log_density((raw - mean) * (-log_std).exp(), log_std, raw)

    def divergence(self, obs: torch.Tensor, net: nn.Module) -> torch.Tensor:
        """Return the mean KL(policy with ``net`` | policy), which the tanh does not change."""
        mean, log_std = self.distribution(obs)
        with torch.no_grad():
            other_mean, other_log_std = self.distribution(obs, net)
        ratio = (other_log_std - log_std).exp()
        distance = (other_mean - mean) * (-log_std).exp()
        return (0.5 * (ratio.square() + distance.square() - 1) - ratio.log()).sum(-1).mean()


def _raw(action):
    return torch.atanh(action.clamp(SATURATION - 1, 1 - SATURATION))


def _log_density(eps, log_std, raw):
    log_normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(x)^2), stable for large |x|
    log_slope = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
    return (log_normal - log_slope).sum(-1)
