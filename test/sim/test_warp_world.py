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

"""Worlds on a device keep to their interface: episodes, seeds, states, errors, no waiting."""

import contextlib
import dataclasses
import gc
import sys
from types import SimpleNamespace
from unittest import mock

from device import make_worlds
import mujoco
from mujoco_warp._src.types import OverflowType
import numpy as np
import pytest
import torch
from waiting import HostTensors, never_waiting
import warp

from dpg_robot.contract.strict import SpecError
from dpg_robot.memory import is_out_of_memory
from dpg_robot.sim.disturbances import PushConfig, RandomizeConfig, ScaleConfig
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.warp import physics as module
from dpg_robot.sim.warp.locomotion import RunnerOnDevice
from dpg_robot.sim.warp.worlds import ON_DEVICE
from dpg_robot.sim.world import make_device_vector, make_world, WorldConfig

EVERYTHING = NoiseConfig(
    actuator=0.1, actuator_time_constant_s=0.1, actuator_relative=0.1, actuator_bias=0.05,
    dead_zone=0.02, backlash=0.02, command_latency_s=0.01, command_latency_spread_s=0.05,
    command_jitter_s=0.02, command_loss=0.1, observation={'joint_velocity': 0.1},
    observation_bias={'height': 0.01}, observation_latency_s={'joint_position': 0.06},
    observation_loss={'height': 0.2},
    pushes={'torso': PushConfig(2.0, (5.0, 20.0), 0.1, ('x', 'z'))},
    randomize=RandomizeConfig(friction={'floor': (0.2, 0.6)}, gravity_m_s2=(9.0, 10.0),
                              scale=ScaleConfig(mass=(0.8, 1.2), damping=(0.5, 2.0))))


@pytest.fixture(scope='module')
def noisy():
    """Return worlds with every kind of noise."""
    worlds = make_worlds('half_cheetah', 5, noise=EVERYTHING)
    yield worlds
    worlds.close()


def run(worlds, steps, seed=0):
    """Return the observations of some steps with random actions."""
    generator = torch.Generator().manual_seed(seed)
    return [worlds.step(2 * torch.rand(worlds.num_envs, worlds.policy_spec.action_dim,
                                       generator=generator) - 1)[0] for _ in range(steps)]


def test_everything_is_a_tensor_of_the_right_shape(noisy):
    obs, info = noisy.reset(seed=0)
    assert obs.shape == (5, 17) and obs.dtype == torch.float32 and info == {}
    obs, reward, terminated, truncated, info = noisy.step(torch.zeros(5, 6))
    assert obs.shape == info['final_obs'].shape == (5, 17)
    assert reward.shape == terminated.shape == truncated.shape == (5,)
    assert terminated.dtype == truncated.dtype == torch.bool
    assert info['executed_action'].shape == (5, 6) and 'success' not in info
    assert {tensor.dtype for tensor in (obs, reward, *info.values())} == {torch.float32}


def test_worlds_describe_themselves_as_the_cpu_world_does():
    worlds, world = make_worlds('fetch_reach', 2), make_world(WorldConfig('fetch_reach'))
    assert worlds.policy_spec == world.policy_spec
    assert worlds.achieved_goal == world.achieved_goal == (0, 1, 2)
    assert worlds.single_observation_space == world.observation_space
    assert worlds.single_action_space == world.action_space
    assert worlds.num_envs == 2 and worlds.device == torch.device('cpu')


def test_a_seed_makes_everything_repeatable(noisy):
    first, _ = noisy.reset(seed=3)
    path = run(noisy, 4)
    again, _ = noisy.reset(seed=3)
    assert torch.equal(first, again)
    assert all(map(torch.equal, path, run(noisy, 4)))
    other, _ = noisy.reset(seed=4)
    assert not torch.equal(first, other)
    unseeded, _ = noisy.reset()
    assert not torch.equal(other, unseeded)


def test_a_state_restores_the_future_to_the_bit(noisy):
    noisy.reset(seed=0)
    run(noisy, 3)
    state = noisy.get_state()
    path = run(noisy, 5)
    noisy.reset(seed=9)
    noisy.set_state(state)
    assert all(map(torch.equal, path, run(noisy, 5)))
    fresh = make_worlds('half_cheetah', 5, noise=EVERYTHING)
    fresh.set_state(state)
    assert all(map(torch.equal, path, run(fresh, 5)))


@pytest.mark.parametrize('name', [
    'fetch_reach', 'fetch_pick_and_place', 'reach', 'track', 'reacher', 'hand_reach', 'ant'])
def test_a_state_restores_other_tasks_too(name):
    worlds = make_worlds(name, 2, noise=NoiseConfig(actuator=0.1))
    worlds.reset(seed=0)
    run(worlds, 2)
    state = worlds.get_state()
    path = run(worlds, 3)
    worlds.set_state(state)
    assert all(map(torch.equal, path, run(worlds, 3)))


def test_an_episode_that_ends_is_reset_and_its_last_observation_kept():
    worlds = make_worlds('fetch_reach', 3)
    worlds.reset(seed=0)
    worlds.steps.copy_(torch.tensor([49, 10, 48]))
    action = torch.full((3, 3), 0.5)
    goals = worlds.task.goal.clone()
    obs, _, terminated, truncated, info = worlds.step(action)
    assert truncated.tolist() == [True, False, False] and not terminated.any()
    assert torch.equal(obs[1:], info['final_obs'][1:])
    assert torch.equal(info['final_obs'][:, 6:], goals)
    assert not torch.equal(obs[0, 6:], goals[0])
    np.testing.assert_allclose(obs[0, :3], worlds.task.middle, atol=1e-5)
    assert (info['final_obs'][0, :3] - worlds.task.middle).norm() > 0.01
    assert worlds.steps.tolist() == [0, 11, 49]
    _, _, _, truncated, _ = worlds.step(action)
    assert truncated.tolist() == [False, False, True]


def test_a_world_that_falls_is_terminated_and_only_this_one():
    worlds = make_worlds('hopper', 3)
    worlds.reset(seed=0)
    worlds.physics.data['qpos'][1, 1] = 0.5  # too low to stand
    obs, reward, terminated, truncated, info = worlds.step(torch.zeros(3, 3))
    assert terminated.tolist() == [False, True, False] and not truncated.any()
    assert info['final_obs'][1, 0] < 0.6 < 1.2 < obs[1, 0]
    assert reward[1] < 0.5 < reward[0]  # no reward for standing
    assert worlds.steps.tolist() == [1, 0, 1]
    assert worlds.physics.data['qvel'][1].abs().max() < 0.01


@pytest.mark.parametrize('name', ON_DEVICE)
def test_a_step_never_waits_for_the_device(name, noisy):
    worlds = noisy if name == 'half_cheetah' else make_worlds(
        name, 2, noise=NoiseConfig(actuator=0.1, command_latency_s=0.03, command_loss=0.1))
    worlds.reset(seed=0)
    action = torch.zeros(worlds.num_envs, worlds.policy_spec.action_dim)
    worlds.step(action)  # kernels are compiled
    with never_waiting():
        worlds.step(action)


@pytest.mark.parametrize('name', ON_DEVICE)
def test_all_that_a_step_takes_is_on_the_device(name, monkeypatch):
    """Shown without a GPU: nothing is made without being told where, and then taken in a step."""
    own = warp.to_torch

    def shared(array):  # on a GPU it is told by the array
        with torch._C.DisableTorchFunction():
            return own(array)
    monkeypatch.setattr(warp, 'to_torch', shared)
    noise = EVERYTHING if name == 'half_cheetah' else dataclasses.replace(
        EVERYTHING, observation={}, observation_bias={}, observation_latency_s={},
        observation_loss={}, pushes={}, randomize=RandomizeConfig())
    with HostTensors() as host:
        worlds = make_worlds(name, 2, noise=noise)
        worlds.reset(seed=0)
        action = torch.zeros(2, worlds.policy_spec.action_dim, device=worlds.device)
        worlds.step(action)  # kernels are compiled
        # Where the device tells of trouble, and never taken from there.
        del host.found[worlds._told]
        host.refused = True
        worlds.steps.fill_(worlds._episode_steps - 1)
        _, _, _, truncated, _ = worlds.step(action)  # episodes begin
    assert truncated.all()


def test_objects_never_begin_under_the_gripper():
    worlds = make_worlds('fetch_push', 200)
    obs, _ = worlds.reset(seed=0)
    apart = (obs[:, 6:8] - worlds.task.middle[:2]).norm(dim=1)
    assert 0.1 <= apart.min() and apart.max() <= 0.15 * 2 ** 0.5 + 1e-5


@pytest.mark.parametrize('break_it, message', [
    (lambda worlds, action: action.fill_(torch.nan),
     'an action for half_cheetah must be finite, got one that is not'),
    (lambda worlds, action: worlds.physics.data['qvel'].fill_(torch.inf),
     'the simulation of half_cheetah must stay finite, but its physics diverged')])
def test_what_goes_wrong_is_told_with_the_next_step(break_it, message):
    worlds, action = make_worlds('half_cheetah', 2), torch.zeros(2, 6)
    worlds.reset(seed=0)
    break_it(worlds, action)
    worlds.step(action)
    with pytest.raises(SpecError, match=message):
        worlds.step(torch.zeros(2, 6))
    worlds.reset(seed=0)
    worlds.step(torch.zeros(2, 6))
    worlds.check()


def test_too_many_contacts_are_told(monkeypatch):
    monkeypatch.setattr(RunnerOnDevice, 'contacts', 1)
    worlds = make_worlds('half_cheetah', 2)
    worlds.reset(seed=0)
    worlds.physics.data['qpos'][:, 1] = -0.3  # deep in the floor
    worlds.step(torch.zeros(2, 6))
    with pytest.raises(SpecError, match=r'than there is room for on the device \(1\)'):
        worlds.check()
    worlds.reset(seed=0)
    worlds.physics.data['qpos'][:, 1] = 1.0  # nothing touches the floor
    worlds.step(torch.zeros(2, 6))
    worlds.check()


@pytest.mark.parametrize('config, num_envs, device, message', [
    (WorldConfig('half_cheetah'), 0, 'cpu', 'num_envs must be at least 1, got 0'),
    (WorldConfig('adroit_door'), 1, 'cpu',
     'world.task must be one with a version for devices .*half_cheetah.*, got adroit_door'),
    (WorldConfig('half_cheetah'), 1, 'tpu', 'device must be cpu or cuda, got tpu'),
    (WorldConfig('half_cheetah'), 1, 'mps', 'device must be cpu or cuda, got mps'),
    (WorldConfig('half_cheetah', noise=NoiseConfig(observation={'hight': 1.0})), 1, 'cpu',
     'noise.observation.hight is not an observation term of half_cheetah'),
    (WorldConfig('half_cheetah', noise=NoiseConfig(
        pushes={'head': PushConfig(1.0, (1.0, 2.0), 0.1)})), 1, 'cpu',
     'noise.pushes must name a body of half_cheetah')])
def test_a_mistake_is_answered_in_one_line(config, num_envs, device, message):
    with pytest.raises(SpecError, match=message):
        make_device_vector(config, num_envs, device)


def test_a_device_without_a_memory_pool_is_refused(monkeypatch):
    gpu = SimpleNamespace(is_cuda=True, is_mempool_enabled=False)
    monkeypatch.setattr(module.warp, 'device_from_torch', lambda device: gpu)
    with pytest.raises(SpecError, match='device must have a memory pool, from which graphs '
                       'allocate, got cpu without one'):
        make_worlds('half_cheetah', 2)


@pytest.mark.parametrize('error, kind, message', [
    (RuntimeError('Failed to allocate 9 bytes on device cuda:0'), SpecError,
     'num_envs must fit into the memory of the device, got 2: Failed to allocate 9 bytes'),
    (torch.OutOfMemoryError('CUDA out of memory.'), SpecError, 'got 2: CUDA out of memory'),
    (NotImplementedError('no memory of that'), SpecError, 'must be one that mujoco_warp takes'),
    (RuntimeError('an illegal memory access'), RuntimeError, 'an illegal memory access')])
def test_too_little_memory_is_told(monkeypatch, error, kind, message):
    monkeypatch.setattr(module.mujoco_warp, 'make_data', mock.Mock(side_effect=error))
    with pytest.raises(kind, match=message):
        make_worlds('half_cheetah', 2)


def test_a_recording_leaves_the_state_and_collects_no_garbage(monkeypatch):
    worlds, seen = make_worlds('half_cheetah', 2), []
    worlds.reset(seed=0)
    before = {name: tensor.clone() for name, tensor in worlds.physics.data.items()}
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(module.warp, 'synchronize_device', lambda device: None)
    monkeypatch.setattr(module.warp, 'ScopedCapture', lambda device: contextlib.nullcontext(
        SimpleNamespace(graph='graph')))

    def step():
        seen.append(gc.isenabled())
        worlds.physics._one_step()
        assert not torch.equal(worlds.physics.data['qpos'], before['qpos'])
    assert worlds.physics._capture(step) == 'graph'
    assert seen == [True, False] and gc.isenabled()
    assert all(torch.equal(before[name], worlds.physics.data[name]) for name in before)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_gpu_that_is_missing_is_named():
    with pytest.raises(SpecError, match='no NVIDIA GPU that torch can use; got cuda'):
        make_device_vector(WorldConfig('half_cheetah'), 1)


def test_warp_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, 'dpg_robot.sim.warp.worlds')
    monkeypatch.delitem(sys.modules, 'dpg_robot.sim.warp.physics')
    monkeypatch.setitem(sys.modules, 'mujoco_warp', None)
    with pytest.raises(SpecError, match='mujoco-warp, warp-lang and torch must be installed'):
        make_device_vector(WorldConfig('half_cheetah'), 1, 'cpu')


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a GPU'))])
def test_two_control_periods_are_those_of_mujoco(device):
    """On a GPU the graph of a physics step is captured, and launched ten times."""
    worlds = make_device_vector(WorldConfig('half_cheetah'), 8, device)
    worlds.reset(seed=0)
    state = {name: torch.zeros_like(tensor) for name, tensor in worlds.get_state().items()
             if name.startswith('physics/')}
    heights, commands = np.linspace(-0.1, 0.3, 8), np.linspace(-1, 1, 48).reshape(8, 6)
    state['physics/qpos'][:, 1] = torch.tensor(heights)
    worlds.set_state(worlds.get_state() | state)
    actions = torch.tensor(commands, dtype=torch.float32, device=worlds.device)
    seen = [worlds.step(actions)[0].cpu().numpy().copy() for _ in range(2)]
    model = worlds.task.sim.model
    for world, (height, command) in enumerate(zip(heights, commands)):
        data = mujoco.MjData(model)
        data.qpos[1], data.ctrl[:] = height, command
        for obs in seen:
            mujoco.mj_step(model, data, worlds.physics.sim_steps)
            np.testing.assert_allclose(
                obs[world], [*data.qpos[1:], *data.qvel], rtol=0, atol=1e-2)


def test_a_contact_that_is_resolved_less_well_is_no_lack_of_room():
    physics = make_device_vector(WorldConfig('reacher'), 4, 'cpu').physics
    flags = physics.view('overflow')
    flags.copy_(torch.tensor([0, 1 << 8, 1, 1 | 1 << 8]))
    assert OverflowType.EPA_HORIZON == 1 << 8
    assert physics.overflow().tolist() == [False, False, True, True]


@pytest.mark.parametrize('error, is_it', [
    (MemoryError(), True),
    (RuntimeError('Warp CUDA error 2: out of memory'), True),
    (RuntimeError('Failed to allocate 100 bytes on device cuda:0'), True),
    (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling'), True),
    (RuntimeError('graph contains an unsupported operation (memory allocation)'), False)])
def test_want_of_memory_is_told_from_other_failures(error, is_it):
    assert is_out_of_memory(error) is is_it
