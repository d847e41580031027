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

"""Rewards and successes computed anew from goals are those that the simulation gave."""

import mujoco
import numpy as np
import pytest

from dpg_robot.sim.franka import FrankaReach
from dpg_robot.sim.task import GoalTask
from dpg_robot.sim.tasks import TASKS
from dpg_robot.sim.world import make_world, WorldConfig

# A door has a sparse reward, but no goal.
GOAL_TASKS = [name for name, entry in TASKS.items()
              if entry.has_sparse and name not in ('adroit_door', 'reach', 'track')]


def places(spec, names):
    """Return where the elements of these terms are in the observation."""
    ends = np.cumsum([term.size for term in spec.observation])
    return np.concatenate([np.arange(end - term.size, end)
                           for term, end in zip(spec.observation, ends) if term.name in names])


@pytest.mark.parametrize('reward', ['dense', 'sparse'])
@pytest.mark.parametrize('name', GOAL_TASKS)
def test_the_reward_of_what_happened_is_the_one_that_was_given(name, reward):
    world = make_world(WorldConfig(name, reward=reward))
    task = world.unwrapped
    assert isinstance(task, GoalTask)
    achieved = places(task.policy_spec, task.achieved_goal_terms)
    desired = places(task.policy_spec, task.desired_goal_terms)
    assert tuple(achieved) == world.achieved_goal and len(achieved) == len(desired)
    rng, rows = np.random.default_rng(0), []
    world.reset(seed=1)
    for step in range(20):
        if step == 15:  # the goal shall be where the robot will be
            task.state = {**task.state, 'goal': rows[-1][0][achieved]}
        obs, given, _, _, info = world.step(rng.uniform(-0.2, 0.2, task.action_space.shape))
        rows.append((obs, given, info['is_success']))
    seen, given, success = map(np.array, zip(*rows))
    again, again_success = task.goal_reward(seen[:, achieved], seen[:, desired])
    assert again.shape == again_success.shape == (20,) and again_success.dtype == bool
    np.testing.assert_allclose(again, given, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(again_success, success)
    assert success.any() and not success.all()
    missed, reached = (0.0, 1.0) if name == 'point_maze' else (-1.0, 0.0)
    if reward == 'sparse':
        assert set(given[success]) == {reached} and set(given[~success]) == {missed}
    else:
        assert len(set(given)) > 10


def test_a_viewer_is_shown_the_goal_in_the_kitchen():
    task = FrankaReach()
    task.reset(seed=0)
    scene = mujoco.MjvScene(task.sim.model, 10)
    task.show_goal(scene)
    assert scene.ngeom == 1
    np.testing.assert_allclose(scene.geoms[0].pos, task.sim.goal, atol=1e-6)
