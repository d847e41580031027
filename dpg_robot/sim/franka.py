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

"""The arm of gymnasium-robotics' FrankaKitchen reaches for points in its kitchen."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np

from dpg_robot.contract.spec import PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.robotics import KitchenEnv
from dpg_robot.sim.task import control_rate, GoalTask, IMAGE_SIZE, max_age

EPISODE_STEPS = 50
JOINTS = 7
# Goals lie within this of the first position, along each axis; all of that can be reached [m].
GOAL_RANGE_M = 0.25
THRESHOLD_M = 0.05
GOAL_SIZE_M = 0.03
GOAL_RGBA = (1.0, 0.0, 0.0, 0.7)


class FrankaReachEnv(gymnasium.Env):
    """The kitchen and its arm, with points for the end effector in place of chores.

    Physics and control are FrankaKitchen-v1's without its noise; rewards and goals are like
    those of the Fetch arm.
    """

    def __init__(self, reward_type: str, render_mode: str | None = None, **options):
        """Build the kitchen.

        :param reward_type: 'dense' or 'sparse'.
        """
        # The kitchen knows the arm's first pose. Its chores are not looked at.
        self.robot = KitchenEnv(robot_noise_ratio=0.0, object_noise_ratio=0.0,
                                render_mode=render_mode, **options).robot_env
        self.model, self.data, self.dt = self.robot.model, self.robot.data, self.robot.dt
        self.reward_type, self.render_mode = reward_type, render_mode
        self.goal = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Put the arm to its first pose and draw a goal."""
        super().reset(seed=seed)
        joints, _ = self.robot.reset(seed=seed)
        self.goal = self._end_effector() + self.np_random.uniform(-GOAL_RANGE_M, GOAL_RANGE_M, 3)
        return self._observe(joints), {}

    def step(self, action: np.ndarray):
        """Advance one control period under the kitchen's own action, shape (9,)."""
        obs = self._observe(self.robot.step(action)[0])
        achieved = obs['achieved_goal']
        return obs, self.compute_reward(achieved, self.goal, {}), False, False, {
            'is_success': self._is_success(achieved, self.goal)}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: dict):
        """Return the rewards of achieved goals, shape (..., 3)."""
        distance = np.linalg.norm(achieved - desired, axis=-1)
        return -distance if self.reward_type == 'dense' else -1.0 * (distance >= THRESHOLD_M)

    def _is_success(self, achieved, desired):
        return np.linalg.norm(achieved - desired, axis=-1) < THRESHOLD_M

    def _observe(self, joints):
        return {'observation': joints, 'achieved_goal': self._end_effector(),
                'desired_goal': self.goal.copy()}

    def _end_effector(self):
        return self.data.site('end_effector').xpos.copy()

    def render(self) -> np.ndarray:
        """Return an image with the goal in it."""
        viewer = self.robot.mujoco_renderer._get_viewer(self.render_mode)
        viewer.add_marker(pos=self.goal, size=np.full(3, GOAL_SIZE_M), rgba=np.array(GOAL_RGBA),
                          type=2, label='')
        return self.robot.render()

    def close(self) -> None:
        """Release the renderer."""
        self.robot.close()


class FrankaReach(GoalTask):
    """Bring the end effector to a goal point and keep it there, for 50 periods of 80 ms.

    The observation is angles [rad] and velocities [rad/s] of the arm's 7 joints, and positions of
    end effector and goal [m]. The action is the velocity told to each joint [rad/s]; 1 is the
    2 rad/s of the kitchen. The fingers are told to stand still. The kitchen moves a servo's
    target by the velocity from where the joint is, so a joint follows at a quarter to four
    fifths of it, and an arm told to stand still sinks slowly. An episode is a success if the end
    effector is within 5 cm of the goal when it ends.
    """

    achieved_goal_terms = ('end_effector_position',)

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        """
        sim = FrankaReachEnv(reward, render_mode, width=IMAGE_SIZE, height=IMAGE_SIZE)
        age, names = max_age(sim), terms.driven_joints(sim.model, range(JOINTS))
        super().__init__(sim, PolicySpec(
            spec_version=SPEC_VERSION, task='franka_reach', robot='franka',
            control_rate_hz=control_rate(sim), eps_dim=JOINTS,
            observation=(
                terms.joints('joint_position', 'position', names, 'rad', age),
                terms.joints('joint_velocity', 'velocity', names, 'rad/s', age),
                terms.point('end_effector_position', 'end_effector/pose', age,
                            within=terms.WORKSPACE_M),
                terms.point('goal_position', 'goal/pose', terms.GOAL_AGE_S,
                            within=terms.WORKSPACE_M)),
            action=(terms.commands('joint_velocity', 'velocity/commands', 'rad/s',
                                   sim.robot.act_rng[:JOINTS], names),)), EPISODE_STEPS)

    def show_goal(self, scene: mujoco.MjvScene) -> None:
        """Put the goal where a viewer sees it: nothing in the kitchen's model shows one."""
        mujoco.mjv_initGeom(scene.geoms[0], mujoco.mjtGeom.mjGEOM_SPHERE, np.full(3, GOAL_SIZE_M),
                            self.sim.goal, np.eye(3).ravel(), np.array(GOAL_RGBA, np.float32))
        scene.ngeom = 1

    def _command(self, action):
        return np.append(action, (0.0, 0.0))

    def _observe(self, obs):
        position, velocity = np.split(obs['observation'], 2)
        return np.concatenate([position[:JOINTS], velocity[:JOINTS], obs['achieved_goal'],
                               obs['desired_goal']])

    def _remembered(self):
        # A command starts from the joints as they were last observed.
        return {'last_position': self.sim.robot._last_robot_qpos}
