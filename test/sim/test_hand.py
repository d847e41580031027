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

"""The Shadow hand's servos and its rewards; what it shares with others is in test_tasks."""

import numpy as np
import pytest

from dpg_robot.sim.hand import HandReach
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_world, WorldConfig


def test_a_normalised_action_is_an_angle_within_the_range_of_its_servo():
    task = HandReach()
    task.reset(seed=0)
    term, = task.policy_spec.action
    lower, upper = task.sim.model.actuator_ctrlrange.T
    np.testing.assert_allclose((term.lower, term.upper), (lower, upper))
    for action, angles in ((-np.ones(20), lower), (np.ones(20), upper),
                           (np.zeros(20), (lower + upper) / 2)):
        task.step(action)
        np.testing.assert_allclose(task.sim.data.ctrl, angles, atol=1e-12)
        np.testing.assert_allclose(
            action * np.array(term.scale) + term.offset, angles, atol=1e-9)


@pytest.mark.parametrize('task', ['hand_reach', 'adroit_door'])
def test_an_episode_begins_with_servos_told_to_stay(task):
    world = make_world(WorldConfig(task, dead_actuators=2,
                                   noise=NoiseConfig(command_latency_s=0.1)))
    world.reset(seed=0)
    sim, lower, upper = world.unwrapped.sim, *world.unwrapped.sim.model.actuator_ctrlrange.T
    start = np.clip(sim.data.actuator_length, lower, upper)
    *_, info = world.step(np.ones(len(start) + 2))
    np.testing.assert_allclose(sim.data.ctrl, start, atol=1e-6)
    assert info['executed_action'][-2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize('joint', ['robot0:FFJ2', 'robot0:THJ4', 'robot0:WRJ0'])
def test_a_servo_moves_the_joint_that_it_is_called_after(joint):
    task = HandReach()
    term, = task.policy_spec.action
    angles = {}
    for command in (-0.5, 0.5):
        task.reset(seed=0)
        action = np.zeros(20)
        action[term.joints.index(joint)] = command
        for _ in range(25):
            task.step(action)
        angles[command] = task.sim.data.joint(joint).qpos[0]
    span = term.scale[term.joints.index(joint)]
    assert 0.5 * span < angles[0.5] - angles[-0.5] < 1.5 * span


def test_the_sparse_reward_of_the_hand_is_zero_at_the_goal_only():
    task = HandReach(reward='sparse')
    task.reset(seed=0)
    obs, reward, _, _, info = task.step(np.zeros(20))
    assert (reward, info['is_success']) == (-1.0, False)
    # The fingertips shall be where they will be.
    state = task.state
    tips = task.step(np.zeros(20))[0][48:63]
    task.state = {**state, 'goal': tips + 0.009 / 15 ** 0.5}
    obs, reward, _, _, info = task.step(np.zeros(20))
    assert (reward, info['is_success']) == (0.0, True)
    task.state = {**state, 'goal': tips + 0.011 / 15 ** 0.5}
    obs, reward, _, _, info = task.step(np.zeros(20))
    assert (reward, info['is_success']) == (-1.0, False)
