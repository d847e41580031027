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

"""The learner: one update of policy, denoiser, critic, value and amortised gradient."""

from __future__ import annotations

from dataclasses import dataclass
import math

import torch
from torch import nn

from dpg_robot.contract.strict import bounded
from dpg_robot.learn.denoiser import Denoiser
from dpg_robot.learn.estimators import best_lean, ESTIMATORS, Sample
from dpg_robot.learn.networks import EnsembleMLP, polyak_update, RunningNorm
from dpg_robot.learn.policy import SquashedGaussianPolicy
from dpg_robot.learn.replay import Batch


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learner; ``*_rate`` are Adam step sizes.

    :param estimator: how the policy's gradient is estimated.
    :param gamma: discount per control period.
    :param hidden: layer widths of policy, critic and value; likewise the other ``*_hidden``.
    :param sigma: denoising noise, in normalised action units.
    :param min_std: floor of the policy's standard deviation, before the tanh.
    :param reward_scale: rewards are multiplied by this; the entropy is not.
    :param temperature: weight of the entropy, its first value if it is tuned; 0 turns it off.
    :param target_entropy: entropy per action dimension to tune the temperature to [nat]; null
        keeps the temperature fixed.
    :param num_gradients: members of the amortised gradient's ensemble.
    :param target_rate: how fast target networks follow, per update.
    """

    estimator: str = bounded('doubly_robust', choices=tuple(ESTIMATORS))
    gamma: float = bounded(0.95, minimum=0, maximum=0.9999)
    batch_size: int = bounded(256, minimum=2)
    hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    denoiser_hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    gradient_hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    sigma: float = bounded(0.2, above=0)
    min_std: float = bounded(0.1, above=0, maximum=1)
    reward_scale: float = bounded(1.0, above=0)
    temperature: float = bounded(0.1, minimum=0)
    target_entropy: float | None = bounded(-1.0)
    policy_rate: float = bounded(5e-4, above=0)
    critic_rate: float = bounded(1e-3, above=0)
    denoiser_rate: float = bounded(1e-3, above=0)
    gradient_rate: float = bounded(3e-4, above=0)
    gradient_weight_decay: float = bounded(3.0, minimum=0)
    num_gradients: int = bounded(2, minimum=1)
    target_rate: float = bounded(0.01, above=0, maximum=1)


class Learner(nn.Module):
    """Improve a policy from replayed transitions by the denoising policy gradient.

    The estimators with a denoiser take the noised action a~ for the action throughout: the critic
    learns b(s, a~) = E[y | s, a~], the score is that at a~, and the amortised gradient regresses
    on a~. There the score-function identity is exact at any sigma, and fresh noise in every batch
    keeps the networks from over-fitting the replay.

    All networks learn from one batch in one backward pass and one optimiser step: their losses
    touch disjoint parameters, since everything one takes from another is detached.
    """

    def __init__(self, config: LearnerConfig, obs_dim: int, action_dim: int):
        """Create the networks, with torch's global random state."""
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.estimator = ESTIMATORS[config.estimator]
        self.policy = SquashedGaussianPolicy(obs_dim, action_dim, config.hidden, config.min_std)
        state_action = obs_dim + action_dim
        self.critic = EnsembleMLP(state_action, config.hidden, 1, 2)
        self.critic_target = EnsembleMLP(state_action, config.hidden, 1, 2)
        self.value = EnsembleMLP(obs_dim, config.hidden, 1)
        self.value_target = EnsembleMLP(obs_dim, config.hidden, 1)
        polyak_update(self.critic_target, self.critic, 1.0)
        polyak_update(self.value_target, self.value, 1.0)
        first = math.log(config.temperature) if config.temperature > 0 else -math.inf
        self.log_temperature = nn.Parameter(torch.tensor(first))
        if self.estimator.correction:
            outcome_dim = obs_dim + 1
            self.outcome_norm = RunningNorm(outcome_dim)
            self.denoiser = Denoiser(obs_dim, action_dim, outcome_dim, config.denoiser_hidden,
                                     config.sigma)
            self.gradient = EnsembleMLP(state_action, config.gradient_hidden, action_dim,
                                        config.num_gradients)
            self.register_buffer('fisher', torch.eye(action_dim))
            self.register_buffer('lean_moments', torch.zeros(2))
        self.optimizer = self._make_optimizer()

    def _make_optimizer(self):
        c = self.config
        groups = [{'params': self.policy.parameters(), 'lr': c.policy_rate},
                  {'params': [*self.critic.parameters(), *self.value.parameters()],
                   'lr': c.critic_rate},
                  {'params': [self.log_temperature], 'lr': c.policy_rate}]
        if self.estimator.correction:
            groups += [{'params': self.denoiser.parameters(), 'lr': c.denoiser_rate},
                       {'params': self.gradient.parameters(), 'lr': c.gradient_rate,
                        'weight_decay': c.gradient_weight_decay}]
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    @property
    def temperature(self) -> torch.Tensor:
        """Return the weight of the entropy."""
        return self.log_temperature.detach().exp()

    @property
    def lean(self) -> torch.Tensor:
        """Return how far the doubly robust estimator leans on the critic, 0 to 1."""
        covariance, variance = self.lean_moments
        return (covariance / variance.clamp(min=1e-12)).clamp(0, 1)

    def observe(self, batch: Batch) -> None:
        """Let the normalisers follow new transitions, each seen once."""
        self.policy.norm.update(batch.obs)
        if self.estimator.correction:
            self.outcome_norm.update(outcome_of(batch))

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one optimiser step on a batch.

        :return: scalars to log.
        """
        obs, target = self.policy.norm(batch.obs), self._target(batch)
        action, log_prob = self.policy.sample(batch.obs)
        losses, metrics = {}, {}
        if self.estimator.correction:
            gradient = self._learn_gradient(batch, obs, target, action, losses, metrics)
        else:
            q = self.critic(torch.cat([obs, batch.action], -1))[..., 0]
            losses['critic'] = (q - target).square().mean(1).sum()
            gradient = self._critic_grad(obs, action)
        losses['value'] = self._value_loss(obs, action.detach(), log_prob.detach())
        # Ascend g . alpha(s, eps; theta) + temperature * entropy.
        losses['policy'] = (self.temperature * log_prob - (gradient * action).sum(-1)).mean()
        if self.config.target_entropy is not None and self.config.temperature > 0:
            excess = -log_prob.detach() - self.config.target_entropy * self.action_dim
            losses['temperature'] = (self.log_temperature.exp() * excess).mean()
        self._step(losses)
        metrics |= {f'loss/{name}': loss.detach() for name, loss in losses.items()}
        return metrics | {'value/target_std': target.std(),
                          'policy/entropy': -log_prob.detach().mean(),
                          'policy/temperature': self.temperature,
                          'gradient/norm': gradient.norm(dim=-1).mean()}

    @torch.no_grad()
    def _target(self, batch):
        """Return y = r + gamma (1 - terminated) V(s'), shape (B,)."""
        bootstrap = self.value_target(self.policy.norm(batch.next_obs))[0, :, 0]
        return self.config.reward_scale * batch.reward \
            + self.config.gamma * (1 - batch.terminated) * bootstrap

    def _learn_gradient(self, batch, obs, target, action, losses, metrics):
        """Add the losses of denoiser, critic and amortised gradient; return g at ``action``."""
        outcome = self.outcome_norm(outcome_of(batch))
        losses['denoiser'], noised, score = self.denoiser.loss_and_score(
            batch.action, obs, outcome)
        noised.requires_grad_()
        q = self.critic(torch.cat([obs, noised], -1))[..., 0]
        losses['critic'] = (q - target).square().mean(1).sum()
        critic_grad, = torch.autograd.grad(q.mean(0).sum(), noised, retain_graph=True)

        sample = self._sample(target - q.detach().mean(0), score, critic_grad)
        guess = self.gradient(torch.cat([obs, noised.detach()], -1))
        error = guess - self.estimator.correction(sample)
        losses['gradient'] = error.square().sum(-1).mean(1).sum()
        with torch.no_grad():
            gradient = self.gradient(torch.cat([obs, action], -1)).mean(0)
        if self.estimator.uses_critic:
            gradient = gradient + sample.lean * self._critic_grad(obs, action)
        metrics |= {'score/norm': score.norm(dim=-1).mean(), 'score/mean': score.mean(0).norm(),
                    'value/advantage_std': sample.advantage.std(), 'gradient/lean': sample.lean}
        return gradient

    def _sample(self, advantage, score, critic_grad):
        """Collect what the estimators use, and let the running moments follow."""
        self.fisher.lerp_(score.T @ score / score.shape[0], 0.01)
        ridge = 1e-3 * self.fisher.diagonal().mean().expand(self.action_dim)
        sample = Sample(advantage, score, critic_grad, self.fisher + torch.diag(ridge), self.lean)
        self.lean_moments.lerp_(torch.stack(best_lean(sample)), 0.01)
        return sample

    def _critic_grad(self, obs, action):
        action = action.detach().requires_grad_()
        q = self.critic(torch.cat([obs, action], -1)).mean(0).sum()
        return torch.autograd.grad(q, action)[0]

    def _value_loss(self, obs, action, log_prob):
        # V averages over the policy's own sampling, so it carries less noise than Q(s', a').
        with torch.no_grad():
            q = self.critic_target(torch.cat([obs, action], -1))[..., 0].min(0).values
            goal = q - self.temperature * log_prob
        return (self.value(obs)[0, :, 0] - goal).square().mean()

    def _step(self, losses):
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        polyak_update(self.critic_target, self.critic, self.config.target_rate)
        polyak_update(self.value_target, self.value, self.config.target_rate)


def outcome_of(batch: Batch) -> torch.Tensor:
    """Return what happened next: s' - s and the reward, shape (B, obs_dim + 1)."""
    return torch.cat([batch.next_obs - batch.obs, batch.reward[:, None]], -1)
