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

"""The robots of :mod:`dpg_robot.sim.mujoco_tasks` on a device: runners, an ant, and an arm."""

from __future__ import annotations

import math

import torch

from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import Physics, put
from dpg_robot.sim.warp.tasks import DeviceTask


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


class AntOnDevice(DeviceTask):
    """Ant of gymnasium."""

    feels = True

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        self.start = self.constant(self.sim.init_qpos), self.constant(self.sim.init_qvel)
        self.torso = physics.view('xpos')[:, self.sim.model.body(self.sim._main_body).id]
        self.forces = physics.view('cfrc_ext')
        # Where the torso was seen last, which is one physics step before where it is.
        self.seen = self.remember('seen', 2)

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin near where the model stands."""
        (qpos, qvel), spread = self.start, self.sim._reset_noise_scale
        self.physics.reset(done, {'qpos': qpos + draws.within(-spread, spread, len(qpos)),
                                  'qvel': qvel + spread * draws.normal(len(qvel))})
        put(self.seen, done, self.qpos[:, :2])

    def observe(self) -> torch.Tensor:
        """Return positions, but how far it has come, and velocities."""
        return torch.cat([self.qpos[:, 2:], self.qvel], 1)

    def judge(self, action: torch.Tensor):
        """Reward its speed and that it stands; actions and contacts cost."""
        sim = self.sim
        speed = (self.torso[:, 0] - self.seen[:, 0]) / sim.dt
        self.seen.copy_(self.torso[:, :2])
        low, high = sim._healthy_z_range
        stands = (self.qpos[:, 2] >= low) & (self.qpos[:, 2] <= high)
        forces = self.forces.clamp(*sim._contact_force_range)
        reward = (sim._forward_reward_weight * speed + sim._healthy_reward * stands
                  - sim._ctrl_cost_weight * action.square().sum(1)
                  - sim._contact_cost_weight * forces.square().sum((1, 2)))
        return reward, ~stands, None


class ReacherOnDevice(DeviceTask):
    """Reacher of gymnasium."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        self.start = self.constant(self.sim.init_qpos), self.constant(self.sim.init_qvel)
        bodies = physics.view('xpos')
        self.tip, self.target = (bodies[:, self.sim.model.body(name).id]
                                 for name in ('fingertip', 'target'))

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Draw a target from a disc; begin near the straight arm."""
        qpos, qvel = self.start
        radius = 0.2 * draws.uniform(1).sqrt()
        angle = 2 * math.pi * draws.uniform(1)
        target = radius * torch.cat([angle.cos(), angle.sin()], 1)
        near = qpos + draws.within(-0.1, 0.1, len(qpos))
        speed = qvel + draws.within(-0.005, 0.005, len(qvel))
        self.physics.reset(done, {
            'qpos': torch.cat([near[:, :2], target], 1),
            'qvel': torch.cat([speed[:, :2], torch.zeros_like(target)], 1)})
        self.physics.settle()

    def observe(self) -> torch.Tensor:
        """Return angles, velocities, and where target and fingertip are."""
        angle = torch.remainder(self.qpos[:, :2] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([angle, self.qvel[:, :2], self.qpos[:, 2:], self.tip[:, :2]], 1)

    def judge(self, action: torch.Tensor):
        """Punish the distance, and actions."""
        far = torch.linalg.vector_norm(self.tip - self.target, dim=1)
        return (-self.sim._reward_dist_weight * far
                - self.sim._reward_control_weight * action.square().sum(1)), None, None
