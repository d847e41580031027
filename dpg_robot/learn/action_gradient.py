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

"""All that learns g(s, a) = grad_a E[y | s, a] from replayed transitions, for one estimator."""

from __future__ import annotations

import torch
from torch import nn

from dpg_robot.learn.denoiser import Denoiser
from dpg_robot.learn.estimators import (
    best_lean,
    check_achieved_goal,
    check_outcome,
    ESTIMATORS,
    lean_moments,
    regression_loss,
    Sample,
    SCALAR_OUTCOMES,
)
from dpg_robot.learn.gradient_config import GradientConfig
from dpg_robot.learn.networks import EnsembleMLP, RunningNorm
from dpg_robot.learn.outcome import (
    change_and_reward,
    choose_outcome,
    one_step_target,
    outcome_places,
)
from dpg_robot.learn.replay import Batch
from dpg_robot.learn.world_model import WorldModel

NETWORKS = ('denoiser', 'model', 'critic', 'gradient')
MOMENT_RATE = 0.01
SCALE_RATE = 0.001
NUM_DISTURBANCES = 8
# Shares, and the certainty of each action element, rest on so many new transitions, and rounds of
# all worlds.
UNSEEN_MEMORY, UNSEEN_ROUNDS = 2000, 20


class ActionGradient(nn.Module):
    """Critic, denoiser, world model and amortised gradient: those that the estimator needs.

    The critics learn the advantage ``Q(s, a) - V(s)`` in units of its own deviation, with the
    same slow V that y bootstraps from: what is left to fit is small, and of order one in any task.

    With a denoiser, baseline, guides and amortised gradient are functions of s and the denoised
    action a_hat, where the score-function identity is exact at any sigma. The critic itself is
    fitted to a: the spread of a_hat is smaller than that of a, and tells less.
    """

    def __init__(self, config: GradientConfig, obs_dim: int, action_dim: int, norm: RunningNorm,
                 value: nn.Module, achieved_goal: tuple[int, ...] = (), waits: bool = True):
        """Create the networks.

        :param norm: normaliser of observations, shared with the policy.
        :param value: slow copy of V, from normalised observations, shared with the learner.
        :param achieved_goal: places of the achieved goal in the observation.
        :param waits: whether an update may look at values, for which a GPU must be waited for.
        :raises SpecError: if the outcome is the achieved goal and there is none.
        """
        super().__init__()
        self.config, self.estimator = config, ESTIMATORS[config.estimator]
        self.norm, self.value, self.action_dim = norm, value, action_dim
        check_achieved_goal('learner', config.outcome, achieved_goal)
        self.waits = waits
        self.register_buffer('places', outcome_places(obs_dim, achieved_goal), persistent=False)
        name, state_action = config.estimator, obs_dim + action_dim
        self.guides = self._guides()
        check_outcome('learner', name, config.outcome)
        self.critic = EnsembleMLP(state_action, config.hidden, 1, config.num_critics)
        self.register_buffer('scale', torch.tensor(0.0))
        self.scale_rate = SCALE_RATE
        outcome_dim = {'state': obs_dim + 1, 'achieved_goal': len(self.places),
                       'reward': 1, 'value': 1}[config.outcome]
        self.on_disturbance = name in ('denoising', 'doubly_robust') \
            and config.outcome not in SCALAR_OUTCOMES
        self.weighs_action = config.weigh_action and self.on_disturbance \
            and config.outcome == 'state'
        self.outcome_norm = RunningNorm(obs_dim + 1)
        self.denoiser = self.model = self.gradient = None
        if name in ('denoising', 'doubly_robust', 'disturbance_critic', 'reinforce'):
            self.denoiser = Denoiser(obs_dim, action_dim, outcome_dim, config.denoiser_hidden,
                                     config.sigma, config.sigma_ratio)
        if name == 'disturbance_critic':
            self.register_buffer('disturbance_std', torch.zeros(action_dim))
        if name in ('model', 'discriminative') or 'model' in self.guides or (
                self.estimator.correction and config.baseline == 'model'):
            self.model = WorldModel(obs_dim, action_dim, obs_dim + 1, config.hidden)
        if self.estimator.correction:
            self.gradient = EnsembleMLP(state_action, config.gradient_hidden, action_dim,
                                        config.num_gradients)
            nn.init.zeros_(self.gradient.weights[-1])  # nothing until data ask for it
            nn.init.zeros_(self.gradient.biases[-1])
            # The amortised gradient itself is the last of the guides.
            num_guides = len(self.guides) + 1
            self.register_buffer('moments', torch.zeros(num_guides, num_guides + 1))
            # What guides and amortised gradient contribute to g(s, a).
            self.register_buffer('shares', torch.zeros(num_guides) if self.on_disturbance
                                 else torch.ones(num_guides))
            self.register_buffer('num_followed', torch.tensor(0.0))

    def _guides(self):
        if self.estimator.leans:
            return {'critic': ('critic',), 'model': ('model',),
                    'both': ('critic', 'model')}[self.config.lean_on]
        # That of reinforce makes up for the baseline's dependence on the action.
        return (self.config.baseline,) if self.config.estimator == 'reinforce' else ()

    def parameter_groups(self) -> list[dict]:
        """Return the optimiser's groups."""
        c = self.config
        groups = [('critic', c.critic_rate, 0.0),
                  ('denoiser', c.denoiser_rate, c.denoiser_weight_decay),
                  ('model', c.critic_rate, 0.0),
                  ('gradient', c.gradient_rate, c.gradient_weight_decay)]
        return [{'params': list(getattr(self, name).parameters()), 'lr': rate,
                 'weight_decay': decay} for name, rate, decay in groups
                if getattr(self, name) is not None]

    @property
    def lean(self) -> torch.Tensor:
        """Return how far a sample's estimate leans on each guide, shape (num_guides,)."""
        if not self.estimator.leans:
            return torch.ones(len(self.guides), device=self.scale.device)
        return best_lean(torch.cat([self.moments[:-1, :-2], self.moments[:-1, -1:]], 1))

    def observe(self, batch: Batch) -> None:
        """Let what only new transitions can tell follow them, each seen once.

        On what it was fitted to, a critic explains more than elsewhere, and would get too much of
        a share.
        """
        self.outcome_norm.update(change_and_reward(batch))
        if not self.on_disturbance:
            return
        denoised, sample, own = self._each(batch)
        memory = max(UNSEEN_MEMORY, UNSEEN_ROUNDS * len(own))
        count = len(own) * (self.scale > 0)  # before the first update nothing has been learned
        if self.weighs_action:
            self.denoiser.follow_unseen(denoised.power, count, memory)
        self.num_followed.add_(count).clamp_(max=memory)
        self.follow(sample, own, count / self.num_followed.clamp(min=1.0))

    def target(self, batch: Batch) -> torch.Tensor:
        """Return y = r + gamma (1 - terminated) V(s'), rewards scaled, shape (B,)."""
        return one_step_target(self.config, self.norm, self.value, batch.reward, batch.next_obs,
                               batch.terminated)

    def set_scale(self, batch: Batch) -> None:
        """Take the scale of y - V(s) from these transitions, and keep it."""
        with torch.no_grad():
            difference = self.target(batch) - self._value(self.norm(batch.obs))
            self.scale.copy_(difference.square().mean().sqrt())
            self.scale_rate = 0.0

    def losses(self, batch: Batch, wanted: tuple[str, ...] = NETWORKS,
               value: torch.Tensor | None = None, report: bool = True
               ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the loss of every network, by name, and scalars to log, if ``report``.

        The losses touch disjoint parameters: what one takes from another is detached. In training
        mode the running moments follow.

        :param wanted: the networks whose losses are asked for.
        :param value: slow V(s), shape (B,), where it is known already.
        """
        obs = self.norm(batch.obs)
        with torch.no_grad():
            value = self._value(obs) if value is None else value
            target = self._follow_scale(self.target(batch) - value)
        losses, metrics, denoised, action = {}, {} if report else None, None, batch.action
        if self.model is not None and 'model' in wanted:
            outcome = self.outcome_norm(change_and_reward(batch))
            losses['model'] = self.model.loss(obs, batch.action, outcome)
        if self.denoiser is not None and (self.config.estimator == 'disturbance_critic'
                                          or {'denoiser', 'gradient'}.intersection(wanted)):
            denoised = self._denoise(batch, obs, target)
            losses['denoiser'], action = denoised.loss, denoised.action
            if report:
                metrics |= self._describe(denoised)
        if 'critic' in wanted:
            losses['critic'] = self._critic_loss(obs, batch, denoised, target, metrics)
        if self.gradient is not None and 'gradient' in wanted:
            # A regression on the disturbance needs no guides.
            guided = report or not self.on_disturbance
            sample = self._sample(batch, obs, action, target, denoised, guided)
            losses['gradient'] = self._gradient_loss(obs, action, sample, metrics)
        return {name: loss for name, loss in losses.items() if name in wanted}, metrics or {}

    def per_sample(self, batch: Batch) -> tuple[Sample, torch.Tensor]:
        """Return what the estimators use of each transition, and the amortised gradient there."""
        _, sample, own = self._each(batch)
        return sample._replace(lean=self.lean), own

    @torch.no_grad()
    def _each(self, batch):
        obs = self.norm(batch.obs)
        target = self._in_units(self.target(batch) - self._value(obs))
        denoised, action = None, batch.action
        if self.denoiser is not None:
            denoised = self._denoise(batch, obs, target)
            action = denoised.action
        sample = self._sample(batch, obs, action, target, denoised)
        return denoised, sample, self._amortised(obs, action).mean(0)

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return g(s, a), shape (B, action_dim), per unit of normalised action, detached."""
        return self.estimate(obs, action)[0]

    def estimate(self, obs: torch.Tensor, action: torch.Tensor
                 ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return g(s, a), as :meth:`forward`, and Q(s, a) - V(s) by each critic.

        :param obs: physical observations, shape (B, obs_dim).
        :param action: normalised actions, shape (B, action_dim).
        :return: shapes (B, action_dim) and (num_critics, B), detached.
        """
        physical, obs, action = obs, self.norm(obs), action.detach()
        name = self.config.estimator
        if name == 'disturbance_critic':
            critic_grad, q = self._smoothed_critic(obs, action)
        elif name == 'critic' or self.estimator.leans and 'critic' in self.guides:
            critic_grad, q = self._critic_slope(obs, action)
        else:
            with torch.no_grad():
                q = self._advantages(obs, action)
        if self.gradient is not None:
            with torch.no_grad():
                total = self.shares[-1] * self._amortised(obs, action).mean(0)
        if name in ('critic', 'disturbance_critic'):
            total = critic_grad
        elif name == 'model':
            total = self._model_slope(physical, obs, action)
        elif self.estimator.leans:
            for share, guide in zip(self.shares, self.guides):
                total = total + share * (critic_grad if guide == 'critic' else
                                         self._model_slope(physical, obs, action))
        return total * self.scale, q * self.scale

    def advantages(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return Q(s, a) - V(s) by each critic, shape (num_critics, B).

        :param obs: normalised observations, shape (B, obs_dim).
        """
        if self.config.estimator == 'disturbance_critic':
            return self.scale * self._smoothed_critic(obs, action)[1]
        return self.scale * self._advantages(obs, action)

    def _advantages(self, obs, action):
        return self.critic(torch.cat([obs, self._weighed(action)], -1))[..., 0]

    def _weighed(self, action):
        # y is a function of s and the outcome: neither Q nor G depends on an element that the
        # outcome does not depend on, with which the networks could only fit noise.
        return action * self.denoiser.certainty if self.weighs_action else action

    def _value(self, obs):
        return self.value(obs)[0, :, 0]

    def _follow_scale(self, difference):
        """Return y - V(s) in units of its own deviation."""
        if self.training:
            now = difference.square().mean().sqrt()
            following = self.scale.lerp(now, self.scale_rate)
            self.scale.copy_(torch.where(self.scale > 0, following, now))
        return self._in_units(difference)

    def _in_units(self, difference):
        return difference / self.scale.clamp(min=1e-6)

    def _denoise(self, batch, obs, target=None):
        """Denoise the actions; the target matters only where it is the outcome."""
        changes = self.outcome_norm(change_and_reward(batch))
        outcome = choose_outcome(self.config.outcome, changes, target, self.places)
        return self.denoiser(batch.action, obs, outcome)

    def _describe(self, denoised):
        return {'score/norm': denoised.score.norm(dim=-1).mean(),
                'score/mean': denoised.score.mean(0).norm(),
                'score/explained': denoised.explained,
                'score/calibration': denoised.calibration,
                'exploration/spread_over_sigma': denoised.spread.min() / self.config.sigma}

    def _follow_disturbance(self, denoised):
        if self.training:
            # xi is what the world adds and a - a_hat, and of the latter nothing is unknown.
            variance = (denoised.disturbance - denoised.residual).var(0)
            self.disturbance_std.square_().lerp_(variance, MOMENT_RATE).sqrt_()

    @torch.no_grad()
    def _sample(self, batch, obs, action, target, denoised, guided=True):
        """Collect what the estimators use, without guides if not ``guided``."""
        name, guides = self.config.estimator, self.guides if guided else ()
        critic_slope, q = self._critic_slope(obs, action) if 'critic' in guides else \
            (None, self._advantages(obs, action))
        guides = [critic_slope if guide == 'critic' else
                  self._model_slope(batch.obs, obs, action) for guide in guides]
        guides = torch.stack(guides) if guides else action.new_zeros(0, *action.shape)
        if name == 'discriminative':
            score = disturbance = self.model.score(
                obs, batch.action, self.outcome_norm(change_and_reward(batch)))
        else:
            score = denoised.surprise if name == 'reinforce' else denoised.score
            disturbance = denoised.disturbance
        baseline = q.mean(0) if self.config.baseline == 'critic' else \
            self._model_target(batch.obs, obs, action)
        advantage = target - baseline
        # No loss leans; :meth:`per_sample`, whose estimates do, puts it in.
        lean = advantage.new_ones(len(self.guides))
        instrument = (denoised.residual + disturbance) / 2 if self.on_disturbance else None
        return Sample(advantage, score, guides, disturbance, lean, instrument)

    def follow(self, sample: Sample, own: torch.Tensor, rate: float | torch.Tensor) -> None:
        """Let the shares follow a batch that nothing was fitted to.

        :param own: the amortised gradient there, shape (B, action_dim).
        :param rate: weight of the batch in the running averages.
        """
        guides = torch.cat([sample.guides, own[None]])
        self.moments.lerp_(lean_moments(sample._replace(guides=guides),
                                        self.denoiser.sensitivity.square()), rate)
        self.shares.copy_(best_lean(self.moments))

    def _critic_loss(self, obs, batch, denoised, target, metrics):
        action = batch.action
        if self.config.estimator == 'disturbance_critic':
            action = denoised.action.detach() + denoised.disturbance
            self._follow_disturbance(denoised)
        q = self._advantages(obs, action)
        if metrics is not None:
            metrics['critic/residual'] = (target - q.detach().mean(0)).square().mean().sqrt()
        return (q - target).square().mean(1).sum()

    def _gradient_loss(self, obs, action, sample, metrics):
        guess = self._amortised(obs, action)
        if metrics is not None:
            metrics |= self._describe_gradient(guess.detach().mean(0), sample)
        if not self.on_disturbance:
            return (guess - self.estimator.correction(sample)).square().sum(-1).mean(1).sum()
        return regression_loss(guess, sample).mean(1).sum()

    @torch.no_grad()
    def _describe_gradient(self, own, sample):
        total = self.shares[-1] * own
        if self.estimator.leans:
            total = total + torch.tensordot(self.shares[:-1], sample.guides, 1)
        signal = (total * sample.disturbance).sum(-1)
        metrics = {'gradient/signal': signal.square().mean().sqrt()}
        if self.denoiser is not None:  # a score is no disturbance
            # 1 if the estimate is of the right size, less where it is over-fitted.
            metrics['gradient/calibration'] = (signal * sample.advantage).sum() \
                / signal.square().sum().clamp(min=1e-12)
        if self.on_disturbance:
            metrics |= {f'gradient/share_{guide}': share
                        for guide, share in zip((*self.guides, 'own'), self.shares.clone())}
        return metrics

    def _amortised(self, obs, action):
        if self.config.estimator == 'reinforce':  # a function of s only: an average over actions
            action = torch.zeros_like(action)
        gradient = self._weighed(self.gradient(torch.cat([obs, self._weighed(action)], -1)))
        # Where the outcome hardly depends on an element, its disturbance is little but noise: the
        # network answers for each in units in which all disturbances are as large.
        return gradient * self.denoiser.sensitivity if self.on_disturbance else gradient

    def _critic_slope(self, obs, action):
        """Return the critics' mean gradient, (B, action_dim), and each critic, (n, B)."""
        q, slope = self.critic.slope(torch.cat([obs, self._weighed(action)], -1), self.action_dim)
        return self._weighed(slope), q  # by the chain rule

    def _model_slope(self, physical, obs, action):
        """Return the gradient of the model's target, (B, action_dim)."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            total = self._model_target(physical, obs, action)
            return torch.autograd.grad(total.sum(), action)[0]

    def _model_target(self, physical, obs, action):
        """Return r_hat + gamma V(s'_hat(s, a)) - V(s), in units of ``scale``, shape (B,)."""
        outcome = self.outcome_norm.invert(self.model.predict(obs, action))
        following = self._value(self.norm(physical + outcome[:, :-1]))
        target = self.config.reward_scale * outcome[:, -1] + self.config.gamma * following
        return self._in_units(target - self._value(obs))

    def _smoothed_critic(self, obs, action):
        """Return gradient and advantages of the critic, averaged over what the world adds.

        It knows the executed action, but the policy's g and V are those of the command.
        """
        half = self.disturbance_std * torch.randn(
            NUM_DISTURBANCES // 2, *action.shape, device=action.device)
        draws = (self._critic_slope(obs, action + xi) for xi in torch.cat([half, -half]))
        gradients, advantages = zip(*draws)
        return torch.stack(gradients).mean(0), torch.stack(advantages).mean(0)
