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

"""Worlds on a device against the CPU's: a control step, whole episodes, and how they begin."""

from device import config_of, gather, make_worlds, put_states, tensor_of
import mujoco
import numpy as np
import pytest
import torch

from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.warp.worlds import DeviceWorlds
from dpg_robot.sim.world import make_world

# How far float32 may lead from float64 in one control period: of most states, and of any. The
# Fetch arm hangs on a stiff weld, where an error of 1e-7 in a position is one of 1e-3 in a
# velocity; objects on its table may tip over an edge, or not. A capsule that stands steeply on a
# plane has its friction pyramid turned, which moves the ant.
PARITY = {
    'half_cheetah': (1e-4, 2e-3), 'hopper': (1e-4, 2e-3), 'walker2d': (1e-4, 2e-3),
    'reacher': (1e-5, 1e-4), 'reach': (1e-5, 1e-5), 'track': (1e-5, 1e-4),
    'fetch_reach': (3e-3, 1e-2), 'fetch_push': (3e-3, 3.0), 'fetch_pick_and_place': (3e-3, 3.0),
    'hand_reach': (5e-4, 1e-2), 'ant': (1e-4, 3.0)}
# What part of the states are most, and the tolerance of rewards in these.
MOST, REWARD = {'ant': 0.4}, {'fetch_reach': 2e-4, 'half_cheetah': 2e-4}


def one_step(name, num=40, **options):
    """Return a device's and the CPU's outcome of one control step from many states."""
    task, states, actions, *cpu = gather(name, num, **options)
    worlds = make_worlds(name, num, **options)
    worlds.reset(seed=0)
    put_states(worlds, task, states)
    worlds._limiter = None  # the actions are those after the limits
    _, reward, terminated, _, info = worlds.step(tensor_of(actions))
    worlds.check()
    success = info.get('success', torch.zeros(num)).numpy()
    return (info['final_obs'].numpy(), reward.numpy(), terminated.numpy(), success), tuple(
        np.array(part) for part in cpu)


@pytest.mark.parametrize('name', PARITY)
def test_a_control_step_is_that_of_the_cpu_task(name):
    (obs, reward, terminated, success), cpu = one_step(name)
    off = np.abs(obs - cpu[0]).max(1)
    most, any_ = PARITY[name]
    assert np.quantile(off, MOST.get(name, 0.9)) < most
    assert off.max() < any_
    usual = off < most
    np.testing.assert_allclose(reward[usual], cpu[1][usual], rtol=0, atol=REWARD.get(name, 1e-4))
    np.testing.assert_array_equal(terminated[usual], cpu[2][usual])
    np.testing.assert_array_equal(success.astype(bool), cpu[3])


@pytest.mark.parametrize('reward', ['dense', 'sparse'])
def test_reward_and_success_are_judged_as_on_the_cpu(reward):
    """Half the goals lie where the gripper is, so both outcomes are seen."""
    task, states, actions, *_ = gather('fetch_reach', 24, reward=reward)
    worlds = make_worlds('fetch_reach', 24, reward=reward)
    worlds.reset(seed=0)
    rewards, successes = [], []
    for i, (state, action) in enumerate(zip(states, actions)):
        task.state = state
        if i % 2:
            state['goal'] = task.sim.data.site('robot0:grip').xpos + 0.02
            task.state = state
        _, value, _, _, info = task.step(action)
        rewards.append(value)
        successes.append(info['is_success'])
    put_states(worlds, task, states)
    _, reward, _, _, info = worlds.step(tensor_of(actions))
    assert 0 < sum(successes) < 24
    np.testing.assert_array_equal(info['success'].numpy(), successes)
    np.testing.assert_allclose(reward.numpy(), rewards, rtol=0, atol=2e-4)


@pytest.mark.parametrize('name', [
    'half_cheetah', 'hopper', 'fetch_reach', 'fetch_push', 'fetch_pick_and_place', 'hand_reach',
    'reach'])
def test_episodes_begin_as_on_the_cpu(name):
    """Means and spreads of first observations agree to five standard errors."""
    num = 150
    task = make_world(config_of(name))
    cpu = np.array([task.reset(seed=seed)[0] for seed in range(num)])
    obs = make_worlds(name, num).reset(seed=0)[0].numpy()
    error = cpu.std(0) / np.sqrt(num)
    assert (np.abs(obs.mean(0) - cpu.mean(0)) < 5 * np.sqrt(2) * error + 1e-5).all()
    assert (np.abs(obs.std(0) - cpu.std(0)) < 5 * error + 1e-5).all()


def returns(name, policy, num, steps, noise):
    """Return what episodes give, shape (num,), on the CPU and on the device."""
    world = make_world(config_of(name, noise=noise))
    sums = []
    for seed in range(num):
        obs, _ = world.reset(seed=seed)
        total = 0.0
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = world.step(policy(obs[None])[0])
            total += reward
        sums.append(total)
    worlds = make_worlds(name, num, noise=noise)
    obs, _ = worlds.reset(seed=0)
    totals = torch.zeros(num)
    for _ in range(steps):
        obs, reward, *_ = worlds.step(tensor_of(policy(obs.numpy())))
        totals += reward
    return np.array(sums), totals.numpy()


@pytest.mark.parametrize('name, policy, steps, noise', [
    ('half_cheetah', lambda obs: np.sin(obs[:, 2:8] * 7), 40, NoiseConfig(actuator=0.3)),
    ('fetch_reach', lambda obs: np.clip(10 * (obs[:, 6:] - obs[:, :3]), -1, 1), 20,
     NoiseConfig(actuator=0.3, command_latency_s=0.05)),
    ('reach', lambda obs: np.clip(obs[:, 15:16] - obs[:, 12:13], -1, 1) * np.ones(6), 20,
     NoiseConfig(actuator=0.3, backlash=0.1))])
def test_episodes_give_what_they_give_on_the_cpu(name, policy, steps, noise):
    cpu, device = returns(name, policy, 40, steps, noise)
    error = np.sqrt(cpu.var() / len(cpu) + device.var() / len(device))
    assert abs(cpu.mean() - device.mean()) < 4 * error
    assert 0.5 < cpu.std() / device.std() < 2.0


def test_the_ants_step_is_that_of_the_cpu_but_for_friction():
    """Without friction there is no pyramid to be turned: what is left is float32."""
    task, states, actions, *_ = gather('ant', 24)
    task.sim.model.geom_condim[:] = 1
    obs = []
    for state, action in zip(states, actions):
        task.state = state
        obs.append(task.step(action)[0])
    world = make_world(config_of('ant'))
    world.unwrapped.sim.model.geom_condim[:] = 1
    worlds = DeviceWorlds(world, 24, torch.device('cpu'))
    worlds.reset(seed=0)
    put_states(worlds, task, states)
    off = np.abs(worlds.step(tensor_of(actions))[4]['final_obs'].numpy() - np.array(obs)).max(1)
    assert np.quantile(off, 0.9) < 1e-3


def test_the_models_numbers_are_those_of_the_device():
    """The first test would pass with any number of substeps if none of them moved anything."""
    worlds = make_worlds('half_cheetah', 2)
    worlds.reset(seed=0)
    worlds.step(torch.ones(2, 6))
    model = make_world(config_of('half_cheetah')).unwrapped.sim.model
    assert worlds.physics.data['time'].tolist() == pytest.approx([5 * model.opt.timestep] * 2)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
