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

"""The Fetch arm of gymnasium-robotics as deployable tasks: physical units, named terms."""

from __future__ import annotations

import numpy as np

from dpg_robot.contract.spec import ActionTerm, PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.robotics import (
    MujocoFetchPickAndPlaceEnv,
    MujocoFetchPushEnv,
    MujocoFetchReachEnv,
    MujocoFetchSlideEnv,
)
from dpg_robot.sim.rotation import quaternion_of
from dpg_robot.sim.task import control_rate, GoalTask, IMAGE_SIZE, max_age, stale_bodies

# gymnasium-robotics moves its mocap body by at most this much per control period [m]. The gripper
# is welded to it softly and follows a constant command at this part of it (measured).
MAX_STEP_M = 0.05
WELD_GAIN = 0.65
EPISODE_STEPS = 50
TOP_SPEED = 10.0  # what the gripper's velocity is believed to be, either way [m/s]

OBJECT_TASKS = {
    'fetch_push': MujocoFetchPushEnv, 'fetch_slide': MujocoFetchSlideEnv,
    'fetch_pick_and_place': MujocoFetchPickAndPlaceEnv}
FINGERS = ('robot0:r_gripper_finger_joint', 'robot0:l_gripper_finger_joint')

# Near enough for the goal, a ball of 2 cm, to be seen.
CAMERA = {'distance': 1.5, 'azimuth': 150.0, 'elevation': -20.0,
          'lookat': np.array([1.25, 0.75, 0.6])}


class _Fetch(GoalTask):

    def __init__(self, name, make_sim, reward, render_mode):
        sim = make_sim(reward_type=reward, render_mode=render_mode, default_camera_config=CAMERA,
                       width=IMAGE_SIZE, height=IMAGE_SIZE)
        age = max_age(sim)
        action = [_gripper_velocity(control_rate(sim))]
        observation = [
            terms.point('end_effector_position', 'end_effector/pose', age,
                        within=terms.WORKSPACE_M),
            terms.velocity('end_effector_velocity', 'end_effector/twist', age, within=TOP_SPEED)]
        if not sim.block_gripper:
            action.append(terms.commands('finger_displacement', 'gripper/commands', 'm',
                                         (1.0,), ('gripper',), safe=None))
            observation += [
                terms.joints('finger_position', 'position', FINGERS, 'm', age),
                terms.joints('finger_velocity', 'velocity', FINGERS, 'm/s', age)]
        if sim.has_object:
            observation += [
                terms.point('object_position', 'object/pose', age, within=terms.WORKSPACE_M),
                terms.orientation('object_orientation', 'object/pose', age),
                terms.velocity('object_velocity', 'object/twist', age),
                terms.angular_velocity('object_angular_velocity', 'object/twist', age)]
        goal = terms.point('goal_position', 'goal/pose', terms.GOAL_AGE_S,
                           within=terms.WORKSPACE_M)
        super().__init__(sim, PolicySpec(
            spec_version=SPEC_VERSION, task=name, robot='fetch',
            control_rate_hz=control_rate(sim), eps_dim=3 + (not sim.block_gripper),
            observation=(*observation, goal), action=tuple(action)), EPISODE_STEPS)

    def _command(self, action):
        return np.append(action, 0.0) if self.sim.block_gripper else action


def _gripper_velocity(control_rate_hz):
    speed = round(WELD_GAIN * MAX_STEP_M * control_rate_hz, 9)
    return ActionTerm(
        'end_effector_velocity', 'end_effector/command', terms.TWIST,
        tuple(f'twist.linear.{axis}' for axis in 'xyz'), 'm/s', scale=(speed,) * 3,
        lower=(-speed,) * 3, upper=(speed,) * 3, safe=(0.0,) * 3, rate_limit=(None,) * 3,
        frame_id='world')


class FetchReach(_Fetch):
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
        super().__init__('fetch_reach', MujocoFetchReachEnv, reward, render_mode)

    def _observe(self, obs):
        # gymnasium-robotics gives velocities per control period.
        velocity = obs['observation'][5:8] / self.sim.dt
        return np.concatenate([obs['achieved_goal'], velocity, obs['desired_goal']])


class FetchObject(_Fetch):
    """Bring an object to a goal point: push a block, slide a puck, or pick a block up.

    The observation is position and velocity of the gripper; position and velocity of its two
    fingers, where they move; position, orientation, velocity and angular velocity of the object,
    all in the world's frame; and the goal. gymnasium-robotics observes the same, but the object's
    angles in place of a quaternion (here its real part is never negative), and its position and
    velocity relative to the gripper, too. Blocked fingers are left out.

    The action is the commanded gripper velocity and, where the fingers move, how far each shall
    go from where it is [m]; both fingers stop at the object and at 0 and 5 cm. An episode is a
    success if the object is within 5 cm of the goal when it ends.
    """

    achieved_goal_terms = ('object_position',)

    def __init__(self, name: str, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param name: one of ``OBJECT_TASKS``.
        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        """
        super().__init__(name, OBJECT_TASKS[name], reward, render_mode)

    def _observe(self, obs):
        gripper, position, _, fingers, _, object_velocity, spin, velocity, finger_velocity = \
            np.split(obs['observation'], np.cumsum([3, 3, 3, 2, 3, 3, 3, 3]))
        dt = self.sim.dt
        hand = [fingers, finger_velocity / dt] if not self.sim.block_gripper else []
        turn = quaternion_of(self.sim.data.site('object0').xmat)
        # The object's velocity comes relative to the gripper's.
        return np.concatenate([
            gripper, velocity / dt, *hand, position, turn, (object_velocity + velocity) / dt,
            spin / dt, obs['desired_goal']])

    def _remembered(self):
        # The mocap body that drags the gripper starts from the gripper.
        return stale_bodies(self.sim)
