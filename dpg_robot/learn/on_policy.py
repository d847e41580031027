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

"""On-policy training, round by round: a rollout of every world, and one update from it."""

from __future__ import annotations

from typing import Any

import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.device import check_memory
from dpg_robot.learn.gae import Rollout
from dpg_robot.learn.on_policy_learner import OnPolicyConfig, OnPolicyLearner

# Of a rollout that is learned from: itself, in rows, what is prepared of it, minibatches.
NUM_COPIES = 5
NUM_RECORDED = 1_000


class OnPolicy:
    """A learner, and the rollouts that it learns from.

    The first rollout is for the normalisers alone: with them, the recorded eps would no longer
    give the recorded action.

    :ivar steps_per_round: environment steps that a round takes.
    """

    def __init__(self, config, learner_config: OnPolicyConfig, worlds, obs_dim: int,
                 action_dim: int, achieved_goal: tuple[int, ...] = ()):
        """Create the networks on the device of the worlds.

        :param config: a :class:`dpg_robot.learn.trainer.TrainerConfig`.
        :param worlds: as in :mod:`dpg_robot.learn.worlds`.
        :raises SpecError: if a rollout does not fit into memory, or has one step only, whose
            advantage there is nothing to compare with.
        """
        self.worlds, self.device, self.updates = worlds, worlds.device, 0
        self.steps_per_round = learner_config.horizon * config.num_worlds
        if self.steps_per_round < 2:
            raise SpecError('on_policy.horizon times trainer.num_worlds must be at least 2, '
                            f'got {self.steps_per_round}')
        row_bytes = 4 * NUM_COPIES * (2 * obs_dim + 2 * action_dim + 3)
        check_memory('trainer.num_worlds', config.num_worlds,
                     learner_config.horizon * row_bytes, self.device)
        self.learner = OnPolicyLearner(
            learner_config, obs_dim, action_dim, achieved_goal, self.device,
            cuda_graphs=config.cuda_graphs)
        self._recorded = torch.zeros(0, obs_dim)

    def round(self, env_steps: int, report: bool = True) -> dict[str, torch.Tensor]:
        """Act for a rollout and learn from it.

        :param env_steps: taken before.
        :param report: whether the scalars will be logged; here they cost next to nothing.
        :return: scalars to log; none of the first rollout.
        """
        rollout = collect(self.learner.policy, self.worlds, self.learner.config.horizon)
        self._recorded = rollout.next_obs.flatten(0, 1)[-NUM_RECORDED:].clone()
        if env_steps == 0:
            self.learner.observe(rollout)
            return {}
        self.updates += 1
        return self.learner.update(rollout)

    def measure(self) -> dict[str, torch.Tensor]:
        """Return nothing: each rollout is unseen when it comes."""
        return {}

    def recorded(self, count: int) -> torch.Tensor:
        """Return observations that were seen, at most so many, shape (n, obs_dim), on the host."""
        return self._recorded[-count:].cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future."""
        return {'learner': self.learner.state_dict(),
                'optimizer': self.learner.optimizer.state_dict(), 'updates': self.updates,
                'recorded': self._recorded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.learner.load_state_dict(state['learner'])
        self.learner.optimizer.load_state_dict(state['optimizer'])
        self.updates, self._recorded = state['updates'], state['recorded']


@torch.no_grad()
def collect(policy, worlds, horizon: int) -> Rollout:
    """Act for ``horizon`` steps, from where the worlds are, and record the noise.

    :param policy: a :class:`dpg_robot.learn.policy.SquashedGaussianPolicy`.
    :param worlds: as in :mod:`dpg_robot.learn.worlds`.
    """
    steps = []
    for _ in range(horizon):
        obs = worlds.obs
        eps = torch.randn(len(obs), policy.action_dim, device=obs.device)
        action = policy(obs, eps)
        steps.append((obs, eps, action, *worlds.step(action)))
    return Rollout(*(torch.stack(x) for x in zip(*steps)))
