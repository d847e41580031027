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

import math
from typing import NamedTuple

import torch
from torch import nn
import torch.nn.functional as F

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.linear import solve_right
from dpg_robot.learn.networks import EnsembleMLP

FIRST_SPREAD = 0.5
# Whether more of a scalar outcome speaks for more of the action depends on the action: one product
# is not enough.
SCALAR_RANK = 3
MOMENT_RATE = 0.01
CORRELATION_RIDGE = 0.01
LIKELIHOOD_WEIGHT = 0.05
# No element of the action is ever lost from sight.
LEAST_SENSITIVITY = 0.03
# An effect may be none within so many standard errors, or so small a part of the largest: what a
# replay of many policies lets it seem. Fewer transitions tell nothing.
DOUBT, NEGLIGIBLE = 3.0, 0.05
LEAST_UNSEEN = 200


class Denoised(NamedTuple):
    """What denoising a batch of actions gave.

    :param loss: mean squared error of both answers, in units of sigma^2, plus a likelihood of the
        spread; scalar.
    :param action: a_hat = E[a | a~, s], shape (B, action_dim), detached.
    :param score: estimated grad_a_hat log p(o | s, a_hat), shape (B, action_dim), detached.
    :param disturbance: xi = F^-1 score, shape (B, action_dim), detached: what the world added to
        the action, read from the outcome. F = E[score score^T | s, a_hat] is learned.
    :param surprise: estimated -grad_a_hat log p(a_hat | s), shape (B, action_dim), detached.
    :param power: an estimate of the score's squares from each sample, shape (B, action_dim),
        detached; by Tweedie's formula, and without the score's own errors on transitions that the
        network was not fitted to, as far as a_hat is right for these.
    :param shift: what the outcome changes, a_hat_o - a_hat, and ``residual``, a - a_hat, both
        (B, action_dim) and detached.
    :param width: that of the exploration given s and a~, shape (B, action_dim), detached.
    """

    loss: torch.Tensor
    action: torch.Tensor
    score: torch.Tensor
    disturbance: torch.Tensor
    surprise: torch.Tensor
    power: torch.Tensor
    shift: torch.Tensor
    residual: torch.Tensor
    width: torch.Tensor

    @property
    def explained(self) -> torch.Tensor:
        """Share of the posterior variance of a, given a~ and s, that the outcome explains.

        Scalar; on held-out transitions it says how good the score is.
        """
        given, null = (self.residual - self.shift).square().mean(), self.residual.square().mean()
        return 1 - given / null

    @property
    def calibration(self) -> torch.Tensor:
        """Slope of a - a_hat on the shift, scalar; 1 for a score of the right size.

        It is less where the score is over-fitted.
        """
        return (self.shift * self.residual).sum() / self.shift.square().sum().clamp(min=1e-12)

    @property
    def spread(self) -> torch.Tensor:
        """Geometric mean width of the exploration, shape (action_dim,)."""
        return self.width.log().mean(0).exp()


class Denoiser(nn.Module):
    """Least-squares denoiser of actions, with and without the outcome.

    ``a~ = a + sigma * eta``; the answers are ``a_hat_o = E[a | a~, s, o]`` and
    ``a_hat = E[a | a~, s]``. By Tweedie's formula (Miyasawa 1961; Kadkhodaie and Simoncelli 2020)
    and Bayes' rule, ``(a_hat_o - a_hat) / sigma^2 = grad_a~ log p(o | s, a~)``, whatever policy
    chose the actions. The second-order formula, ``d a_hat / d a~ = Cov[a | a~, s] / sigma^2``,
    turns it into the score at the denoised action itself (docs/mathematics.md):

        grad_a_hat log p(o | s, a_hat) = Cov[a | a~, s]^-1 (a_hat_o - a_hat).

    The covariance is taken as diagonal, ``1 / variance = 1 / sigma^2 + 1 / spread^2``, as it is
    for Gaussian exploration of width ``spread``: another output of ``prior``, a function of (s,
    a~), fitted by the likelihood of the residuals a - a_hat. The score's variance given (s, a~) is
    another; the correlation of its elements is an average over all data.

    The outcome enters by one number for each element of the action, ``e(s, o)``: what the outcome
    says was carried out, whatever was asked for. The answer with the outcome goes a part of the
    way from a_hat to there, a function of (s, a~). That is exact for Gaussian exploration in a
    world that adds Gaussian noise to each element. With a scalar outcome the change is a sum of a
    few such products.

    ``prior`` maps (a~, s, log(sigma / sigma_0)) to a_hat, spread, fisher, and to where and how far
    the outcome moves a_hat; ``inverse``, a model of inverse dynamics, maps (s, o) to e, (B,
    action_dim), in normalised action units.
    """

    def __init__(self, obs_dim: int, action_dim: int, outcome_dim: int,
                 hidden: tuple[int, ...], sigma: float, sigma_ratio: float = 1.0):
        """Create a denoiser.

        :param sigma: standard deviation of the denoising noise, in normalised action units;
            the geometric middle of its range.
        :param sigma_ratio: each sample's sigma is drawn between ``sigma / sigma_ratio`` and
            ``sigma * sigma_ratio``, log-uniformly, and is an input of ``prior``.
        :raises SpecError: if sigma is not positive, or sigma_ratio below 1.
        """
        super().__init__()
        if sigma <= 0:
            raise SpecError(f'denoiser sigma must be greater than 0, got {sigma}')
        if sigma_ratio < 1:
            raise SpecError(f'denoiser sigma_ratio must be at least 1, got {sigma_ratio}')
        self.sigma, self.log_ratio = sigma, math.log(sigma_ratio)
        self.rank = SCALAR_RANK if outcome_dim == 1 else 1
        self.prior = EnsembleMLP(action_dim + obs_dim + 1, hidden, (4 + self.rank) * action_dim)
        self.inverse = EnsembleMLP(obs_dim + outcome_dim, hidden, self.rank * action_dim)
        self.register_buffer('correlation', torch.eye(action_dim))
        self.register_buffer('power', torch.ones(action_dim))
        self.register_buffer('unseen_power', torch.zeros(action_dim))
        self.register_buffer('unseen_square', torch.zeros(action_dim))
        self.register_buffer('num_unseen', torch.tensor(0.0))
        self.moment_rate = MOMENT_RATE

    @property
    def sensitivity(self) -> torch.Tensor:
        """Return how much the outcome depends on each element of the action.

        :return: root mean square of the score, as a part of the largest, shape (action_dim,), and
            at least ``LEAST_SENSITIVITY``.
        """
        power = self.power.clamp(min=1e-12)  # what is estimated may be negative
        return (power / power.max()).sqrt().clamp(min=LEAST_SENSITIVITY)

    @property
    def certainty(self) -> torch.Tensor:
        """Return how certain it is that the outcome depends on each element of the action at all.

        How much of the mean of ``power`` on unseen transitions its standard error and what is
        negligible beside the largest leave, by the non-negative garrote (Breiman 1995).

        :return: from 0, where there may be no effect, to 1 for the most certain element, shape
            (action_dim,); 1 for all as long as none is certain.
        """
        power = self.unseen_power.clamp(min=1e-12)  # less than nothing is nothing
        error2 = (self.unseen_square - self.unseen_power.square()).clamp(min=0.0) \
            / self.num_unseen.clamp(min=1.0)
        none2 = DOUBT ** 2 * error2 + (NEGLIGIBLE * power.max()).square()
        certain = (1 - none2 / power.square()).clamp(min=0.0)
        most = certain.max()
        known = (self.num_unseen >= LEAST_UNSEEN) & (most > 0)
        return torch.where(known, certain / most, 1.0)

    def follow_unseen(self, power: torch.Tensor, count: int | torch.Tensor, memory: int) -> None:
        """Let the certainty follow transitions that the network was not fitted to.

        :param power: as in :class:`Denoised`.
        :param count: how many there are, or 0 if they do not count.
        :param memory: the averages are of all transitions so far, and of about so many of the
            newest once there are as many.
        """
        self.num_unseen.add_(count).clamp_(max=max(memory, len(power)))
        rate = count / self.num_unseen.clamp(min=1)
        self.unseen_power.lerp_(power.mean(0), rate)
        self.unseen_square.lerp_(power.square().mean(0), rate)

    def answers(self, noised: torch.Tensor, sigma: torch.Tensor, obs: torch.Tensor,
                outcome: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the residuals (a_hat - a~) / sigma with the outcome and without, spread, fisher.

        ``prior`` predicts ``(a_hat - a~) sqrt(sigma^2 + sigma_0^2) / sigma^2``, which stays of
        order one at any sigma, and the part of the way to e(s, o) in units of ``sigma^2 / (sigma^2
        + sigma_0^2)``: no score has its error divided by a small sigma.

        :param noised: noised actions a~, shape (B, action_dim).
        :param sigma: their noise levels, shape (B, 1).
        :param obs: normalised observations, shape (B, obs_dim).
        :param outcome: normalised outcomes, shape (B, outcome_dim).
        :return: four tensors of shape (B, action_dim).
        """
        level, square = torch.log(sigma / self.sigma), sigma.square() + self.sigma ** 2
        null, log_spread, log_fisher, offset, gain, *gains = self.prior(
            torch.cat([noised, obs, level], -1))[0].chunk(4 + self.rank, -1)
        null = null * sigma / square ** 0.5
        spread = FIRST_SPREAD * torch.exp(log_spread.clamp(-5, 3))
        fisher = torch.exp(log_fisher.clamp(-8, 8)) / self.sigma ** 2
        executed, *others = self.inverse(torch.cat([obs, outcome], -1))[0].chunk(self.rank, -1)
        # The answer without the outcome is for its own error to move: here it is what it is.
        innovation = executed - (noised + sigma * null).detach() - offset
        # Half of the way at sigma_0 to begin with: products of two small factors hardly learn.
        change = (1 + 2 * gain) * innovation + sum(x * y for x, y in zip(gains, others))
        return null + change * sigma / square, null, spread, fisher

    def forward(self, action: torch.Tensor, obs: torch.Tensor,
                outcome: torch.Tensor) -> Denoised:
        """Noise actions afresh and denoise them.

        Every sample trains both answers.

        :param action: executed commands, shape (B, action_dim), in [-1, 1].
        :param obs: normalised observations, shape (B, obs_dim).
        :param outcome: normalised outcomes, shape (B, outcome_dim).
        """
        eta = torch.randn_like(action)
        level = 2 * torch.rand_like(action[:, :1]) - 1 if self.log_ratio else 0.0
        sigma = self.sigma * torch.exp(self.log_ratio * level * torch.ones_like(action[:, :1]))
        given, null, spread, fisher = self.answers(action + sigma * eta, sigma, obs, outcome)
        residual = -sigma * (null + eta).detach()  # a - a_hat
        precision = sigma ** -2 + spread ** -2
        shift = sigma * (given - null).detach()
        score = shift * precision.detach()
        likelihood = residual.square() * precision - precision.log() \
            + score.square() / fisher + fisher.log()
        errors = F.mse_loss(given, -eta) + F.mse_loss(null, -eta)
        loss = 0.5 * errors + LIKELIHOOD_WEIGHT * likelihood.mean()
        with torch.no_grad():
            # Not score^2: what an over-fitted score has besides predicts no residual.
            power = score * residual * precision
            if self.training:
                self.power.lerp_(power.mean(0), self.moment_rate)
            return Denoised(
                loss, action - residual, score, self._disturbance(score, fisher.sqrt()),
                -sigma * null * precision, power, shift, residual, spread.detach())

    def _disturbance(self, score, deviation):
        """Return F^-1 score with F = diag(deviation) correlation diag(deviation)."""
        standard = score / deviation
        if self.training:
            self.correlation.lerp_(
                standard.T @ standard / len(standard), self.moment_rate)
        # Elements that the outcome cannot tell apart would blow up; a small ridge shares them.
        eye = torch.eye(len(self.correlation), device=score.device)
        correlation = self.correlation.lerp(eye, CORRELATION_RIDGE)
        return solve_right(correlation, standard) / deviation
