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

"""The conditional action denoiser, whose two answers differ by the score."""

from __future__ import annotations

import torch
from torch import nn

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.networks import EnsembleMLP


class Denoiser(nn.Module):
    """Least-squares denoiser of actions, with and without the outcome, in one network.

    ``a~ = a + sigma * eta``; the answers are ``a_hat(a~, s, o) = E[a | a~, s, o]`` and
    ``a_hat(a~, s, null) = E[a | a~, s]``. By Tweedie's formula (Miyasawa 1961; Kadkhodaie and
    Simoncelli 2020) ``sigma^2 grad log p_sigma(a~ | s, .) = a_hat - a~``, and by Bayes' rule the
    difference of the two answers over sigma^2 is ``grad_a~ log p(o | s, a~)``, whatever policy
    chose the actions.

    The network predicts the residual in units of sigma, ``a_hat = a~ + sigma * net``.
    """

    def __init__(self, obs_dim: int, action_dim: int, outcome_dim: int,
                 hidden: tuple[int, ...], sigma: float):
        """Create a denoiser.

        :param sigma: standard deviation of the denoising noise, in normalised action units.
        :raises SpecError: if sigma is not positive.
        """
        super().__init__()
        if sigma <= 0:
            raise SpecError(f'denoiser sigma must be greater than 0, got {sigma}')
        self.sigma = sigma
        in_dim = action_dim + obs_dim + outcome_dim + 1
        self.net = EnsembleMLP(in_dim, hidden, action_dim)

    def residuals(self, noised: torch.Tensor, obs: torch.Tensor,
                  outcome: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (a_hat - a~) / sigma with the outcome and without, each (B, action_dim).

        :param noised: noised actions a~, shape (B, action_dim).
        :param obs: normalised observations, shape (B, obs_dim).
        :param outcome: normalised outcomes, shape (B, outcome_dim).
        """
        with_outcome = torch.cat([noised, obs, outcome, torch.ones_like(noised[:, :1])], -1)
        without = torch.cat([noised, obs, torch.zeros_like(outcome),
                             torch.zeros_like(noised[:, :1])], -1)
        both = self.net(torch.cat([with_outcome, without]))[0]
        return both.chunk(2)

    def loss_and_score(self, action: torch.Tensor, obs: torch.Tensor, outcome: torch.Tensor):
        """Denoise freshly noised actions; learn from the error and read off the score.

        Every sample trains both answers, which is outcome dropout with its expectation taken.

        :param action: executed commands, shape (B, action_dim), in [-1, 1].
        :param obs: normalised observations, shape (B, obs_dim).
        :param outcome: normalised outcomes, shape (B, outcome_dim).
        :return: the loss in units of sigma^2; the noised actions a~ (B, action_dim); and the
            score grad_a~ log p(o | s, a~) there (B, action_dim), detached.
        """
        eta = torch.randn_like(action)
        noised = action + self.sigma * eta
        given, null = self.residuals(noised, obs, outcome)
        loss = 0.5 * ((given + eta).square().mean() + (null + eta).square().mean())
        # (a_hat_o - a_hat_null) / sigma^2, with a_hat = a~ + sigma * residual
        return loss, noised, (given - null).detach() / self.sigma
