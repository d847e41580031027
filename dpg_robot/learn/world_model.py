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

"""A learned forward model of the world: what the denoiser does without, as a rival and a guide."""

from __future__ import annotations

import torch
from torch import nn

from dpg_robot.learn.networks import EnsembleMLP

LOG_STD_RANGE = (-5.0, 2.0)


class WorldModel(nn.Module):
    """A Gaussian p(o | s, a) of normalised outcomes, with a learned diagonal deviation."""

    def __init__(self, obs_dim: int, action_dim: int, outcome_dim: int, hidden: tuple[int, ...]):
        """Create the mean and the deviation as two networks of one shape."""
        super().__init__()
        self.mean = EnsembleMLP(obs_dim + action_dim, hidden, outcome_dim)
        self.log_std = EnsembleMLP(obs_dim + action_dim, hidden, outcome_dim)

    def predict(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the mean outcome, normalised, shape (B, outcome_dim)."""
        return self.mean(torch.cat([obs, action], -1))[0]

    def log_density(self, obs: torch.Tensor, action: torch.Tensor, outcome: torch.Tensor,
                    mean: torch.Tensor) -> torch.Tensor:
        """Return log p(o | s, a) up to a constant, shape (B,)."""
        log_std = self.log_std(torch.cat([obs, action], -1))[0].clamp(*LOG_STD_RANGE)
        return -(0.5 * ((outcome - mean) * torch.exp(-log_std)).square() + log_std).sum(-1)

    def loss(self, obs: torch.Tensor, action: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
        """Return least squares for the mean plus likelihood for the deviation around it.

        The mean is not weighted by the deviation: so it stays the conditional mean.
        """
        mean = self.predict(obs, action)
        likelihood = self.log_density(obs, action, outcome, mean.detach())
        return (mean - outcome).square().mean() - likelihood.mean() / outcome.shape[-1]

    def score(self, obs: torch.Tensor, action: torch.Tensor, outcome: torch.Tensor
              ) -> torch.Tensor:
        """Return grad_a log p(o | s, a) by differentiating the model, shape (B, action_dim)."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            density = self.log_density(obs, action, outcome, self.predict(obs, action))
            return torch.autograd.grad(density.sum(), action)[0]
