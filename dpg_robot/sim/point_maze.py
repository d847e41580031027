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

"""The point of gymnasium-robotics finds its way through a maze, pushed by two forces."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from dpg_robot.contract.spec import PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.robotics import PointMazeEnv
from dpg_robot.sim.task import control_rate, GoalTask, IMAGE_SIZE, max_age

EPISODE_STEPS = 300
# The simulation has this number in its code only [m].
SUCCESS_RADIUS_M = 0.45


class PointMaze(GoalTask):
    """Bring a ball around the corners of a U to a goal, for 300 periods of 10 ms.

    The observation is position [m] and velocity [m/s] of the ball, and the goal [m]; the action
    is the force on the ball [N] along x and y. They are those of PointMaze_UMaze-v3. An episode
    goes on at the goal, and is a success if the ball is within 45 cm of it when it ends.
    """

    achieved_goal_terms = ('position',)

    def __init__(self, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (e to the minus distance [m]) or 'sparse' (1 at the goal, else 0).
        """
        sim = PointMazeEnv(reward_type=reward, render_mode=render_mode, width=IMAGE_SIZE,
                           height=IMAGE_SIZE)
        # The simulation writes the maze to a file of its own and forgets it there.
        Path(sim.tmp_xml_file_path).unlink()
        model, age = sim.model, max_age(sim.point_env)
        force = model.actuator_gear[:, 0] * model.actuator_ctrlrange[:, 1]
        super().__init__(sim, PolicySpec(
            spec_version=SPEC_VERSION, task='point_maze', robot='point',
            control_rate_hz=control_rate(sim.point_env), eps_dim=2,
            observation=(
                terms.point('position', 'ball/pose', age, 'xy'),
                terms.velocity('velocity', 'ball/twist', age, 'xy'),
                terms.point('goal_position', 'goal/pose', terms.GOAL_AGE_S, 'xy')),
            action=(terms.commands('force', 'effort/commands', 'N', force,
                                   terms.driven_joints(model, range(2))),)), EPISODE_STEPS)

    def _observe(self, obs):
        return np.concatenate([obs['observation'], obs['desired_goal']])

    def _success(self, achieved, desired):
        return np.linalg.norm(achieved - desired, axis=-1) <= SUCCESS_RADIUS_M

    def show_goal(self, scene: mujoco.MjvScene) -> None:
        """Put the goal where a viewer sees it."""
        self.sim.update_target_site_pos()

    def render(self) -> np.ndarray:
        """Return an image, shape (height, width, 3)."""
        self.sim.update_target_site_pos()  # a restored goal is another one
        return super().render()
