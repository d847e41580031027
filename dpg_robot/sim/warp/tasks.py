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

"""The tasks in torch, on the state of all worlds: how they begin, observe and reward.

Each class does for all worlds what the CPU task of the same name does for one, and takes every
number from it: no constant of a task stands here.
"""

from __future__ import annotations

import torch

from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import floats, Physics


class DeviceTask:
    """What every task shares.

    :cvar settles: whether the positions of bodies are brought up to date after a step; if not,
        they are one physics step old, as in the CPU task.
    :ivar memory: what decides the future beside the physics, shape (num_envs, ...), by name.
    """

    settles = False

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        self.sim, self.spec, self.physics = task.sim, task.policy_spec, physics
        self.num_envs, self.device = physics.num_envs, physics.device
        self.qpos, self.qvel = physics.data['qpos'], physics.data['qvel']
        self.memory: dict[str, torch.Tensor] = {}

    def remember(self, name: str, *shape: int) -> torch.Tensor:
        """Return a tensor of zeros that is a part of the state."""
        self.memory[name] = torch.zeros(self.num_envs, *shape, device=self.device)
        return self.memory[name]

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin episodes of some worlds, shape (num_envs,), bool."""
        raise NotImplementedError

    def command(self, action: torch.Tensor) -> None:
        """Take a normalised action to the actuators, shape (num_envs, action_dim)."""
        self.physics.data['ctrl'].copy_(action)

    def finish(self) -> None:
        """Do what the simulation does after the physics of a control period."""
        if self.settles:
            self.physics.settle()

    def observe(self) -> torch.Tensor:
        """Return the true observation, shape (num_envs, obs_dim)."""
        raise NotImplementedError

    def judge(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None,
                                                   torch.Tensor | None]:
        """Return reward, termination and success of a step, shape (num_envs,) each.

        :param action: what the actuators carried out.
        :return: termination and success are None where the task has none.
        """
        raise NotImplementedError

    @property
    def held_action(self) -> torch.Tensor:
        """Return the action that leaves the robot where it is; broadcast to (num_envs, dim)."""
        return torch.zeros((), device=self.device)

    def constant(self, values) -> torch.Tensor:
        """Return numbers as a tensor on the device."""
        return floats(values, self.device)


class RunnerOnDevice(DeviceTask):
    """HalfCheetah, Hopper and Walker2d of gymnasium."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        sim = self.sim
        self.start = self.constant(sim.init_qpos), self.constant(sim.init_qvel)
        self.falls = hasattr(sim, '_healthy_z_range')
        self.before = torch.zeros(self.num_envs, device=self.device)

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin near where the model stands."""
        (qpos, qvel), spread = self.start, self.sim._reset_noise_scale
        speed = (draws.within(-1.0, 1.0, len(qvel)) if self.falls else draws.normal(len(qvel)))
        self.physics.reset(done, {'qpos': qpos + draws.within(-spread, spread, len(qpos)),
                                  'qvel': qvel + spread * speed})

    def command(self, action: torch.Tensor) -> None:
        """Move the motors, and remember how far it has come."""
        super().command(action)
        self.before.copy_(self.qpos[:, 0])

    def observe(self) -> torch.Tensor:
        """Return positions, but how far it has come, and velocities."""
        speed = self.qvel.clamp(-10.0, 10.0) if self.falls else self.qvel
        return torch.cat([self.qpos[:, 1:], speed], 1)

    def judge(self, action: torch.Tensor):
        """Reward its speed and, of those that may fall, that it stands; actions cost."""
        sim = self.sim
        speed = (self.qpos[:, 0] - self.before) / sim.dt
        reward = (sim._forward_reward_weight * speed
                  - sim._ctrl_cost_weight * action.square().sum(1))
        if not self.falls:
            return reward, None, None
        stands = self._stands()
        return reward + sim._healthy_reward * stands, ~stands, None

    def _stands(self):
        sim, (low, high), (least, most) = (
            self.sim, self.sim._healthy_z_range, self.sim._healthy_angle_range)
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        stands = (height > low) & (height < high) & (angle > least) & (angle < most)
        if hasattr(sim, '_healthy_state_range'):
            low, high = sim._healthy_state_range
            state = torch.cat([self.qpos, self.qvel], 1)[:, 2:]
            stands = stands & ((state > low) & (state < high)).all(1)
        return stands
