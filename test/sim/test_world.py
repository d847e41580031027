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

import dataclasses
from functools import partial

import gymnasium
import numpy as np
from policy_files import pose_spec
import pytest

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.sim.disturbances import PushConfig, RandomizeConfig, ScaleConfig
from dpg_robot.sim.fetch import EPISODE_STEPS
from dpg_robot.sim.noise import Noise, NoiseConfig, StochasticWorld
from dpg_robot.sim.tasks import TaskEntry, TASKS
from dpg_robot.sim.vector import VectorWorld
from dpg_robot.sim.world import make_vector, make_world, WorldConfig

NOISY = WorldConfig('fetch_reach', noise=NoiseConfig(
    actuator=0.3, command_latency_s=0.06, command_loss=0.1, actuator_bias=0.05,
    observation={'end_effector_position': 0.01, 'goal_position': 0.02},
    observation_loss={'end_effector_velocity': 0.2},
    pushes={'robot0:gripper_link': PushConfig(5.0, (1.0, 5.0), 0.05)},
    randomize=RandomizeConfig(scale=ScaleConfig(mass=(0.8, 1.2), damping=(0.5, 2.0)))))
QUIET = WorldConfig('fetch_reach')


class Drive(gymnasium.Env):
    """Three joints that move as they are told; a task of somebody's own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    state, episode_steps = 0.0, 50

    def __init__(self, render_mode=None, **limits):
        spec = pose_spec()
        self.policy_spec = dataclasses.replace(
            spec, action=(dataclasses.replace(
                spec.action[0], scale=(1.0,) * 3, lower=(-1.0,) * 3, upper=(1.0,) * 3, **limits),))

    def reset(self, *, seed=None, options=None):
        return np.zeros(6), {}

    def step(self, action):
        return np.repeat(action, 2), 0.0, False, False, {}


@pytest.mark.parametrize('limits, moves', [
    ({}, [1.0, -1.0, 1.0]),
    ({'rate_limit': (5.0, None, None)}, [0.1, 0.0, 0.1]),  # 0.1 in a period of 0.02 s
    ({'acceleration_limit': (50.0, None, None)}, [0.02, 0.02, 0.04])])
def test_a_task_of_ones_own_keeps_the_limits_of_its_contract(monkeypatch, limits, moves):
    monkeypatch.setitem(TASKS, 'drive', TaskEntry(partial(Drive, **limits)))
    config = WorldConfig('drive')
    world, envs = make_world(config), make_vector(config, 2)
    world.reset(seed=0)
    envs.reset(seed=0)
    told = np.array([world.step(np.full(3, way))[0] for way in (1.0, -1.0, 1.0)])
    np.testing.assert_allclose(told[:, 0], moves, atol=1e-12)
    np.testing.assert_array_equal(told[:, 2], [1.0, -1.0, 1.0])
    for obs, way in zip(told, (1.0, -1.0, 1.0)):
        np.testing.assert_array_equal(envs.step(np.full((2, 3), way))[0], [obs, obs])
    other = make_world(config)
    other.reset(seed=1)
    other.state = world.state
    for way in (1.0, 1.0, -1.0):
        np.testing.assert_array_equal(
            *(each.step(np.full(3, way))[0] for each in (world, other)))


@pytest.mark.parametrize('config, message', [
    (WorldConfig('hoper'), 'world.task must be one of .*; got hoper'),
    (WorldConfig('fetch_reach', reward='foo'), 'world.reward must be one of dense, sparse; got'),
    (WorldConfig('hopper', noise=NoiseConfig(actuator=-0.5)),
     'world.noise.actuator must be at least 0, got -0.5'),
    (WorldConfig('hopper', noise=NoiseConfig(observation={'height': np.nan})),
     'world.noise.observation.height must be finite, got nan'),
    (WorldConfig('hopper', noise=NoiseConfig(pushes={'torso': {'rate_hz': 1.0}})),
     'world.noise.pushes.torso.force_n is required and missing')])
@pytest.mark.parametrize('make', [make_world, partial(make_vector, num_envs=2)])
def test_a_world_from_python_has_the_rules_of_one_from_a_file(config, message, make):
    with pytest.raises(SpecError, match=f'^{message}'):
        make(config)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('worlds', [0, 2])
def test_an_action_that_is_not_finite_is_refused(bad, worlds):
    envs = make_vector(QUIET, worlds) if worlds else make_world(QUIET)
    envs.reset(seed=0)
    action = np.zeros((*[worlds][:worlds], 3))
    action[..., 1] = bad
    with pytest.raises(SpecError, match=rf'^an action for fetch_reach must be finite, got '
                       rf'\[0.0, {bad}, 0.0\]$'):
        envs.step(action)


@pytest.mark.parametrize('worlds', [0, 2])
def test_an_action_of_another_shape_is_refused(worlds):
    envs = make_vector(QUIET, worlds) if worlds else make_world(QUIET)
    envs.reset(seed=0)
    with pytest.raises(SpecError, match=r'^an action for fetch_reach must have the shape \(3,\), '
                       r'got \(5,\)$'):
        envs.step(np.zeros((*[worlds][:worlds], 5)))


def draw_actions(num, num_envs, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num, num_envs, 3)).astype(np.float32)


def rollout(envs, actions):
    """Return observations and rewards, shape (steps, num_envs, obs_dim + 1)."""
    rows = []
    for action in actions:
        obs, reward, *_ = envs.step(action)
        rows.append(np.concatenate([obs, reward[:, None]], -1))
    return np.array(rows)


@pytest.fixture(params=[1, 2], ids=['one process', 'two workers'])
def workers(request):
    return request.param


@pytest.fixture(scope='module')
def make():
    """Return a vector of worlds; those asked for again are used again."""
    made = {}

    def make_one(num_envs, workers=1, config=NOISY, which=0):
        key = num_envs, workers, config is NOISY, which
        if key not in made:
            made[key] = make_vector(config, num_envs, workers)
        return made[key]

    yield make_one
    for envs in made.values():
        envs.close()


def test_each_world_of_a_vector_equals_a_single_one_with_its_seed(make):
    envs, actions = make(3), draw_actions(12, 3)
    first, _ = envs.reset(seed=20)
    together = rollout(envs, actions)
    for i in range(3):
        world = make_world(NOISY)
        assert (world.reset(seed=20 + i)[0] == first[i]).all()
        for action, expected in zip(actions, together):
            obs, reward, *_ = world.step(action[i])
            np.testing.assert_array_equal(np.append(obs, reward), expected[i])
    assert (together[:, 0] != together[:, 1]).any()


def test_state_restores_mid_episode_in_fresh_worlds(make, workers):
    envs = make(3, workers)
    envs.reset(seed=5)
    rollout(envs, draw_actions(17, 3))
    states = envs.get_attr('state')
    # Past the end of the episode, so that the resets that follow are restored too.
    actions = draw_actions(EPISODE_STEPS, 3, seed=1)
    expected = rollout(envs, actions)

    fresh = make(3, which=1)
    fresh.reset(seed=99)
    fresh.set_attr('state', states)
    np.testing.assert_array_equal(rollout(fresh, actions), expected)
    envs.set_attr('state', list(states))  # and into the processes
    np.testing.assert_array_equal(rollout(envs, actions), expected)


def assert_same(one, other):
    """Compare infos."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[key])
        elif value.dtype == object:
            assert [v is None for v in value] == [v is None for v in other[key]]
            assert all(v is None or (v == w).all() for v, w in zip(value, other[key]))
        else:
            assert value.dtype == other[key].dtype
            np.testing.assert_array_equal(value, other[key])


def test_any_number_of_workers_gives_the_same_to_the_bit(make):
    """Observations, rewards, ends and infos; also where worlds end at different times."""
    alone, shared = make(3), make(3, 2)
    for envs in (alone, shared):
        envs.reset(seed=[7, 3, 11])
    early = [{**state, 'task': {**state['task'], 'steps': 4 * i}}
             for i, state in enumerate(alone.get_attr('state'))]
    for envs in (alone, shared):
        envs.set_attr('state', early)
    ends = 0
    for action in draw_actions(EPISODE_STEPS + 3, 3):
        results = [envs.step(action) for envs in (alone, shared)]
        for one, other in zip(*(result[:4] for result in results)):
            assert one.dtype == other.dtype and one.shape == other.shape
            np.testing.assert_array_equal(one, other)
        assert_same(results[0][4], results[1][4])
        ends += results[0][3].sum()
    assert ends == 3


def test_what_a_vector_returns_is_the_callers(make, workers):
    envs = make(3, workers)
    obs, _ = envs.reset(seed=0)
    kept = obs.copy()
    first = envs.step(np.zeros((3, 3), np.float32))
    copies = [np.copy(x) for x in first[:4]]
    envs.step(np.ones((3, 3), np.float32))
    assert (obs == kept).all()
    for one, other in zip(first, copies):
        np.testing.assert_array_equal(one, other)


def test_attributes_and_spaces_are_gymnasiums(make, workers):
    envs = make(3, workers)
    assert envs.num_envs == 3
    assert envs.observation_space.shape == (3, 9) and envs.action_space.shape == (3, 3)
    assert envs.metadata['autoreset_mode'].name == 'SAME_STEP'
    assert envs.get_attr('achieved_goal') == ((0, 1, 2),) * 3
    assert {spec.task for spec in envs.get_attr('policy_spec')} == {'fetch_reach'}
    assert envs.call('get_wrapper_attr', 'episode_steps') == (EPISODE_STEPS,) * 3
    with pytest.raises(ValueError, match='one value for each of 3 worlds, got 2'):
        envs.reset(seed=[1, 2])


def test_state_carries_the_commands_under_way(make):
    latency = WorldConfig('fetch_reach', noise=NoiseConfig(command_latency_s=0.04))
    envs, fresh = make_vector(latency, 1), make_vector(latency, 1)
    envs.reset(seed=0)
    envs.step(np.ones((1, 3), np.float32))
    fresh.reset(seed=0)
    fresh.set_attr('state', envs.get_attr('state'))
    _, _, _, _, info = fresh.step(np.zeros((1, 3), np.float32))
    assert info['executed_action'].tolist() == [[1.0, 1.0, 1.0]]


def test_the_end_of_an_episode_keeps_its_true_last_observation(make):
    envs, actions = make(2, config=QUIET), draw_actions(EPISODE_STEPS, 2)
    envs.reset(seed=0)
    rollout(envs, actions[:-1])
    obs, reward, terminated, truncated, info = envs.step(actions[-1])
    assert truncated.all() and not terminated.any()

    for i in range(2):
        world = make_world(QUIET)
        world.reset(seed=i)
        for action in actions[:, i]:
            last, last_reward, _, last_truncated, last_info = world.step(action)
        assert last_truncated
        np.testing.assert_array_equal(info['final_obs'][i], last)
        assert reward[i] == last_reward
        assert info['final_info']['is_success'][i] == last_info['is_success']
        np.testing.assert_array_equal(obs[i], world.reset()[0])
        assert (obs[i] != last)[6:].all()


class Timid(StochasticWorld):
    """A world that obeys by half."""

    def commanded(self, action):
        return 0.5 * action


def test_a_vector_asks_each_world_for_its_command():
    config = NoiseConfig(actuator=0.1)
    tasks = [make_world(WorldConfig('reacher')).env for _ in range(2)]
    noise = Noise(config, tasks[0].policy_spec, 2)
    envs = VectorWorld([Timid(tasks[0], config, noise, 0),
                        StochasticWorld(tasks[1], config, noise, 1)], noise)
    envs.reset(seed=4)
    executed = envs.step(np.full((2, 2), 0.6, np.float32))[4]['executed_action']
    alone = [Timid(make_world(WorldConfig('reacher')).env, config),
             make_world(WorldConfig('reacher', noise=config))]
    for i, world in enumerate(alone):
        world.reset(seed=4 + i)
        info = world.step(np.full(2, 0.6, np.float32))[4]
        np.testing.assert_array_equal(info['executed_action'], executed[i])
    assert (executed[0] < executed[1]).all()


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
    ({'task': 'juggle'},
     'world.task must be one of fetch_reach, .*; got juggle'),
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
