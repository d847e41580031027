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

"""gymnasium's robots behind our interface: the same physics, and a contract that is true."""

import json

from builtin_interfaces.msg import Time
import gymnasium
import numpy as np
from peers import (
    draw_actions,
    IDS,
    make_peer,
    make_task,
    peer_action,
    RUNNERS,
    same_observation,
    terms_of,
)
import pytest
from small_training import TINY, train
import torch

from dpg_robot.contract.command import CommandLimiter
from dpg_robot.contract.fields import FieldReader
from dpg_robot.contract.messages import group_by_topic, message_class, MessageWriter
from dpg_robot.contract.observation import ObservationAssembler
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import load, SpecError
from dpg_robot.experiment import evaluate_model, export_trainer, load_config
from dpg_robot.report import draw_learning_curve
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_vector, make_world, WorldConfig

EVERY = pytest.mark.parametrize('name', IDS)
TORQUES = pytest.mark.parametrize('name', ['reacher', *RUNNERS, 'point_maze'])


@EVERY
def test_observations_rewards_and_ends_are_those_of_the_simulation(name):
    task, peer = make_task(name), make_peer(name)
    assert same_observation(name, task.reset(seed=4)[0], peer.reset(seed=4)[0])
    rewards, falls = set(), 0
    for action in draw_actions(task, 120):
        obs, reward, terminated, _, info = task.step(action)
        peer_obs, peer_reward, peer_terminated, _, peer_info = peer.step(peer_action(name, action))
        assert np.isfinite(obs).all()
        assert same_observation(name, obs, peer_obs)
        rewards.add(reward)
        if name == 'franka_reach':  # the kitchen has other things to do
            seen = terms_of(task, obs)
            reach = seen['end_effector_position'] - seen['goal_position']
            peer_reward = pytest.approx(-np.linalg.norm(reach), abs=1e-12)
            peer_terminated, peer_info = False, {'success': None}
        assert (reward, terminated) == (peer_reward, peer_terminated)
        assert ('is_success' in info) == bool(peer_info.keys() & {'is_success', 'success'})
        if terminated:
            falls += 1
            assert same_observation(name, task.reset()[0], peer.reset()[0])
    assert len(rewards) > 100  # an object may come to rest
    assert (falls > 0) == (name in ('hopper', 'walker2d'))


@EVERY
def test_an_episode_is_truncated_where_gymnasium_does(name):
    task = make_task(name)
    # Chores take longer than to reach a point.
    limit = 50 if name == 'franka_reach' else gymnasium.spec(IDS[name]).max_episode_steps
    task.reset(seed=0)
    assert limit == task.episode_steps
    task.state = {**task.state, 'steps': limit - 2}
    still = np.zeros(task.action_space.shape)
    assert [task.step(still)[3] for _ in range(2)] == [False, True]
    task.reset()
    assert not task.step(still)[3]


def test_an_episode_counts_its_own_steps():
    task = make_task('half_cheetah')
    task.reset(seed=0)
    assert [task.step(np.zeros(6))[3] for _ in range(1000)] == [False] * 999 + [True]


@EVERY
def test_the_spec_fits_the_spaces_and_survives_its_file(name):
    task = make_task(name)
    spec = task.policy_spec
    assert task.observation_space.shape == (spec.obs_dim,) == task.reset(seed=0)[0].shape
    assert task.action_space.shape == (spec.action_dim,) == (spec.eps_dim,)
    dt = getattr(task.sim, 'point_env', task.sim).dt
    assert (spec.task, spec.control_rate_hz) == (name, pytest.approx(1 / dt))
    assert PolicySpec.from_json(spec.to_json()) == spec


@EVERY
def test_every_joint_in_the_observation_is_the_one_it_is_called(name):
    task, found = make_task(name), 0
    largest = 10.0 if name in ('hopper', 'walker2d') else np.inf  # as gymnasium shows it
    task.reset(seed=0)
    for action in draw_actions(task, 5):
        obs, *_ = task.step(action)
    fields = [field for term in task.policy_spec.observation for field in term.fields]
    for value, field in zip(obs, fields, strict=True):
        kind, _, joint = field.rstrip(']').partition('[')
        if kind in ('position', 'velocity'):
            data = task.sim.data.joint(joint)
            true, = data.qpos if kind == 'position' else np.clip(data.qvel, -largest, largest)
            assert value == pytest.approx(true, abs=1e-12), field
            found += 1
    # Of the planar runners' joints only the position of rootx is left out; a target is no joint
    # here, nor is a body that moves freely.
    planar = 2 * task.sim.model.njnt - 1 if name in RUNNERS else 0
    assert found == {
        'reacher': 4, 'fetch_pick_and_place': 4, 'hand_reach': 48, 'hand_manipulate_block': 48,
        'adroit_door': 29, 'franka_reach': 14, 'ant': 16}.get(name, planar)


@EVERY
def test_observations_and_commands_travel_in_messages(name):
    """Written as sim_node does and read as policy_node does, and back."""
    task = make_world(WorldConfig(name, dead_actuators=2))
    spec, (obs, _) = task.policy_spec, task.reset(seed=0)
    writer = MessageWriter(spec.observation, lambda kind: message_class(kind)(), 'world')
    assembler = ObservationAssembler(spec)
    for topic, message in writer.write(obs, Time(sec=1)):
        assembler.update(topic, message, received_s=0.0)
    read, faults = assembler.assemble(now_s=0.0)
    assert not faults
    np.testing.assert_array_equal(read, obs.astype(np.float32))

    drawn = np.random.default_rng(0).uniform(-1, 1, spec.action_dim)
    command = CommandLimiter(spec).limit(drawn * spec.action_scale + spec.action_offset)
    writer = MessageWriter(spec.action, lambda kind: message_class(kind)())
    groups, values = group_by_topic(spec.action), np.full(spec.action_dim, np.nan)
    for topic, message in writer.write(command, Time()):
        part = np.zeros(len(groups[topic].fields))
        FieldReader(groups[topic].fields).read(message, part)
        values[groups[topic].places] = part
    np.testing.assert_allclose(spec.normalised(values), drawn, atol=1e-8)


def test_an_ant_that_jumps_too_high_is_terminated():
    task, peer = make_task('ant'), make_peer('ant')
    for env in (task, peer):
        env.reset(seed=0)
        data = (env.sim if env is task else env).data
        data.qpos[2] = 1.2
    assert task.step(np.zeros(8))[2] is peer.step(np.zeros(8))[2] is True


@pytest.mark.parametrize('name', ['fetch_pick_and_place', 'hand_manipulate_block', 'hand_reach'])
def test_a_picture_changes_nothing_though_it_moves_the_goal(name, monkeypatch):
    task, futures = make_task(name), []
    monkeypatch.setattr(task.sim.mujoco_renderer, 'render', lambda mode: 'picture')
    for look in (lambda: None, task.render):
        task.reset(seed=0)
        futures.append([(look(), task.step(action))[1][0] for action in draw_actions(task, 20)])
    assert task.render() == 'picture'
    np.testing.assert_array_equal(*futures)


@TORQUES
def test_a_normalised_action_is_so_much_torque_on_the_joint_it_names(name):
    task = make_task(name)
    task.reset(seed=0)
    action, = draw_actions(task, 1)
    task.step(action)
    term, = task.policy_spec.action
    assert term.unit == ('N' if name == 'point_maze' else 'N m')
    for joint, torque in zip(term.joints, action * term.scale, strict=True):
        assert task.sim.data.joint(joint).qfrc_actuator[0] == pytest.approx(torque)


def test_the_angle_of_the_reacher_is_wrapped():
    task = make_task('reacher')
    task.reset(seed=0)
    for angle, seen in ((3.5, 3.5 - 2 * np.pi), (-3.5, 2 * np.pi - 3.5), (np.pi, np.pi),
                        (20.0, 20.0 - 6 * np.pi), (0.3, 0.3)):
        task.sim.data.qpos[0] = angle
        assert task._observe(None)[0] == pytest.approx(seen, abs=1e-12)


@pytest.mark.parametrize('name', RUNNERS)
def test_forward_is_forward(name):
    task = make_task(name)
    task.reset(seed=0)
    before = task.sim.data.qpos[0]
    *_, info = task.step(np.zeros(task.action_space.shape))
    speed = (task.sim.data.qpos[0] - before) * task.policy_spec.control_rate_hz
    # The ant's is of where bodies were seen, a substep before.
    assert info['x_velocity'] == pytest.approx(speed, rel=0.3 if name == 'ant' else 1e-6)


@EVERY
def test_seeds_repeat_and_differ(name):
    task = make_task(name)
    first, again, other = (task.reset(seed=seed)[0] for seed in (4, 4, 5))
    assert (first == again).all() and (first != other).any()
    assert any((task.reset()[0] != other).any() for _ in range(5))  # some goals of a hand repeat


def rollout(task, num):
    """Return everything seen over ``num`` steps, with a reset where an episode ends."""
    rows = []
    for i, action in enumerate(draw_actions(task, num, seed=7)):
        obs, reward, terminated, truncated, _ = task.step(action)
        rows.append([*obs, reward, terminated, truncated])
        if terminated or truncated or i == num // 2:
            rows.append([*task.reset()[0], 0.0, 0.0, 0.0])
    return np.array(rows)


@EVERY
@pytest.mark.parametrize('warm_up', [0, 13])
def test_state_restores_to_the_bit_in_a_fresh_world(name, warm_up):
    task = make_task(name)
    task.reset(seed=3)
    for action in draw_actions(task, warm_up):
        task.step(action)
    state = task.state
    warm_start = task.sim.data.qacc_warmstart.copy()
    expected = rollout(task, 60)
    fresh = make_task(name, which=1)
    fresh.reset(seed=8)
    rollout(fresh, 9)  # a world that was used has a past to forget
    for world in (fresh, task):
        world.state = state
        assert world.steps == warm_up
        np.testing.assert_array_equal(world.sim.data.qacc_warmstart, warm_start)
        np.testing.assert_array_equal(rollout(world, 60), expected)


@pytest.mark.parametrize('name', ['reacher', *RUNNERS])
def test_a_task_without_a_goal_has_one_reward(name):
    message = f'world.reward must be dense for {name}, got sparse'
    with pytest.raises(SpecError, match=message):
        load(WorldConfig, {'task': name, 'reward': 'sparse'}, 'world')
    with pytest.raises(SpecError, match=message):
        make_world(WorldConfig(name, reward='sparse'))


def test_a_world_of_a_vector_that_falls_is_reset_in_the_same_step():
    config = WorldConfig('hopper', noise=NoiseConfig(actuator=0.2))
    envs, single = make_vector(config, 2), make_world(config)
    envs.reset(seed=0)
    single.reset(seed=1)
    for action in np.random.default_rng(0).uniform(-1, 1, (300, 2, 3)):
        obs, _, terminated, truncated, info = envs.step(action)
        last, *_ = single.step(action[1])
        if terminated[1]:
            break
        np.testing.assert_array_equal(obs[1], last)
    assert terminated[1] and not truncated.any()
    np.testing.assert_array_equal(info['final_obs'][1], last)
    np.testing.assert_array_equal(obs[1], single.reset()[0])
    assert 'is_success' not in info['final_info']
    envs.close()


@pytest.mark.parametrize('name', ['hopper', 'hand_reach'])
def test_it_is_trained_evaluated_and_exported(name, tmp_path):
    config = load_config(name, [*TINY, 'trainer.env_steps=120', 'trainer.eval_every_steps=60',
                                'trainer.eval_episodes=2', 'world.dead_actuators=1'])
    trainer = train(config, tmp_path)
    spec, parity = export_trainer(trainer, config, tmp_path / 'model.onnx', episodes=2)
    assert parity <= 1e-5
    evaluation, card = spec.training.evaluation, (tmp_path / 'model.md').read_text()
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    knows_success = name == 'hand_reach'
    assert (evaluation['success'] is not None) == knows_success == ('| success ' in card)
    assert (rows[-1]['eval_success'] is not None) == knows_success
    assert 'over 2 episodes' in card
    draw_learning_curve(rows, tmp_path / 'curve.png')

    # The file gives physical commands: within the limits, and to be normalised again.
    policy, obs = OnnxPolicy(tmp_path / 'model.onnx'), trainer.algorithm.replay.data.next_obs[:50]
    commands = np.array([policy(row) for row in obs.numpy()])
    lower, upper = (np.concatenate([getattr(term, key) for term in spec.action])
                    for key in ('lower', 'upper'))
    assert ((lower <= commands) & (commands <= upper)).all()
    with torch.no_grad():
        actions = trainer.learner.policy(obs, torch.zeros(50, spec.eps_dim)).numpy()
    np.testing.assert_allclose(spec.normalised(commands), actions, atol=1e-5)
    if knows_success:  # and the hand forgives a last digit
        again = evaluate_model(policy, config.world, 2, seed=1_000_000)
        assert again.return_mean == pytest.approx(evaluation['return_mean'], rel=0.01)
