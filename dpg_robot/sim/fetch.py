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

"""The Fetch arm of gymnasium-robotics as a deployable task: physical units, named terms."""

from __future__ import annotations

import numpy as np

from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec, SPEC_VERSION
from dpg_robot.sim.robotics import MujocoFetchReachEnv
from dpg_robot.sim.task import control_rate, IMAGE_SIZE, Task

# gymnasium-robotics moves its mocap body by at most this much per control period [m]. The gripper
# is welded to it softly and follows a constant command at this part of it (measured).
MAX_STEP_M = 0.05
WELD_GAIN = 0.65
EPISODE_STEPS = 50

# Near enough for the goal, a ball of 2 cm, to be seen.
CAMERA = {'distance': 1.5, 'azimuth': 150.0, 'elevation': -20.0,
          'lookat': np.array([1.25, 0.75, 0.6])}


def fetch_reach_spec(control_rate_hz: float) -> PolicySpec:
    """Return the contract of the reach task: pose, twist and goal in, a twist command out."""
    xyz = ('x', 'y', 'z')
    pose, twist = 'geometry_msgs/msg/PoseStamped', 'geometry_msgs/msg/TwistStamped'
    workspace = {'lower': (-3.0,) * 3, 'upper': (3.0,) * 3}
    speed = round(WELD_GAIN * MAX_STEP_M * control_rate_hz, 9)
    return PolicySpec(
        spec_version=SPEC_VERSION, task='fetch_reach', robot='fetch',
        control_rate_hz=control_rate_hz, eps_dim=3,
        observation=(
            ObservationTerm('end_effector_position', 'end_effector/pose', pose,
                            tuple(f'pose.position.{axis}' for axis in xyz), 'm', 0.1,
                            **workspace),
            ObservationTerm('end_effector_velocity', 'end_effector/twist', twist,
                            tuple(f'twist.linear.{axis}' for axis in xyz), 'm/s', 0.1,
                            (-10.0,) * 3, (10.0,) * 3),
            ObservationTerm('goal_position', 'goal/pose', pose,
                            tuple(f'pose.position.{axis}' for axis in xyz), 'm', 1.0,
                            **workspace)),
        action=(
            ActionTerm('end_effector_velocity', 'end_effector/command', twist,
                       tuple(f'twist.linear.{axis}' for axis in xyz), 'm/s',
                       scale=(speed,) * 3, lower=(-speed,) * 3, upper=(speed,) * 3,
                       safe=(0.0,) * 3, rate_limit=(None,) * 3, frame_id='world'),))


class FetchReach(Task):
    """Bring the gripper to a goal point and keep it there, for 50 periods of 40 ms.

    The observation is, in physical units and in the order of ``policy_spec.observation``,
    gripper position [m], gripper velocity [m/s] and goal position [m]. The action is the
    commanded gripper velocity, normalised. The world is MuJoCo's Fetch of gymnasium-robotics; the
    blocked gripper's actuator is left out. An episode is a success if the gripper is within 5 cm
    of the goal when it ends.
    """

    achieved_goal_terms = ('end_effector_position',)

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        """
        sim = MujocoFetchReachEnv(
            reward_type=reward, render_mode=render_mode, default_camera_config=CAMERA,
            width=IMAGE_SIZE, height=IMAGE_SIZE)
        super().__init__(sim, fetch_reach_spec(control_rate(sim)), EPISODE_STEPS)

    def _command(self, action):
        return np.append(action, 0.0)

    def _observe(self, obs):
        # gymnasium-robotics gives velocities per control period.
        velocity = obs['observation'][5:8] / self.sim.dt
        return np.concatenate([obs['achieved_goal'], velocity, obs['desired_goal']])
