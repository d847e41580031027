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

"""The on-policy learner: g(s, a), sample by sample, through the eps that chose the action.

    grad_theta J = E[ g_i . d alpha(s_i, eps_i; theta) / d theta ],   g_i = (A_i - b) u_i

A_i is a generalised advantage over many steps, u_i the denoiser's score of the one step. Given s',
the rest of the return does not depend on a. So with the outcome (s', r) (``state``), or A itself
(``value``), E[A u | s, a] is the gradient of E[A | s, a] for any lambda (docs/mathematics.md).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
import math
from typing import NamedTuple

import torch
from torch import nn

from dpg_robot.contract.strict import bounded
from dpg_robot.learn.denoiser import Denoiser
from dpg_robot.learn.device import Captured
from dpg_robot.learn.estimators import (
    best_lean,
    check_achieved_goal,
    check_outcome,
    ESTIMATORS,
    lean_moments,
    Sample,
)
from dpg_robot.learn.gae import generalised_advantage, Rollout
from dpg_robot.learn.networks import EnsembleMLP, polyak_update, RunningNorm
from dpg_robot.learn.outcome import change_and_reward, choose_outcome, outcome_places
from dpg_robot.learn.policy import SquashedGaussianPolicy

MOMENT_RATE = 0.1


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of the on-policy learner; ``*_rate`` are Adam step sizes.

    :param estimator: how the policy's gradient is estimated; ``reinforce`` is the classical one.
    :param outcome: what the denoiser is told; ``achieved_goal`` is right only where the return
        depends on the next state through that alone.
    :param horizon: steps of each world in one rollout.
    :param gamma: discount, for each control period.
    :param lam: lambda, the weight of later temporal differences.
    :param corrected: renormalise the weights where a rollout or a truncation cuts the sum off.
    :param baseline: b of the estimators with a denoiser: V(s) alone (``value``), or the critic's
        advantage of the action as well (``critic``).
    :param num_epochs: passes over a rollout to fit denoiser, critic and V.
    :param policy_epochs: passes over it to improve the policy.
    :param minibatches: parts of a rollout, each an optimiser step of a pass.
    :param hidden: widths of the hidden layers of policy, V and critic.
    :param denoiser_hidden: widths of those of each of the denoiser's two networks.
    :param sigma: standard deviation of the denoising noise, in normalised action units.
    :param sigma_ratio: above 1, each sample's is drawn from ``sigma / sigma_ratio`` to
        ``sigma * sigma_ratio``.
    :param min_std: floor of the policy's standard deviation, before the tanh.
    :param temperature: weight of the entropy, against advantages in units of their deviation; its
        first value if it is tuned; 0 turns it off.
    :param target_entropy: entropy per action dimension to tune the temperature to [nat]; null
        keeps the temperature fixed.
    :param clip: how far reinforce lets a ratio of densities, new to old, leave 1.
    :param drift: weight of the divergence KL(slow copy of the policy | policy), against the same
        advantages; 0 turns it off.
    :param drift_rate: part of the distance by which that copy follows, per rollout: at 1 it is the
        policy that acted, near which estimates hold.
    :param policy_rate: step size of the policy, and of the temperature if it is tuned.
    :param value_rate: step size of V and critic.
    :param denoiser_rate: step size of the denoiser.
    """

    estimator: str = bounded(
        'doubly_robust', choices=('denoising', 'doubly_robust', 'critic', 'reinforce'))
    outcome: str = bounded('state', choices=('state', 'achieved_goal', 'value'))
    horizon: int = bounded(32, minimum=1)
    gamma: float = bounded(0.95, minimum=0, maximum=0.9999)
    lam: float = bounded(0.9, minimum=0, maximum=1)
    corrected: bool = False
    baseline: str = bounded('critic', choices=('critic', 'value'))
    num_epochs: int = bounded(4, minimum=1)
    policy_epochs: int = bounded(1, minimum=1)
    minibatches: int = bounded(8, minimum=1)
    hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    denoiser_hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    sigma: float = bounded(0.2, above=0)
    sigma_ratio: float = bounded(1.0, minimum=1, maximum=10)
    min_std: float = bounded(0.1, above=0, maximum=1)
    temperature: float = bounded(0.01, minimum=0)
    target_entropy: float | None = bounded(None)
    clip: float = bounded(0.2, above=0, maximum=0.9)
    drift: float = bounded(1.0, minimum=0)
    drift_rate: float = bounded(1.0, above=0, maximum=1)
    policy_rate: float = bounded(5e-4, above=0)
    value_rate: float = bounded(1e-3, above=0)
    denoiser_rate: float = bounded(1e-3, above=0)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        check_outcome(name, self.estimator, self.outcome)


class Prepared(NamedTuple):
    """What an update reads of a rollout, B = T N rows; ``advantage`` in units of its deviation."""

    obs: torch.Tensor
    eps: torch.Tensor
    action: torch.Tensor
    log_prob: torch.Tensor
    advantage: torch.Tensor
    value_goal: torch.Tensor
    outcome: torch.Tensor
    fold: torch.Tensor


class OnPolicyLearner(nn.Module):
    """Improve a policy from rollouts of its own, by the denoising policy gradient.

    Each update fits denoiser, critic and value to the rollout, then estimates g once for every
    transition, then improves the policy with these estimates. The two critics are each fitted to
    half of the transitions and used for the other half.
    """

    def __init__(self, config: OnPolicyConfig, obs_dim: int, action_dim: int,
                 achieved_goal: tuple[int, ...] = (), device: torch.device | str = 'cpu',
                 cuda_graphs: bool = False):
        """Create the networks, with torch's global random state.

        :param achieved_goal: places of the achieved goal in the observation.
        :param cuda_graphs: on a GPU, record each kind of step as a CUDA graph.
        :raises SpecError: if the outcome is the achieved goal and there is none.
        """
        super().__init__()
        check_achieved_goal('on_policy', config.outcome, achieved_goal)
        self.config, self.action_dim, self.estimator = config, action_dim, ESTIMATORS[
            config.estimator]
        self.register_buffer('places', outcome_places(obs_dim, achieved_goal), persistent=False)
        c, device = config, torch.device(device)
        self.policy = SquashedGaussianPolicy(obs_dim, action_dim, c.hidden, c.min_std)
        self.slow_policy = copy.deepcopy(self.policy.net) if c.drift else None
        self.value = EnsembleMLP(obs_dim, c.hidden, 1)
        # A rare return may be far from all others, and V must tell it.
        self.return_norm, self.outcome_norm = RunningNorm(1, math.inf), RunningNorm(obs_dim + 1)
        self.critic = EnsembleMLP(obs_dim + action_dim, c.hidden, 1, 2)
        width = {'state': obs_dim + 1, 'achieved_goal': len(self.places), 'value': 1}[c.outcome]
        denoises = c.estimator in ('denoising', 'doubly_robust')
        self.denoiser = Denoiser(obs_dim, action_dim, width, c.denoiser_hidden, c.sigma,
                                 c.sigma_ratio) if denoises else None
        self.register_buffer('moments', torch.zeros(1, 2))
        first = math.log(c.temperature) if c.temperature > 0 else -math.inf
        self.log_temperature = nn.Parameter(torch.tensor(first))
        self.to(device)
        groups = [(self.policy, c.policy_rate), (self.value, c.value_rate),
                  (self.critic, c.value_rate), (self.denoiser, c.denoiser_rate)]
        self.optimizer = torch.optim.AdamW(
            [{'params': list(net.parameters()), 'lr': rate} for net, rate in groups if net]
            + [{'params': [self.log_temperature], 'lr': c.policy_rate}],
            weight_decay=0.0, fused=True, capturable=device.type != 'cpu')
        self._fit, self._estimate, self._improve = (
            Captured(function, device, cuda_graphs) for function in (
                self._fit_step, self._estimates, self._improve_step))

    def observe(self, rollout: Rollout) -> None:
        """Let the normalisers follow a rollout; call it with a first one before any update."""
        flat = Rollout(*(x.flatten(0, 1) for x in rollout))
        self.policy.norm.update(flat.obs)
        self.outcome_norm.update(change_and_reward(flat))

    def update(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Learn from one rollout and return scalars to log."""
        data, metrics = self.prepare(rollout)
        for rows in self._minibatches(data, self.config.num_epochs):
            fitted = self._fit(*(x[rows] for x in data))
        gradient = self.estimates(data)
        for rows in self._minibatches(data, self.config.policy_epochs):
            improved = self._improve(gradient[rows], *(x[rows] for x in data))
        metrics |= fitted | improved
        if self.slow_policy is not None:
            polyak_update(self.slow_policy, self.policy.net, self.config.drift_rate)
        # Last, so that everything above saw the observations as the acting policy did.
        self.observe(rollout)
        return metrics | {'gradient/norm': gradient.norm(dim=-1).mean(),
                          'gradient/lean_critic': best_lean(self.moments)[0],
                          'policy/temperature': self.log_temperature.detach().exp()}

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> tuple[Prepared, dict[str, torch.Tensor]]:
        """Return advantages, goals of the value and outcomes, in rows, and figures to log."""
        c, r = self.config, rollout
        value, next_value = self._values(r.obs), self._values(r.next_obs)
        difference = r.reward + c.gamma * (1 - r.terminated) * next_value - value
        advantage = generalised_advantage(
            difference, r.terminated, r.truncated, c.gamma, c.lam, c.corrected)
        returns = advantage + value
        self.return_norm.update(returns.reshape(-1, 1))
        steps, worlds = (torch.arange(n, device=value.device) for n in advantage.shape)
        fold = (worlds + 2 * steps[:, None] // len(steps)) % 2  # runs, since neighbours are alike
        scale = advantage.std(correction=0).clamp(min=1e-6)
        metrics = {'value/residual': scale, 'value/explained':
                   1 - (scale / returns.std(correction=0).clamp(min=1e-6)).square()}
        normal = (advantage - advantage.mean()) / scale
        rows = Rollout(*(x.flatten(0, 1) for x in r))
        normal = normal.flatten()
        changes = self.outcome_norm(change_and_reward(rows))
        outcome = choose_outcome(c.outcome, changes, normal, self.places)
        log_prob = self.policy.log_prob(rows.obs, rows.action)
        return Prepared(rows.obs, rows.eps, rows.action, log_prob, normal, returns.flatten(),
                        outcome, fold.flatten()), metrics

    def estimates(self, data: Prepared) -> torch.Tensor:
        """Return g of every transition, shape (B, action_dim); of reinforce A, shape (B, 1)."""
        if self.config.estimator == 'reinforce':
            return data.advantage[:, None]
        size = -(-len(data.fold) // self.config.minibatches)
        parts = zip(*(x.split(size) for x in data))
        # Each is overwritten by the next.
        return torch.cat([self._estimate(*part).clone() for part in parts])

    def _estimates(self, *part):
        data = Prepared(*part)
        obs, denoised, action = self.policy.norm(data.obs), None, data.action
        if self.denoiser is not None:
            with torch.no_grad():
                denoised = self.denoiser(action, obs, data.outcome)
            action = denoised.action
        action = action.detach().requires_grad_()
        both = self._advantages(obs, action)
        q = both.gather(0, 1 - data.fold[None])[0]  # by the critic that was fitted to the others
        guide = torch.autograd.grad(q.sum(), action)[0]
        if denoised is None:
            return guide
        baseline = q.detach() if self.config.baseline == 'critic' else 0.0
        sample = Sample(data.advantage - baseline, denoised.score, guide[None],
                        denoised.disturbance, best_lean(self.moments))
        estimate = self.estimator.correction(sample)
        if self.estimator.leans:
            estimate = estimate + sample.lean[0] * guide
            self.moments.lerp_(
                lean_moments(sample, self.denoiser.sensitivity.square()), MOMENT_RATE)
        return estimate

    def _fit_losses(self, data, metrics):
        obs, action, losses = self.policy.norm(data.obs), data.action, {}
        if self.denoiser is not None:
            denoised = self.denoiser(action, obs, data.outcome)
            losses['denoiser'], action = denoised.loss, denoised.action
            metrics |= {'score/explained': denoised.explained,
                        'score/calibration': denoised.calibration,
                        'exploration/spread_over_sigma':
                            denoised.spread.min() / self.config.sigma}
        error = (self._advantages(obs, action) - data.advantage).square()
        own = torch.stack([data.fold == 0, data.fold == 1])
        losses['critic'] = 2 * (error * own).mean(1).sum()
        metrics['critic/residual'] = (error.detach() * ~own).sum(0).mean().sqrt()
        goal = self.return_norm(data.value_goal[:, None])[:, 0]
        losses['value'] = (self.value(obs)[0, :, 0] - goal).square().mean()
        return losses

    def _policy_losses(self, data, gradient, metrics):
        action, log_prob = self.policy.sample(data.obs, data.eps)
        if self.config.estimator == 'reinforce':
            # Its gradient is A grad log pi; clipped, or a repeated step could go any way (PPO).
            ratio = (self.policy.log_prob(data.obs, data.action) - data.log_prob).exp()
            bounds = 1 - self.config.clip, 1 + self.config.clip
            ascent = torch.minimum(ratio * gradient[:, 0], ratio.clamp(*bounds) * gradient[:, 0])
        else:
            ascent = (gradient * action).sum(-1)
        temperature = self.log_temperature.detach().exp()
        losses = {'policy': (temperature * log_prob - ascent).mean()}
        if self.config.drift:
            losses['drift'] = self.config.drift * self.policy.divergence(
                data.obs, self.slow_policy)
        if self.config.target_entropy is not None and self.config.temperature > 0:
            excess = -log_prob.detach() - self.config.target_entropy * self.action_dim
            losses['temperature'] = (self.log_temperature.exp() * excess).mean()
        metrics['policy/entropy'] = -log_prob.detach().mean()
        return losses

    def _values(self, obs):
        """Return V in units of the reward, shape (...)."""
        normal = self.policy.norm(obs.flatten(0, -2))
        return self.return_norm.invert(self.value(normal)[0])[:, 0].view(obs.shape[:-1])

    def _advantages(self, obs, action):
        return self.critic(torch.cat([obs, action], -1))[..., 0]

    def _minibatches(self, data, epochs):
        size = -(-len(data.fold) // self.config.minibatches)
        for _ in range(epochs):
            # A random order; randperm would draw it on the host.
            order = torch.rand(len(data.fold), device=data.fold.device).argsort()
            yield from order.split(size)

    def _fit_step(self, *part):
        metrics = {}
        self._step(self._fit_losses(Prepared(*part), metrics), metrics)
        return metrics

    def _improve_step(self, gradient, *part):
        metrics = {}
        self._step(self._policy_losses(Prepared(*part), gradient, metrics), metrics)
        return metrics

    def _step(self, losses, metrics):
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        metrics |= {f'loss/{name}': loss.detach() for name, loss in losses.items()}
