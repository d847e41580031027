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

"""Actuators that move nothing, to see how a learner bears what does not matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np

from dpg_robot.contract.spec import ActionTerm


class DeadActuators(gymnasium.Wrapper):
    """A task with more actuators, appended to its own, whose commands change nothing.

    The wrapped task must have ``policy_spec`` and a ``state`` property, and so has this one.
    """

    def __init__(self, task: gymnasium.Env, num_dead: int):
        """Append ``num_dead`` actuators, at least 1."""
        super().__init__(task)
        spec = task.policy_spec
        self._num_alive = spec.action_dim
        dead = ActionTerm(
            'dead', 'dead/commands', 'std_msgs/msg/Float64MultiArray',
            tuple(f'data[{i}]' for i in range(num_dead)), '1', scale=(1.0,) * num_dead,
            lower=(-1.0,) * num_dead, upper=(1.0,) * num_dead, safe=(0.0,) * num_dead,
            rate_limit=(None,) * num_dead)
        self.policy_spec = dataclasses.replace(
            spec, action=(*spec.action, dead), eps_dim=spec.eps_dim + num_dead)
        self.action_space = gymnasium.spaces.Box(
            -1.0, 1.0, (self.policy_spec.action_dim,), np.float32)

    def step(self, action: np.ndarray):
        """Advance one control period; the task gets its own part of the action."""
        return self.env.step(action[:self._num_alive])

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides the task's future."""
        return self.env.state

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self.env.state = value
