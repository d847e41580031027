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

"""The tasks of :mod:`dpg_robot.sim.robot_task` on a device, for any robot of a task file."""

from __future__ import annotations

import math

import torch

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.sim.robot_model import TOOL
from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import DeviceMemory, Draws
from dpg_robot.sim.warp.physics import floats, Physics, put
from dpg_robot.sim.warp.tasks import DeviceTask


class _RobotOnDevice(DeviceTask):

    settles = True

    def __init__(self, task: Task, physics: Physics):
        super().__init__(task, physics)
        self.config, robot = self.sim.config, self.sim.robot
        self.places_q, self.places_v, self.places_u = (
            self.places(where) for where in (robot.qpos, robot.qvel, robot.ctrl))
        self.rest = self.constant(self.sim.model.qpos0)
        self.home, self.lower, self.upper = (
            self.constant(values) for values in (robot.home, robot.lower, robot.upper))
        self.scale = self.constant(self.spec.action_scale)
        self.offset = self.constant(self.spec.action_offset)

    def place(self, done: torch.Tensor, near: torch.Tensor, draws: Draws) -> None:
        """Put joints at rest near some angles, shape (num_envs, num_joints) or (num_joints,)."""
        spread, rest = self.config.home_spread, self.rest.expand(self.num_envs, -1).clone()
        start = near + draws.within(-spread, spread, len(self.home))
        rest[:, self.places_q] = torch.minimum(torch.maximum(start, self.lower), self.upper)
        self.physics.reset(done, {'qpos': rest})
        self.physics.settle()

    def command(self, action: torch.Tensor) -> None:
        """Tell each joint what to do."""
        self.physics.data['ctrl'][:, self.places_u] = action * self.scale + self.offset

    @property
    def angles(self) -> torch.Tensor:
        """Return the joint angles [rad], shape (num_envs, num_joints)."""
        return self.qpos[:, self.places_q]

    @property
    def held_action(self) -> torch.Tensor:
        """Return what tells each joint to stay where it is, or to be still."""
        if self.config.control != 'position':
            return super().held_action
        return (self.angles - self.offset) / self.scale


class ReachOnDevice(_RobotOnDevice):
    """Bring the end effector to a random point of a region."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        self.tool = physics.view('site_xpos')[:, self.sim.model.site(TOOL).id]
        self.goal = self.remember('goal', 3)
        self.region = tuple(self.constant(corner) for corner in (
            self.config.goal.lower, self.config.goal.upper))

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Draw a goal; begin near home."""
        put(self.goal, done, draws.within(*self.region, 3))
        self.place(done, self.home, draws)

    def observe(self) -> torch.Tensor:
        """Return joint angles and velocities, the end effector and the goal."""
        return torch.cat([self.angles, self.qvel[:, self.places_v], self.tool, self.goal], 1)

    def judge(self, action: torch.Tensor):
        """Reward and success depend on the distance to the goal alone."""
        far = torch.linalg.vector_norm(self.tool - self.goal, dim=1)
        success = far < self.config.goal.tolerance
        return (success.float() - 1.0 if self.sim.is_sparse else -far), None, success


class TrackOnDevice(_RobotOnDevice):
    """Follow a sum of random sines with each joint."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        self.shape = self.config.reference.num_sines, len(self.home)
        self.most = self.constant(self.sim.amplitude)
        self.sines = self.remember('sines', 3, *self.shape)
        self.periods = self.remember('periods', 1)

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Draw a reference, and begin near it."""
        parts = draws.within(0.2, 1.0, *self.shape)
        fastest = 2 * math.pi * self.config.reference.max_frequency_hz
        put(self.sines, done, torch.stack([
            self.most * parts / parts.sum(1, keepdim=True),
            fastest * draws.within(0.2, 1.0, *self.shape),
            draws.within(-math.pi, math.pi, *self.shape)], 1))
        put(self.periods, done, torch.zeros_like(self.periods))
        self.place(done, self.reference()[0], draws)

    def finish(self) -> None:
        """Go on along the reference."""
        self.periods += 1
        super().finish()

    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the joints shall be now [rad], and how fast they shall move [rad/s]."""
        amplitude, omega, phase = self.sines.unbind(1)
        angle = omega * (self.periods * self.sim.dt)[:, None] + phase
        return (self.home + (amplitude * angle.sin()).sum(1),
                (amplitude * omega * angle.cos()).sum(1))

    def observe(self) -> torch.Tensor:
        """Return angles and velocities, of the joints and of the reference."""
        return torch.cat([self.angles, self.qvel[:, self.places_v], *self.reference()], 1)

    def judge(self, action: torch.Tensor):
        """Punish the root mean square of the joints' errors."""
        error = self.angles - self.reference()[0]
        return -error.square().mean(1).sqrt(), None, None


class DeviceLimiter:
    """Commands that change no faster than the contract allows.

    It is :class:`dpg_robot.contract.command.CommandLimiter` at the pace of the control rate;
    tasks with a robot limit no accelerations.
    """

    def __init__(self, spec: PolicySpec, memory: DeviceMemory):
        """Take the limits from a spec."""
        def gather(key, if_none):
            return floats([if_none if value is None else value for term in spec.action
                           for value in getattr(term, key) or (None,) * term.size],
                          memory.device)

        self.lower, self.upper = gather('lower', None), gather('upper', None)
        self.safe = gather('safe', math.nan)
        self.step = gather('rate_limit', math.inf) * spec.control_dt
        self.scale = floats(spec.action_scale, memory.device)
        self.offset = floats(spec.action_offset, memory.device)
        memory.add('last_command', spec.action_dim)
        self.last = memory.tensors['last_command']

    def begin(self, done: torch.Tensor, held_action: torch.Tensor) -> None:
        """Begin with the safe command, or where there is none with what the robot holds."""
        held = held_action * self.scale + self.offset
        put(self.last, done, torch.where(self.safe.isnan(), held, self.safe))

    def __call__(self, action: torch.Tensor) -> torch.Tensor:
        """Return what is left of normalised actions, shape (num_envs, action_dim)."""
        wanted = action.clamp(-1.0, 1.0) * self.scale + self.offset
        wanted = torch.minimum(torch.maximum(wanted, self.lower), self.upper)
        self.last.copy_(torch.minimum(torch.maximum(wanted, self.last - self.step),
                                      self.last + self.step))
        return (self.last - self.offset) / self.scale
