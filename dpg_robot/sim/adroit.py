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

"""The Adroit hand of gymnasium-robotics opens a door: 28 position servos."""

from __future__ import annotations

import numpy as np

from dpg_robot.contract.spec import PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.robotics import AdroitHandDoorEnv
from dpg_robot.sim.task import control_rate, IMAGE_SIZE, max_age, Task

EPISODE_STEPS = 200


class AdroitDoor(Task):
    """Turn the handle and pull the door open, for 200 periods of 10 ms.

    The observation is the angles of arm and hand [rad], of the door's hinge and of its latch
    [rad], and the positions of palm and handle [m]. gymnasium-robotics' AdroitHandDoor-v1 observes
    the same, and the difference of the positions and whether the door is open by more than 1 rad,
    which follow. The action is what each servo is told: how far the arm goes forward [m], and
    27 angles [rad], -1 and 1 the ends of the range. An episode is a success if the door is open
    by 1.35 rad when it ends.
    """

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (the simulation's own mixture) or 'sparse' (10 while the door is
            open, else -0.1).
        """
        sim = AdroitHandDoorEnv(reward_type=reward, render_mode=render_mode, width=IMAGE_SIZE,
                                height=IMAGE_SIZE)
        model, age = sim.model, max_age(sim)
        turning = terms.driven_joints(model, range(1, model.nu))
        super().__init__(sim, PolicySpec(
            spec_version=SPEC_VERSION, task='adroit_door', robot='adroit_hand',
            control_rate_hz=control_rate(sim), eps_dim=model.nu,
            observation=(
                terms.joints('joint_position', 'position', turning, 'rad', age),
                terms.joints('door_position', 'position', ('latch', 'door_hinge'), 'rad', age,
                             topic='door/joint_states'),
                terms.point('palm_position', 'palm/pose', age),
                terms.point('handle_position', 'handle/pose', age)),
            action=(terms.servos(model, 'arm_position', 'm', range(1)),
                    terms.servos(model, 'joint_position', 'rad', range(1, model.nu)))),
            EPISODE_STEPS)

    def _observe(self, obs):
        return np.copy(obs[:35])

    @property
    def held_action(self) -> np.ndarray:
        """Return what tells each servo to stay where it is, shape (action_dim,)."""
        return self.policy_spec.normalised(self.sim.data.actuator_length)

    def _remembered(self):
        # Each episode has the door in another place, which is no part of MuJoCo's state.
        return {'door': self.sim.model.body_pos[self.sim.door_body_id]}
