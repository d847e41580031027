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

"""Replay with hindsight: some goals that were asked for become goals that were reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.replay import Batch, Replay

UNFINISHED = -1


class Goals(NamedTuple):
    """Where the goals of a task are in its observation, and what reaching one is worth.

    :param achieved: places of the achieved goal; ``desired`` of the desired one, in the same
        order.
    :param rule: from achieved and desired goals, both (n, goal_dim), to rewards, (n,), and
        successes, (n,).
    :param ends_episode: whether success terminates; other terminations are no goal's doing.
    """

    achieved: list[int]
    desired: list[int]
    rule: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    ends_episode: bool = False


def goals_of(world: Any) -> Goals:
    """Ask a world for its goals.

    :param world: has ``policy_spec``, and its ``unwrapped`` task, if it has goals,
        ``achieved_goal_terms``, ``desired_goal_terms``, ``goal_reward`` and perhaps
        ``goal_ends_episode``.
    :raises SpecError: if it has no goals.
    """
    task, spec = world.unwrapped, world.policy_spec
    if not hasattr(task, 'goal_reward'):
        raise SpecError(f'trainer.hindsight must be 0 for {spec.task}, which has no goals')
    return Goals(spec.places_of(task.achieved_goal_terms),
                 spec.places_of(task.desired_goal_terms), task.goal_reward,
                 getattr(task, 'goal_ends_episode', False))


class HindsightReplay(Replay):
    """A replay that tells ``ratio`` of ``ratio + 1`` transitions that another goal was meant.

    That goal is one achieved later in the same episode ('future' of Andrychowicz et al. 2017),
    each later step as likely as any other, the transition's own end included. Goals in ``obs`` and
    ``next_obs``, reward and termination change together, so a transition is always that of one
    goal. Nothing is relabelled before its episode has ended, nor held-out transitions; and no goal
    comes from beyond some.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, num_envs: int, goals: Goals,
                 ratio: int):
        """Reserve the memory.

        :param num_envs: every batch added holds one transition of each world, in one order.
        """
        super().__init__(capacity, obs_dim, action_dim)
        self.num_envs, self.goals, self.share = num_envs, goals, ratio / (ratio + 1)
        # How many steps of its world after a transition its episode goes on, all held out or none.
        self.left = torch.full((capacity,), UNFINISHED)
        self.length = torch.zeros(num_envs, dtype=torch.long)

    def add(self, batch: Batch) -> None:
        """Store one transition of each world; :meth:`end_episodes` says where that was the last.

        :raises ValueError: if the batch has another size.
        """
        if len(batch.reward) != self.num_envs:
            raise ValueError('a batch must hold one transition of each of '
                             f'{self.num_envs} worlds, got {len(batch.reward)}')
        self.left[(self.position + torch.arange(self.num_envs)) % self.capacity] = UNFINISHED
        self.length += 1
        super().add(batch)

    def end_episodes(self, ended: torch.Tensor) -> None:
        """Close the episodes of these worlds with their newest transitions, (num_envs,), bool."""
        if not ended.any():
            return
        worlds = ended.nonzero()[:, 0]
        # The oldest may have been overwritten.
        steps = self.length[worlds].minimum((self.capacity + worlds) // self.num_envs)
        back = torch.arange(int(steps.max()))[:, None]  # from the newest, (steps, worlds)
        slots = (self.position - self.num_envs * (back + 1) + worlds) % self.capacity
        held_out = self.data.held_out[slots]
        border = (held_out != held_out.roll(1, 0)) & (back > 0)
        left = back - torch.where(border, back, 0).cummax(0).values
        stored = back < steps
        self.left[slots[stored]] = left[stored]
        self.length[ended] = 0

    def sample(self, batch_size: int, num_new: int = 0) -> Batch:
        """Draw transitions that are not held out, uniformly, most with a goal from hindsight.

        :param num_new: the newest ones that are not to be drawn; goals may be theirs.
        """
        index = self._draw(batch_size, num_new)
        batch, left = self._take(index), self.left[index]
        chosen = (torch.rand(len(index)) < self.share) & (left != UNFINISHED)
        ahead = (torch.rand(len(index)) * (left + 1)).long().minimum(left)
        future = (index + self.num_envs * ahead) % self.capacity
        goal = self.data.next_obs[future][:, self.goals.achieved]
        return relabel(batch, goal, chosen, self.goals)

    def state_dict(self) -> dict:
        """Return the filled part, and where episodes end."""
        return super().state_dict() | {'left': self.left[:self.size].clone(),
                                       'length': self.length.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Take back what :meth:`state_dict` gave.

        :raises ValueError: if it does not fit, or wrapped around at another capacity.
        """
        super().load_state_dict(state)
        self.left[:self.size] = state['left']
        self.length.copy_(state['length'])


def relabel(batch: Batch, goal: torch.Tensor, chosen: torch.Tensor, goals: Goals) -> Batch:
    """Return the transitions as they would have been under other goals.

    The density of the action given such a goal is nobody's record: ``log_prob`` is NaN there.

    :param goal: desired goals, shape (B, goal_dim), for those ``chosen``, shape (B,), bool.
    """
    obs, next_obs = batch.obs.clone(), batch.next_obs.clone()
    obs[:, goals.desired] = next_obs[:, goals.desired] = goal
    achieved = batch.next_obs[:, goals.achieved].numpy()
    reward, success = map(torch.as_tensor, goals.rule(achieved, goal.numpy()))
    terminated = batch.terminated
    if goals.ends_episode:
        old_goal = batch.next_obs[:, goals.desired].numpy()
        old_success = torch.as_tensor(goals.rule(achieved, old_goal)[1])
        terminated = torch.where(old_success, 0.0, terminated).maximum(success.float())
    return batch._replace(
        obs=torch.where(chosen[:, None], obs, batch.obs),
        next_obs=torch.where(chosen[:, None], next_obs, batch.next_obs),
        reward=torch.where(chosen, reward.float(), batch.reward),
        terminated=torch.where(chosen, terminated, batch.terminated),
        log_prob=torch.where(chosen, torch.nan, batch.log_prob))
