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

"""The Shadow hand of gymnasium-robotics as deployable tasks: 24 joints, 20 position servos."""

from __future__ import annotations

import gymnasium
import numpy as np

from dpg_robot.contract.spec import PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.robotics import MujocoHandBlockEnv, MujocoHandReachEnv
from dpg_robot.sim.rotation import rotate
from dpg_robot.sim.task import (
    control_rate,
    get_physics,
    GoalTask,
    IMAGE_SIZE,
    max_age,
    set_physics,
)

JOINTS = 24
FINGERTIPS = 5


class _Hand(GoalTask):

    def __init__(self, name, make_sim, seen, goal, episode_steps, reward, render_mode):
        sim = make_sim(reward_type=reward, render_mode=render_mode, width=IMAGE_SIZE,
                       height=IMAGE_SIZE)
        servos = terms.servos(sim.model, 'joint_position', 'rad', range(sim.model.nu))
        super().__init__(sim, PolicySpec(
            spec_version=SPEC_VERSION, task=name, robot='shadow_hand',
            control_rate_hz=control_rate(sim), eps_dim=servos.size, action=(servos,),
            observation=(*_joint_terms(sim), *seen(max_age(sim)), *goal)), episode_steps)


def _joint_terms(sim: gymnasium.Env):
    names = [sim.model.joint(i).name for i in range(JOINTS)]
    return (terms.joints('joint_position', 'position', names, 'rad', max_age(sim)),
            terms.joints('joint_velocity', 'velocity', names, 'rad/s', max_age(sim)))


class HandReach(_Hand):
    """Bring the fingertips to five goal points, for 50 periods of 40 ms.

    The observation is joint angles [rad] and velocities [rad/s], fingertip positions [m] and
    goals [m], of the fore, middle, ring and little finger and of the thumb; 24, 24, 15 and 15
    numbers. The action is the angle told to each servo, -1 and 1 the ends of its range. An
    episode is a success if the distance of all fingertips together, a vector of 15 numbers, is
    below 1 cm when it ends.
    """

    achieved_goal_terms = ('fingertip_position',)

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        """
        super().__init__(
            'hand_reach', MujocoHandReachEnv,
            lambda age: [terms.points('fingertip_position', 'fingertips/positions', FINGERTIPS,
                                      age)],
            [terms.points('goal_position', 'goal/positions', FINGERTIPS, terms.GOAL_AGE_S)],
            50, reward, render_mode)

    def _observe(self, obs):
        return np.concatenate([obs['observation'], obs['desired_goal']])

    @property
    def held_action(self) -> np.ndarray:
        """Return what tells each servo to stay where it is, shape (action_dim,)."""
        return self.policy_spec.normalised(self.sim.data.actuator_length)


class HandBlock(_Hand):
    """Turn a block in the hand and bring it to a place, for 100 periods of 40 ms.

    The observation is joint angles [rad] and velocities [rad/s], position [m], orientation,
    velocity [m/s] and angular velocity [rad/s] of the block in the world's frame, and position
    and orientation of the goal. gymnasium-robotics observes the same, but the angular velocity
    about the block's own axes. The action is that of :class:`HandReach`.

    The reward compares quaternions as they are, and takes one and its negative for two
    orientations a full turn apart. So the block's quaternion changes without a jump over an
    episode, and either sign may come. An episode is a success if the block is within 1 cm and
    0.1 rad of the goal when it ends.
    """

    achieved_goal_terms = ('object_position', 'object_orientation')
    desired_goal_terms = ('goal_position', 'goal_orientation')

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the angle [rad] and ten times the distance [m]) or
            'sparse' (0 at the goal, else -1).
        """
        super().__init__(
            'hand_manipulate_block', MujocoHandBlockEnv,
            lambda age: [terms.point('object_position', 'object/pose', age),
                         terms.orientation('object_orientation', 'object/pose', age),
                         terms.velocity('object_velocity', 'object/twist', age),
                         terms.angular_velocity('object_angular_velocity', 'object/twist', age)],
            [terms.point('goal_position', 'goal/pose', terms.GOAL_AGE_S),
             terms.orientation('goal_orientation', 'goal/pose', terms.GOAL_AGE_S)],
            100, reward, render_mode)
        self._first = get_physics(self.sim)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; a seed makes it and those that follow repeatable."""
        # The simulation's own reset leaves where the solver starts from to the last episode.
        set_physics(self.sim, self._first)
        return super().reset(seed=seed, options=options)

    def _observe(self, obs):
        joints, velocity, spin, pose = np.split(obs['observation'], [2 * JOINTS, 51, 54])
        return np.concatenate([joints, pose, velocity, rotate(spin, pose[3:]),
                               obs['desired_goal']])
