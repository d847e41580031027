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

"""The Shadow hand of gymnasium-robotics as a deployable task: 24 joints, 20 position servos."""

from __future__ import annotations

import gymnasium
import numpy as np

from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec, SPEC_VERSION
from dpg_robot.sim.robotics import MujocoHandReachEnv
from dpg_robot.sim.task import control_rate, IMAGE_SIZE, max_age, Task

EPISODE_STEPS = 50
FINGERTIPS = 5


def hand_reach_spec(sim: gymnasium.Env) -> PolicySpec:
    """Return the contract of the task: joints, fingertips and goals in, servo angles out."""
    model, age = sim.model, max_age(sim)
    joints = tuple(model.joint(i).name for i in range(model.njnt))
    servos = tuple(model.joint(actuator.trnid[0]).name
                   for actuator in map(model.actuator, range(model.nu)))
    lower, upper = model.actuator_ctrlrange.T
    array, points = 'std_msgs/msg/Float64MultiArray', 3 * FINGERTIPS
    return PolicySpec(
        spec_version=SPEC_VERSION, task='hand_reach', robot='shadow_hand',
        control_rate_hz=control_rate(sim), eps_dim=len(servos),
        observation=(
            ObservationTerm('joint_position', 'joint_states', 'sensor_msgs/msg/JointState',
                            tuple(f'position[{joint}]' for joint in joints), 'rad', age),
            ObservationTerm('joint_velocity', 'joint_states', 'sensor_msgs/msg/JointState',
                            tuple(f'velocity[{joint}]' for joint in joints), 'rad/s', age),
            # x, y and z of the fore, middle, ring and little finger and of the thumb
            ObservationTerm('fingertip_position', 'fingertips/positions', array,
                            tuple(f'data[{i}]' for i in range(points)), 'm', age),
            ObservationTerm('goal_position', 'goal/positions', array,
                            tuple(f'data[{i}]' for i in range(points)), 'm', 1.0)),
        action=(
            # A servo without news stays where it was told to be.
            ActionTerm('joint_position', 'position/commands', array,
                       tuple(f'data[{i}]' for i in range(len(servos))), 'rad',
                       scale=_floats((upper - lower) / 2), offset=_floats((upper + lower) / 2),
                       lower=_floats(lower), upper=_floats(upper), safe=(None,) * len(servos),
                       rate_limit=(None,) * len(servos), joints=servos),))


def _floats(values):
    return tuple(round(float(value), 9) for value in values)


class HandReach(Task):
    """Bring the fingertips to five goal points, for 50 periods of 40 ms.

    The observation is joint angles [rad] and velocities [rad/s], fingertip positions [m] and
    goals [m]; 24, 24, 15 and 15 numbers. The action is the angle told to each servo, -1 and 1
    the ends of its range. An episode is a success if the distance of all fingertips together,
    a vector of 15 numbers, is below 1 cm when it ends.
    """

    achieved_goal_terms = ('fingertip_position',)

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        """
        sim = MujocoHandReachEnv(reward_type=reward, render_mode=render_mode,
                                 width=IMAGE_SIZE, height=IMAGE_SIZE)
        super().__init__(sim, hand_reach_spec(sim), EPISODE_STEPS)

    def _observe(self, obs):
        return np.concatenate([obs['observation'], obs['desired_goal']])
