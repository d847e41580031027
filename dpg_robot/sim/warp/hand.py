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

"""The Shadow hand of gymnasium-robotics on a device."""

from __future__ import annotations

from gymnasium_robotics.envs.shadow_dexterous_hand.reach import FINGERTIP_SITE_NAMES
import torch

from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import Physics
from dpg_robot.sim.warp.tasks import DeviceGoalTask

# Of gymnasium-robotics' hand: where finger and thumb shall meet, seen from the palm [m], how far
# apart they stay [m], how that place varies [m], and how often all are told to stay.
MEETING, APART, VARIES, STAYS = (0.0, -0.09, 0.05), 0.005, 0.005, 0.1


class HandReachOnDevice(DeviceGoalTask):
    """HandReach of gymnasium-robotics: finger and thumb meet above the palm."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        model = self.sim.model
        joints = [model.joint(i) for i in range(model.njnt)
                  if model.joint(i).name.startswith('robot')]
        self.joints = (self.places([joint.qposadr[0] for joint in joints]),
                       self.places([joint.dofadr[0] for joint in joints]))
        self.sites = physics.view('site_xpos')
        self.tips = self.places([model.site(name).id for name in FINGERTIP_SITE_NAMES])
        self.rest = self.constant(self.sim.initial_goal).reshape(-1, 3)
        self.meeting = self.constant(self.sim.palm_xpos) + self.constant(MEETING)
        self.scale = self.constant(self.spec.action_scale)
        self.offset = self.constant(self.spec.action_offset)
        task.reset()
        self.held = self.constant(task.held_action)

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals of all fingertips, shape (num_envs, 15)."""
        meeting = (self.meeting + VARIES * draws.normal(3))[:, None]
        away = meeting - self.rest
        met = meeting - APART * away / torch.linalg.vector_norm(away, dim=2, keepdim=True)
        # The thumb is the last; one of the others meets it.
        tip = torch.arange(len(self.rest), device=self.device)
        thumb = len(self.rest) - 1
        finger = (draws.uniform(1) * thumb).long().clamp(max=thumb - 1)
        moves = ((tip == finger) | (tip == thumb)) & (draws.uniform(1) >= STAYS)
        return torch.where(moves[:, :, None], met, self.rest).flatten(1)

    def command(self, action: torch.Tensor) -> None:
        """Tell each servo where to go."""
        self.physics.data['ctrl'].copy_(action * self.scale + self.offset)

    def achieved(self) -> torch.Tensor:
        """Return where the fingertips are, shape (num_envs, 15)."""
        return self.sites[:, self.tips].flatten(1)

    def observe(self) -> torch.Tensor:
        """Return joint angles and velocities, fingertips and goals."""
        qpos, qvel = self.joints
        return torch.cat([self.qpos[:, qpos], self.qvel[:, qvel], self.achieved(), self.goal], 1)

    @property
    def held_action(self) -> torch.Tensor:
        """Return what tells each servo to stay where episodes begin, shape (action_dim,)."""
        return self.held
