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

"""Tests of the simulated robot's rules, on a world that records what it is told."""

import dataclasses

import numpy as np
from policy_files import joint_spec, pose_spec
import pytest

from dpg_robot.sim.robot import SimulatedRobot


class World:
    """Count steps, end after five of them, and keep every action."""

    def __init__(self, spec=None):
        self.policy_spec = spec or pose_spec()
        self.actions, self.seeds, self.steps = [], [], 0

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.steps = 0
        return np.zeros(self.policy_spec.obs_dim), {}

    def step(self, action):
        self.actions.append(action.tolist())
        self.steps += 1
        observation = np.full(self.policy_spec.obs_dim, float(self.steps))
        return observation, -1.0, False, self.steps == 5, {'is_success': self.steps == 5}


def robot_and_world(spec=None, **options):
    world = World(spec)
    return SimulatedRobot(world, **options), world


def command(robot, *values):
    robot.give_command('hand/command', np.array(values))


def test_it_waits_for_the_first_command():
    robot, world = robot_and_world(seed=5)
    for _ in range(3):
        assert robot.tick() is None
    assert (robot.state, world.actions, world.seeds) == ('waiting', [], [5])
    assert not robot.is_refused  # nobody is there
    assert robot.observation.tolist() == [0.0] * 6
    command(robot, 0.0, 0.0, 0.0)  # the safe command: nobody drives yet
    robot.tick()
    assert (robot.state, world.actions, robot.is_refused) == ('waiting', [], True)
    command(robot, 0.1, 0.2, 0.3)
    robot.tick()
    assert not robot.is_refused
    assert (robot.state, world.actions) == ('driven', [[0.1, 0.2, 0.3]])
    assert robot.observation.tolist() == [1.0] * 6


def test_it_need_not_wait():
    robot, world = robot_and_world(wait_for_command=False)
    robot.tick()
    assert (robot.state, world.actions) == ('waiting', [[0.0, 0.0, 0.0]])
    assert (robot.num_steps, robot.num_safe_steps) == (1, 1)


def test_commands_are_scaled_and_clipped():
    spec = joint_spec()
    robot, world = robot_and_world(spec)
    robot.give_command('effort/commands', np.array([1.0, -9.0]))
    robot.tick()
    assert world.actions == [[0.5, -1.0]]


def test_a_command_is_held_and_then_the_safe_one_acts():
    robot, world = robot_and_world(hold_s=0.04)  # two ticks at 50 Hz
    command(robot, 0.4, 0.0, 0.0)
    states = []
    for _ in range(4):
        robot.tick()
        states.append(robot.state)
    assert states == ['driven', 'driven', 'driven', 'safe']
    assert [action[0] for action in world.actions] == [0.4, 0.4, 0.4, 0.0]
    assert (robot.num_late_commands, robot.num_safe_steps) == (2, 1)
    command(robot, 0.2, 0.0, 0.0)
    robot.tick()
    assert (robot.state, world.actions[-1][0]) == ('driven', 0.2)


@pytest.mark.parametrize('hold_s, num_held', [(0.15, 2), (3 * 0.1, 3)])
def test_a_command_is_held_for_the_whole_of_a_period_that_has_begun(hold_s, num_held):
    """3 * 0.1 is a little more than 0.3 in floating point; that begins no fourth period."""
    robot, _ = robot_and_world(pose_spec(control_rate_hz=10.0), hold_s=hold_s)
    command(robot, 0.4, 0.0, 0.0)
    for _ in range(5):
        robot.tick()
    assert (robot.num_late_commands, robot.num_safe_steps) == (num_held, 4 - num_held)


def test_an_episode_ends_with_its_result_and_forgets_the_command():
    robot, world = robot_and_world(seed=1)
    results = []
    for _ in range(5):
        command(robot, 0.1, 0.1, 0.1)
        results.append(robot.tick())
    assert results[:4] == [None] * 4
    assert results[4] == (1, True, -5.0, 5)
    assert robot.observation.tolist() == [5.0] * 6
    command(robot, 0.1, 0.1, 0.1)  # the answer to the last state of the old episode
    robot.rest()
    assert world.seeds == [1, None]
    robot.tick()
    assert robot.observation.tolist() == [0.0] * 6
    robot.tick()
    assert (robot.state, len(world.actions)) == ('waiting', 5)
    command(robot, 0.2, 0.2, 0.2)
    robot.tick()
    assert (robot.state, world.actions[5:]) == ('driven', [[0.2, 0.2, 0.2]])
    assert world.seeds == [1, None]
    assert (robot.num_episodes, robot.num_successes) == (1, 1)


@pytest.mark.parametrize('options', [{'auto_reset': False}, {'episodes': 1}])
def test_it_holds_the_last_state_when_it_has_ended(options):
    robot, world = robot_and_world(**options)
    for _ in range(8):
        command(robot, 0.1, 0.1, 0.1)
        robot.tick()
    assert (robot.state, len(world.actions), robot.num_episodes) == ('ended', 5, 1)
    assert robot.observation.tolist() == [5.0] * 6
    robot.begin_episode()
    command(robot, 0.1, 0.1, 0.1)
    robot.tick()
    assert (robot.state, len(world.actions)) == ('driven', 6)
    for _ in range(8):  # whatever ended is over: each further episode must be asked for
        command(robot, 0.1, 0.1, 0.1)
        robot.tick()
    assert (robot.state, len(world.actions), robot.num_episodes) == ('ended', 10, 2)


def limited_robot_and_world():
    term, = pose_spec().action
    return robot_and_world(pose_spec(action=(
        dataclasses.replace(term, rate_limit=(5.0, None, 50.0)),)))


def test_a_limited_controller_is_waited_for_until_its_commands_rest():
    """It knows of no new episode, and comes from its last command of the old one."""
    robot, world = limited_robot_and_world()
    command(robot, 0.9, 0.0, 0.0)
    robot.tick()
    assert robot.state == 'driven'  # before the first episode there was none
    for _ in range(2):
        robot.begin_episode()
        for value in (0.1, 0.2, 0.3):
            command(robot, value, 0.0, 0.0)
            robot.tick()
            robot.tick()  # a command that came but once has not come to rest
            assert robot.state == 'waiting'
        before = len(world.actions)
        command(robot, 0.3, 0.0, 0.0)
        robot.tick()
        assert (robot.state, world.actions[before:]) == ('driven', [[0.3, 0.0, 0.0]])
        command(robot, 0.5, 0.0, 0.0)
        robot.tick()
        assert world.actions[-1] == [0.5, 0.0, 0.0]


def test_a_limited_controller_that_never_rests_is_not_waited_for_long():
    robot, world = limited_robot_and_world()
    command(robot, 0.9, 0.0, 0.0)
    robot.tick()
    robot.begin_episode()
    waited = 0
    while len(world.actions) == 1:
        command(robot, 0.1 + 0.01 * (waited % 2), 0.0, 0.0)
        robot.tick()
        waited += 1
    # From end to end it is 1, at 5 a second and 50 Hz.
    assert waited == 10 + 3


def test_a_reset_in_the_middle_is_not_counted():
    robot, _ = robot_and_world()
    command(robot, 0.1, 0.1, 0.1)
    robot.tick()
    robot.begin_episode()
    assert (robot.num_episodes, robot.observation.tolist()) == (0, [0.0] * 6)
    for _ in range(5):
        command(robot, 0.1, 0.1, 0.1)
        result = robot.tick()
    assert (result.episode, result.length) == (1, 5)


def test_every_action_topic_must_speak():
    term = pose_spec().action[0]
    spec = pose_spec(action=(term, dataclasses.replace(term, name='b', topic='b/command')))
    robot, world = robot_and_world(spec, hold_s=0.02)
    command(robot, 0.1, 0.1, 0.1)
    robot.tick()
    assert world.actions == []
    robot.give_command('b/command', np.full(3, 0.2))
    robot.tick()
    assert world.actions == [[0.1, 0.1, 0.1, 0.2, 0.2, 0.2]]
    for _ in range(2):
        command(robot, 0.1, 0.1, 0.1)
        robot.tick()
    assert robot.state == 'safe'


def test_an_offset_is_taken_off_and_is_where_nothing_was_commanded():
    term, = joint_spec().action
    term = dataclasses.replace(term, offset=(1.0, 0.5), safe=(None, None), lower=(-1.0, -1.5),
                               upper=(3.0, 2.5))
    robot, world = robot_and_world(joint_spec(action=(term,)), wait_for_command=False)
    robot.tick()
    robot.give_command('effort/commands', np.array([2.0, -1.5]))
    robot.tick()
    assert world.actions == [[0.0, 0.0], [0.5, -1.0]]


def test_an_element_without_a_safe_value_holds_its_last_command():
    term, = joint_spec().action
    term = dataclasses.replace(term, safe=(None, 0.0))
    robot, world = robot_and_world(joint_spec(action=(term,)), hold_s=0.0)
    robot.give_command('effort/commands', np.array([1.0, 1.0]))
    robot.tick()
    robot.tick()
    assert robot.state == 'safe'
    assert world.actions == [[0.5, 0.5], [0.5, 0.0]]


def test_before_the_first_command_it_stays_where_it_is():
    term, = joint_spec().action
    term = dataclasses.replace(term, safe=(None, 0.0))
    world = World(joint_spec(action=(term,)))
    world.held_action = np.array([0.25, 0.75])
    SimulatedRobot(world, wait_for_command=False).tick()
    assert world.actions == [[0.25, 0.0]]


def test_a_task_may_know_no_success():
    robot, world = robot_and_world()
    step = world.step
    world.step = lambda action: (*step(action)[:4], {})
    for _ in range(5):
        command(robot, 0.1, 0.1, 0.1)
        result = robot.tick()
    assert result == (1, None, -5.0, 5)
    assert robot.num_successes == 0
