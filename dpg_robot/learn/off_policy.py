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

"""Off-policy training, round by round: one step in every world, into the replay, then updates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.device import Captured, check_memory
from dpg_robot.learn.hindsight import Goals, HindsightReplay
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.replay import Batch, hold_out, Replay, row_bytes, RUN

HELD_OUT_EVERY = 20
HELD_OUT_BATCH = 1024
MIN_HELD_OUT = 50
# To show the learner one new transition takes as long as to show it so many; until they are shown,
# they are not learned from.
MIN_NEW = 32


class OffPolicy:
    """A learner, the replay that it learns from, and what fills that.

    :ivar steps_per_round: environment steps that a round takes.
    """

    def __init__(self, config, learner_config: LearnerConfig, worlds, obs_dim: int,
                 action_dim: int, achieved_goal: tuple[int, ...] = (),
                 goals: Goals | None = None):
        """Create networks and replay on the device of the worlds.

        :param config: a :class:`dpg_robot.learn.trainer.TrainerConfig`.
        :param worlds: as in :mod:`dpg_robot.learn.worlds`.
        :param goals: those of the worlds, which ``hindsight`` needs.
        :raises SpecError: if the replay does not fit into memory, or goals are missing.
        """
        self.config, self.worlds, self.device = config, worlds, worlds.device
        self.steps_per_round = config.num_worlds
        self.rng = np.random.default_rng(config.seed)
        self.learner = Learner(learner_config, obs_dim, action_dim, achieved_goal, self.device,
                               waits=config.device == 'cpu')
        self._update = Captured(self._learn, self.device, config.cuda_graphs)
        # Where not every round has an update, a round that is logged may have none of its own.
        self._is_rare = config.updates_per_step * config.num_worlds < 1
        self._report, self._metrics = True, {}
        self.replay = self._make_replay(obs_dim, action_dim, goals)
        self._num_new = 0  # the newest of the replay, which the learner has not seen
        self.updates, self.updates_due = 0, 0.0
        self._world_numbers = torch.arange(config.num_worlds, device=self.device)

    def _make_replay(self, obs_dim, action_dim, goals):
        config = self.config
        capacity = min(config.replay_capacity, config.env_steps + config.num_worlds)
        check_memory('trainer.replay_capacity', capacity, row_bytes(obs_dim, action_dim),
                     self.device)
        sizes = (capacity, obs_dim, action_dim)
        if not config.hindsight:
            return Replay(*sizes, device=self.device)
        if goals is None:
            raise SpecError('trainer.hindsight must be 0 where the goals are not given, '
                            f'got {config.hindsight}')
        return HindsightReplay(*sizes, config.num_worlds, goals, config.hindsight)

    def round(self, env_steps: int, report: bool = True) -> dict[str, torch.Tensor]:
        """Take one step in every world and remember it, then update as often as is due.

        :param env_steps: taken before.
        :param report: whether the scalars will be logged.
        :return: scalars to log, of the last update; none before the first.
        """
        self._collect(env_steps)
        # A recorded update is always the same.
        self._report = report or self._is_rare or self.device.type != 'cpu'
        if env_steps + self.steps_per_round >= self.config.warmup_steps:
            self.updates_due += self.config.updates_per_step * self.config.num_worlds
        if not self.updates or self._num_new >= min(MIN_NEW, self.replay.size // 2):
            self._observe()
        while self.updates_due >= 1:
            batch = self.replay.sample(self.learner.config.batch_size, self._num_new)
            self._metrics = self._update(*batch)
            self.updates_due -= 1
            self.updates += 1
        return self._metrics

    def _observe(self):
        """Show the learner all that is new, together, before anything is fitted to it."""
        self.learner.observe(self.replay.newest(self._num_new))
        self._num_new = 0

    def _learn(self, *batch):
        return self.learner.update(Batch(*batch), self._report)

    def _collect(self, env_steps):
        obs = self.worlds.obs
        action, log_prob = self._explore(obs, env_steps)
        step = self.worlds.step(action)
        batch = Batch(obs, action, step.reward, step.next_obs, step.terminated,
                      self._held_out(env_steps), log_prob)
        self.replay.add(batch)
        if self.config.hindsight:
            self.replay.end_episodes((step.terminated + step.truncated) > 0)
        self._num_new += self.steps_per_round

    @torch.no_grad()
    def _explore(self, obs, env_steps):
        if env_steps < self.config.warmup_steps:
            shape = (self.config.num_worlds, self.learner.action_dim)
            log_prob = torch.full(shape[:1], -shape[1] * math.log(2.0), device=self.device)
            if self.config.device == 'cpu':
                return torch.as_tensor(self.rng.uniform(-1, 1, shape).astype(np.float32)), log_prob
            return 2 * torch.rand(shape, device=self.device) - 1, log_prob
        action = self.learner.policy.sample(obs)[0]
        # Computed as it will be again, near saturation too: the same policy has weight 1.
        return action, self.learner.policy.log_prob(obs, action)

    def _held_out(self, env_steps):
        """Return which transitions of a step nothing is fitted to, shape (N,)."""
        # A ring that is small for few worlds could come to hold nothing but held-out transitions.
        least = RUN * HELD_OUT_EVERY * self.config.num_worlds
        if self.config.replay_capacity < least and self.config.num_worlds < HELD_OUT_EVERY:
            return torch.zeros(self.config.num_worlds, device=self.device)
        step = env_steps // self.config.num_worlds
        return hold_out(step + RUN * self._world_numbers, HELD_OUT_EVERY)

    def measure(self) -> dict[str, torch.Tensor]:
        """Return the learner's figures on transitions that it has not learned from."""
        unseen = self.replay.held_out(HELD_OUT_BATCH)
        if self.updates == 0 or len(unseen.reward) < MIN_HELD_OUT:
            return {}
        devices = [self.device] if self.device.type == 'cuda' else []
        with torch.random.fork_rng(devices=devices):  # looking must not change the training
            return self.learner.measure(unseen)

    def recorded(self, count: int) -> torch.Tensor:
        """Return observations that were seen, at most so many, shape (n, obs_dim), on the host."""
        return self.replay.data.next_obs[:self.replay.size][-count:].cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future."""
        return {'learner': self.learner.state_dict(),
                'optimizer': self.learner.optimizer.state_dict(),
                'replay': self.replay.state_dict(), 'updates': self.updates,
                'updates_due': self.updates_due, 'num_new': self._num_new,
                'rng': self.rng.bit_generator.state, 'metrics': dict(self._metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.learner.load_state_dict(state['learner'])
        self.learner.optimizer.load_state_dict(state['optimizer'])
        self.replay.load_state_dict(state['replay'])
        self.updates, self.updates_due = state['updates'], state['updates_due']
        self._num_new = state['num_new']
        self.rng.bit_generator.state = state['rng']
        self._metrics = state['metrics']
