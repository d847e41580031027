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

import numpy as np
import pytest

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.sim.fetch import EPISODE_STEPS
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_vector, make_world, WorldConfig

NOISY = WorldConfig('fetch_reach', noise=NoiseConfig(
    actuator=0.3, command_latency_s=0.06,
    observation={'end_effector_position': 0.01, 'goal_position': 0.02}))


def draw_actions(num, num_envs, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num, num_envs, 3)).astype(np.float32)


def rollout(envs, actions):
    """Return observations and rewards, shape (steps, num_envs, obs_dim + 1)."""
    rows = []
    for action in actions:
        obs, reward, *_ = envs.step(action)
        rows.append(np.concatenate([obs, reward[:, None]], -1))
    return np.array(rows)


@pytest.fixture(params=[False, True], ids=['sync', 'processes'])
def processes(request):
    return request.param


@pytest.fixture
def make():
    """Make vectors of noisy worlds that are closed at the end."""
    made = []

    def make_one(num_envs, processes=False, config=NOISY):
        made.append(make_vector(config, num_envs, processes))
        return made[-1]

    yield make_one
    for envs in made:
        envs.close()


def test_each_world_of_a_vector_equals_a_single_one_with_its_seed(make, processes):
    envs, actions = make(3, processes), draw_actions(12, 3)
    first, _ = envs.reset(seed=20)
    together = rollout(envs, actions)
    for i in range(3):
        world = make_world(NOISY)
        assert (world.reset(seed=20 + i)[0] == first[i]).all()
        for action, expected in zip(actions, together):
            obs, reward, *_ = world.step(action[i])
            np.testing.assert_array_equal(np.append(obs, reward), expected[i])
    assert (together[:, 0] != together[:, 1]).any()


def test_state_restores_mid_episode_in_fresh_worlds(make, processes):
    envs = make(2, processes)
    envs.reset(seed=5)
    rollout(envs, draw_actions(17, 2))
    states = envs.get_attr('state')
    # Past the end of the episode, so that the resets that follow are restored too.
    actions = draw_actions(EPISODE_STEPS, 2, seed=1)
    expected = rollout(envs, actions)

    fresh = make(2, processes)
    fresh.reset(seed=99)
    fresh.set_attr('state', states)
    np.testing.assert_array_equal(rollout(fresh, actions), expected)


def test_state_moves_between_processes_and_one_process(make):
    spread, together = make(2, True), make(2, False)
    spread.reset(seed=5)
    rollout(spread, draw_actions(7, 2))
    together.reset(seed=6)
    together.set_attr('state', spread.get_attr('state'))
    actions = draw_actions(10, 2, seed=1)
    np.testing.assert_array_equal(rollout(together, actions), rollout(spread, actions))


def test_state_carries_the_commands_under_way(make):
    latency = WorldConfig('fetch_reach', noise=NoiseConfig(command_latency_s=0.04))
    envs, fresh = make(1, config=latency), make(1, config=latency)
    envs.reset(seed=0)
    envs.step(np.ones((1, 3), np.float32))
    fresh.reset(seed=0)
    fresh.set_attr('state', envs.get_attr('state'))
    _, _, _, _, info = fresh.step(np.zeros((1, 3), np.float32))
    assert info['executed_action'].tolist() == [[1.0, 1.0, 1.0]]


def test_the_end_of_an_episode_keeps_its_true_last_observation(make, processes):
    quiet = WorldConfig('fetch_reach')
    envs, actions = make(2, processes, quiet), draw_actions(EPISODE_STEPS, 2)
    envs.reset(seed=0)
    rollout(envs, actions[:-1])
    obs, reward, terminated, truncated, info = envs.step(actions[-1])
    assert truncated.all() and not terminated.any()

    for i in range(2):
        world = make_world(quiet)
        world.reset(seed=i)
        for action in actions[:, i]:
            last, last_reward, _, last_truncated, last_info = world.step(action)
        assert last_truncated
        np.testing.assert_array_equal(info['final_obs'][i], last)
        assert reward[i] == last_reward
        assert info['final_info']['is_success'][i] == last_info['is_success']
        np.testing.assert_array_equal(obs[i], world.reset()[0])
        assert (obs[i] != last)[6:].all()


def test_sparse_reward_can_be_chosen():
    world = make_world(WorldConfig('fetch_reach', reward='sparse'))
    world.reset(seed=0)
    assert {world.step(np.zeros(3))[1] for _ in range(3)} == {-1.0}


def test_reward_and_success_come_from_the_true_position():
    blind = WorldConfig('fetch_reach', noise=NoiseConfig(observation={'goal_position': 1.0}))
    noisy, exact = make_world(blind), make_world(WorldConfig('fetch_reach'))
    noisy.reset(seed=0)
    exact.reset(seed=0)
    for action in draw_actions(5, 1)[:, 0]:
        seen, true = noisy.step(action), exact.step(action)
        assert seen[1] == true[1] and seen[4]['is_success'] == true[4]['is_success']
        assert (seen[0][:6] == true[0][:6]).all() and (seen[0][6:] != true[0][6:]).all()


@pytest.mark.parametrize('data, message', [
    ({'task': 'fetch_push'},
     'world.task must be one of fetch_reach, hand_reach, .*; got fetch_push'),
    ({'task': 'fetch_reach', 'reward': 'shaped'},
     'world.reward must be one of dense, sparse; got shaped'),
    ({'task': 'fetch_reach', 'noise': {'actuator': -0.1}},
     r'world.noise.actuator must be at least 0, got -0\.1')])
def test_bad_configurations_are_named(data, message):
    with pytest.raises(SpecError, match=message):
        load(WorldConfig, data, 'world')


def test_an_unknown_observation_term_is_named():
    config = WorldConfig('fetch_reach', noise=NoiseConfig(observation={'joint_position': 0.1}))
    with pytest.raises(SpecError, match='noise.observation.joint_position is not an observation '
                                        'term of fetch_reach; its terms: end_effector_position'):
        make_world(config)
