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

"""The off-policy learner: one update of the policy, its value, and all that estimates g(s, a)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F

from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.learn.action_gradient import ActionGradient, NETWORKS
from dpg_robot.learn.estimators import check_outcome
from dpg_robot.learn.gradient_config import GradientConfig
from dpg_robot.learn.networks import EnsembleMLP, polyak_update, set_products
from dpg_robot.learn.policy import SquashedGaussianPolicy
from dpg_robot.learn.replay import Batch
from dpg_robot.learn.routes import inverted_ascent


@dataclass(frozen=True)
class LearnerConfig(GradientConfig):
    """Settings of the learner, with those of its gradient; ``*_rate`` are Adam step sizes.

    :param batch_size: transitions of an update, drawn from the replay.
    :param min_std: floor of the policy's standard deviation, before the tanh.
    :param temperature: weight of the entropy, its first value if it is tuned; 0 turns it off.
    :param target_entropy: entropy per action dimension to tune the temperature to [nat]; null
        keeps the temperature fixed.
    :param value_samples: actions drawn in each state to average V(s) over.
    :param soft_value: take ``T log int exp(Q / T) da`` for V(s), the value of the best policy,
        rather than that of the present one; estimated from ``value_samples`` actions.
    :param route: how g reaches theta: by the network that was fitted to it (``amortised``), or
        sample by sample, through the eps that would have given the replayed action (``inverted``).
    :param max_weight: importance weights of the inverted route are truncated at this.
    :param drift: weight of the divergence KL(slow copy of the policy | policy); 0 turns it off.
    :param drift_rate: part of the distance by which that copy follows, per update.
    :param policy_rate: step size of the policy, and of the temperature if it is tuned.
    :param target_rate: part of the distance by which the slow copy of V, which y bootstraps from,
        follows V, per update.
    :param value_weight_decay: AdamW's weight decay of V, which keeps it smooth; roughness would
        pass from state to state, since V bootstraps from itself, and drown in y what the action
        does.
    :param precision: of the products between hidden layers while training on a CPU: ``bfloat16``
        is faster on some processors, and ``auto`` takes it there.
    """

    batch_size: int = bounded(256, minimum=2)
    min_std: float = bounded(0.1, above=0, maximum=1)
    temperature: float = bounded(0.1, minimum=0)
    target_entropy: float | None = bounded(-1.0)
    value_samples: int = bounded(1, minimum=1)
    soft_value: bool = False
    route: str = bounded('amortised', choices=('amortised', 'inverted'))
    max_weight: float = bounded(2.0, above=0)
    drift: float = bounded(0.0, minimum=0)
    drift_rate: float = bounded(0.01, above=0, maximum=1)
    policy_rate: float = bounded(5e-4, above=0)
    target_rate: float = bounded(0.005, above=0, maximum=1)
    value_weight_decay: float = bounded(1.0, minimum=0)
    precision: str = bounded('auto', choices=('auto', 'float32', 'bfloat16'))

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        if self.route == 'inverted' and self.estimator == 'reinforce':
            raise SpecError(f'{name}.route must be amortised for the estimator reinforce, right '
                            f'only on average over actions, got {self.route}')
        if self.soft_value and self.temperature == 0:
            raise SpecError(f'{name}.temperature must be greater than 0 for soft_value, whose T '
                            f'it is, got {self.temperature}')
        if self.soft_value and self.value_samples < 2:
            raise SpecError(f'{name}.value_samples must be at least 2 for soft_value, which is '
                            f'the plain value of one sample, got {self.value_samples}')
        check_outcome(name, self.estimator, self.outcome)


class Learner(nn.Module):
    """Improve a policy from replayed transitions by the denoising policy gradient.

    All networks learn from one batch in one backward pass and one optimiser step: their losses
    touch disjoint parameters, since everything one takes from another is detached.
    """

    def __init__(self, config: LearnerConfig, obs_dim: int, action_dim: int,
                 achieved_goal: tuple[int, ...] = (), device: torch.device | str = 'cpu',
                 waits: bool = True):
        """Create the networks, with torch's global random state.

        :param achieved_goal: places of the achieved goal in the observation.
        :param waits: whether an update may look at values, for which a GPU must be waited for.
        """
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.policy = SquashedGaussianPolicy(obs_dim, action_dim, config.hidden, config.min_std)
        self.value = EnsembleMLP(obs_dim, config.hidden, 1)
        self.value_target = copy.deepcopy(self.value)
        self.slow_policy = copy.deepcopy(self.policy.net) if config.drift else None
        self.action_gradient = ActionGradient(config, obs_dim, action_dim, self.policy.norm,
                                              self.value_target, achieved_goal, waits)
        device = torch.device(device)
        set_products(self, config.precision, device.type)
        first = math.log(config.temperature) if config.temperature > 0 else -math.inf
        self.log_temperature = nn.Parameter(torch.tensor(first))
        self.to(device)  # drawn on the host: the same on every device
        groups = [{'params': [*self.policy.parameters(), self.log_temperature],
                   'lr': config.policy_rate, 'weight_decay': 0.0},
                  {'params': list(self.value.parameters()), 'lr': config.critic_rate,
                   'weight_decay': config.value_weight_decay},
                  *self.action_gradient.parameter_groups()]
        self.optimizer = torch.optim.AdamW(
            _merged(groups), fused=True, capturable=device.type != 'cpu')
        self._learned = [p for group in groups for p in group['params']]
        self._parts = list(self.modules())
        self.eval()

    def train(self, mode: bool = True) -> Learner:
        """Do as any module does, in a tenth of the time: an update does it twice."""
        for part in self._parts:
            object.__setattr__(part, 'training', mode)  # a module's own looks for parameters first
        return self

    @property
    def temperature(self) -> torch.Tensor:
        """Return the weight of the entropy."""
        return self.log_temperature.detach().exp()

    def observe(self, batch: Batch) -> None:
        """Let what only new transitions can tell follow them, each seen once."""
        self.policy.norm.update(batch.obs)
        self.action_gradient.observe(batch)

    def update(self, batch: Batch, report: bool = True) -> dict[str, torch.Tensor]:
        """Take one optimiser step on a batch; only here are the networks in training mode.

        :param report: whether there are to be scalars to log, which take their time.
        :return: these, or nothing.
        """
        self.train()
        amortised = self.config.route == 'amortised'
        with torch.no_grad():
            normal = self.policy.norm(batch.obs)
            slow_value = self.value_target(normal)[0, :, 0]
        losses, metrics = self.action_gradient.losses(
            batch, self._networks, slow_value, report)
        action, log_prob = self.policy.sample(batch.obs)
        # Ascend g . alpha(s, eps; theta) + temperature * entropy.
        if amortised:
            gradient, advantages = self.action_gradient.estimate(batch.obs, action)
            ascent = (gradient * action).sum(-1)
        else:
            ascent, gradient = inverted_ascent(
                self.policy, self.action_gradient, batch, self.config.max_weight, metrics)
            advantages = self.action_gradient.advantages(normal, action).detach()
        losses['policy'] = (self.temperature * log_prob - ascent).mean()
        if self.config.drift:
            losses['drift'] = self.config.drift * self.policy.divergence(
                batch.obs, self.slow_policy)
        losses['value'] = self._value_loss(
            batch.obs, normal, slow_value, advantages, log_prob.detach())
        if self.config.target_entropy is not None and self.config.temperature > 0:
            excess = -log_prob.detach() - self.config.target_entropy * self.action_dim
            losses['temperature'] = (self.log_temperature.exp() * excess).mean()
        self._step(losses)
        self.eval()
        if not report:
            return {}
        metrics |= {f'loss/{name}': loss.detach() for name, loss in losses.items()}
        return metrics | {'critic/scale': self.action_gradient.scale.clone(),
                          'policy/entropy': -log_prob.detach().mean(),
                          'policy/temperature': self.temperature,
                          'gradient/norm': gradient.norm(dim=-1).mean()}

    def measure(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses and figures on held-out transitions, which change nothing."""
        losses, metrics = self.action_gradient.losses(batch, self._networks)
        metrics |= {f'loss/{name}': loss.detach() for name, loss in losses.items()}
        return {f'held_out/{name}': value for name, value in metrics.items()}

    @property
    def _networks(self):
        """Return the networks that learn; without amortisation there is no gradient to fit."""
        return NETWORKS if self.config.route == 'amortised' else NETWORKS[:-1]

    def _value_loss(self, obs, normal, slow_value, advantages, log_prob):
        # V averages over the policy's own sampling, so it carries less noise than Q(s', a').
        with torch.no_grad():
            temperature = self.temperature
            soft = [advantages.min(0).values - temperature * log_prob]
            for _ in range(self.config.value_samples - 1):
                action, log_prob = self.policy.sample(obs)
                advantages = self.action_gradient.advantages(normal, action)
                soft.append(advantages.min(0).values - temperature * log_prob)
            soft = torch.stack(soft)
            if self.config.soft_value:
                # int exp(Q / T) da = E_pi[exp(Q / T - log pi)]
                mean = temperature * (torch.logsumexp(soft / temperature, 0)
                                      - math.log(len(soft)))
            else:
                mean = soft.mean(0)
            goal = slow_value + mean
        return F.mse_loss(self.value(normal)[0, :, 0], goal)

    def _step(self, losses):
        for parameter in self._learned:  # the optimiser's own way takes longer
            parameter.grad = None
        sum(losses.values()).backward()
        self.optimizer.step()
        polyak_update(self.value_target, self.value, self.config.target_rate)
        if self.slow_policy is not None:
            polyak_update(self.slow_policy, self.policy.net, self.config.drift_rate)


def _merged(groups):
    """Return the optimiser's groups, those of the same settings as one: each costs a call."""
    merged = {}
    for group in groups:
        settings = group['lr'], group['weight_decay']
        merged.setdefault(settings, {**group, 'params': []})['params'].extend(group['params'])
    return list(merged.values())
