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

"""What tasks on a device share: how all worlds begin, observe and reward, in torch."""

from __future__ import annotations

import numpy as np
import torch

from dpg_robot.sim.task import GoalTask, Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import floats, Physics, put


class DeviceTask:
    """A task that does for all worlds what the CPU task of that name does for one.

    It takes its numbers from that task, and its state from the physics.

    :cvar settles: whether the positions of bodies are brought up to date after a step; if not,
        they are one physics step old, as in the CPU task.
    :cvar feels: whether it needs the forces of contacts.
    :cvar contacts: room for so many in each world.
    :ivar memory: what decides the future beside the physics, shape (num_envs, ...), by name.
    """

    settles = feels = False
    contacts = 32

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

    def places(self, values) -> torch.Tensor:
        """Return places in an array as a tensor on the device."""
        return torch.tensor(np.asarray(values, np.int64), device=self.device)


class DeviceGoalTask(DeviceTask):
    """A task of gymnasium-robotics that begins where all episodes do, with a goal of its own."""

    def __init__(self, task: GoalTask, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        sim = self.sim
        self.start = {'qpos': self.constant(sim.initial_qpos),
                      'qvel': self.constant(sim.initial_qvel)}
        self.goal = self.remember('goal', len(task.policy_spec.places_of(
            task.desired_goal_terms)))
        self.is_sparse, self.tolerance = sim.reward_type == 'sparse', sim.distance_threshold

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin where all episodes do, with a goal of its own."""
        self.physics.reset(done, self.draw_start(draws))
        self.physics.settle()
        put(self.goal, done, self.draw_goal(draws))

    def draw_start(self, draws: Draws) -> dict[str, torch.Tensor]:
        """Return where episodes begin: parts of MuJoCo's state by their names."""
        return self.start

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals, shape (num_envs, goal_dim)."""
        raise NotImplementedError

    def achieved(self) -> torch.Tensor:
        """Return achieved goals, likewise."""
        raise NotImplementedError

    def judge(self, action: torch.Tensor):
        """Reward and success depend on the distance to the goal alone."""
        far = torch.linalg.vector_norm(self.achieved() - self.goal, dim=1)
        reward = -(far > self.tolerance).float() if self.is_sparse else -far
        return reward, None, far < self.tolerance
