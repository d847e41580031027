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

import mujoco
import numpy as np
import pytest

from dpg_robot.sim.fetch import EPISODE_STEPS, FetchReach, MAX_STEP_M

POSITION, VELOCITY, GOAL = slice(0, 3), slice(3, 6), slice(6, 9)
STILL = np.zeros(3)


@pytest.fixture
def world():
    task = FetchReach()
    yield task
    task.close()


def grip_position(world):
    site = mujoco.mj_name2id(world.sim.model, mujoco.mjtObj.mjOBJ_SITE, 'robot0:grip')
    return world.sim.data.site_xpos[site].copy()


def test_observation_is_position_velocity_goal_in_the_order_of_the_spec(world):
    obs, _ = world.reset(seed=0)
    for _ in range(3):
        obs, *_ = world.step(np.array([0.5, -0.3, 0.2]))
    assert obs.shape == world.observation_space.shape == (9,)
    np.testing.assert_array_equal(obs[POSITION], grip_position(world))
    np.testing.assert_array_equal(obs[GOAL], world.sim.goal)
    spec = world.policy_spec
    assert [(term.name, term.size, term.unit) for term in spec.observation] == [
        ('end_effector_position', 3, 'm'), ('end_effector_velocity', 3, 'm/s'),
        ('goal_position', 3, 'm')]
    assert spec.control_rate_hz == 25.0 and spec.action_dim == 3


def test_velocity_is_the_rate_of_change_of_the_position(world):
    world.reset(seed=0)
    for _ in range(4):
        obs, *_ = world.step(np.array([0.5, -0.3, 0.2]))
    # One 2 ms step of the simulator further; within it the gripper slows down by a few percent.
    before = grip_position(world)
    mujoco.mj_step(world.sim.model, world.sim.data)
    mujoco.mj_forward(world.sim.model, world.sim.data)
    rate = (grip_position(world) - before) / world.sim.model.opt.timestep
    assert np.abs(obs[VELOCITY]).min() > 0.1
    np.testing.assert_allclose(obs[VELOCITY], rate, rtol=0.08)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('command', [1.0, -1.0, 0.5])
def test_a_command_moves_the_gripper_along_its_axis(world, axis, command):
    start, _ = world.reset(seed=0)
    action = np.zeros(3)
    action[axis] = command
    obs, *_ = world.step(action)
    moved = (obs - start)[POSITION]
    # The weld that drags the arm along covers about six tenths of the way within a period.
    assert moved[axis] / command == pytest.approx(0.61 * MAX_STEP_M, rel=0.1)
    assert np.abs(np.delete(moved, axis)).max() < 0.003


def test_the_commanded_speed_is_the_speed_that_the_gripper_keeps(world):
    start, _ = world.reset(seed=0)
    positions = [start[POSITION]]
    for _ in range(10):
        obs, *_ = world.step(np.array([0.0, 0.5, 0.0]))
        positions.append(obs[POSITION])
    term, dt = world.policy_spec.action[0], world.policy_spec.control_dt
    speed = np.diff(positions, axis=0)[3:, 1].mean() / dt
    assert speed == pytest.approx(0.5 * term.scale[1], rel=0.05)


def test_without_a_command_the_arm_stands_still(world):
    start, _ = world.reset(seed=0)
    for _ in range(10):
        obs, *_ = world.step(STILL)
    # It sags by 1.5 mm at first.
    assert np.abs((obs - start)[POSITION]).max() < 0.003


def test_dense_reward_is_minus_the_distance_after_the_step(world):
    world.reset(seed=0)
    obs, reward, *_ = world.step(np.array([1.0, 0.0, 0.0]))
    assert reward == pytest.approx(-np.linalg.norm(obs[POSITION] - obs[GOAL]), abs=1e-12)


def drive_to_goal(world, obs, steps):
    for _ in range(steps):
        action = np.clip((obs[GOAL] - obs[POSITION]) / MAX_STEP_M, -1, 1)
        obs, reward, _, _, info = world.step(action)
    return obs, reward, info


def test_sparse_reward_and_success_change_at_the_threshold():
    world = FetchReach(reward='sparse')
    obs, _ = world.reset(seed=0)
    for steps, success in ((1, False), (20, True)):
        obs, reward, info = drive_to_goal(world, obs, steps)
        distance = np.linalg.norm(obs[POSITION] - obs[GOAL])
        assert info['is_success'] is bool(distance < 0.05) is success
        assert reward == (0.0 if success else -1.0)


def test_an_episode_is_truncated_after_fifty_periods_and_never_terminated(world):
    for _ in range(2):
        obs, _ = world.reset(seed=0)
        ends = []
        for _ in range(EPISODE_STEPS):
            action = np.clip((obs[GOAL] - obs[POSITION]) / MAX_STEP_M, -1, 1)
            obs, _, terminated, truncated, info = world.step(action)
            ends.append(truncated)
            assert terminated is False
        assert info['is_success'] and ends == [False] * 49 + [True]


def test_goals_follow_the_seed(world):
    goals = [world.reset(seed=seed)[0][GOAL] for seed in (4, 4, 5)]
    assert (goals[0] == goals[1]).all() and (goals[0] != goals[2]).all()
    assert (world.reset()[0][GOAL] != goals[2]).all()


def rollout(world, num):
    """Return everything seen over ``num`` steps with a reset half way, as one array."""
    rows, rng = [], np.random.default_rng(7)
    for i in range(num):
        obs, reward, *_ = world.step(rng.uniform(-1, 1, 3))
        rows.append(np.append(obs, reward))
        if i == num // 2:
            rows.append(np.append(world.reset()[0], 0.0))
    return np.array(rows)


@pytest.mark.parametrize('warm_up', [0, 13])
def test_state_restores_to_the_bit_in_a_fresh_world(world, warm_up):
    world.reset(seed=3)
    rng = np.random.default_rng(1)
    for _ in range(warm_up):
        world.step(rng.uniform(-1, 1, 3))
    state = world.state
    expected = rollout(world, 30)
    fresh = FetchReach()
    fresh.state = state
    assert fresh.steps == warm_up
    np.testing.assert_array_equal(rollout(fresh, 30), expected)
    # A state is a copy: it can be restored again, and in a world that was used.
    world.state = state
    np.testing.assert_array_equal(rollout(world, 30), expected)
