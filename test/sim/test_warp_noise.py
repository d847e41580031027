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

"""Noise on a device: to the sample that of the CPU where nothing is drawn, else by its law."""

import copy

from device import config_of, make_worlds
import mujoco
import numpy as np
import pytest
import torch

from dpg_robot.sim.disturbances import PushConfig, RandomizeConfig, ScaleConfig
from dpg_robot.sim.noise import Noise, NoiseConfig
from dpg_robot.sim.warp.bodies import DevicePushes
from dpg_robot.sim.warp.noise import (
    DeviceCommandNoise,
    DeviceMemory,
    DeviceObservationNoise,
    Draws,
)
from dpg_robot.sim.world import make_world, WorldConfig

NUM, CPU = 20000, torch.device('cpu')
SPEC = make_world(config_of('half_cheetah')).policy_spec  # 20 Hz, six actions
ANT = make_world(config_of('ant')).policy_spec
ALL_OF = torch.ones(NUM, dtype=torch.bool)
HALF = torch.arange(6) % 2 == 0


def command_noise(num=NUM, **config):
    """Return noise on the commands of worlds that have begun, its memory and its draws."""
    memory, draws = DeviceMemory(num, CPU), Draws(num, CPU)
    draws.generator.manual_seed(0)
    noise = DeviceCommandNoise(NoiseConfig(**config), SPEC, memory)
    memory.begin(torch.ones(num, dtype=torch.bool), draws)
    noise.hold(torch.ones(num, dtype=torch.bool), torch.zeros(num, 6))
    return noise, memory, draws


def executed(command, steps=1, **config):
    """Return what actuators do in some steps of one command, shape (steps, NUM, 6)."""
    noise, _, draws = command_noise(**config)
    return torch.stack([noise(torch.full((NUM, 6), command), draws) for _ in range(steps)])


@pytest.mark.parametrize('config', [
    {'dead_zone': 0.1}, {'backlash': 0.3}, {'command_latency_s': 0.05},
    {'command_latency_s': 0.13}, {'dead_zone': 0.1, 'backlash': 0.3, 'command_latency_s': 0.02}])
def test_commands_without_chance_are_those_of_the_cpu(config):
    rng, num = np.random.default_rng(0), 4
    commands, held = rng.uniform(-1.5, 1.5, (30, num, 6)), rng.uniform(-1, 1, (num, 6))
    cpu = Noise(NoiseConfig(**config), SPEC, num)
    for row in range(num):
        cpu.begin(row, seed=row)
        cpu.hold(row, held[row])
    noise, _, draws = command_noise(num, **config)
    noise.hold(torch.ones(num, dtype=torch.bool), torch.tensor(held).float())
    for command in commands:
        np.testing.assert_allclose(noise(torch.tensor(command).float(), draws).numpy(),
                                   cpu.act(command), rtol=0, atol=2e-6)


@pytest.mark.parametrize('latency', [
    {'joint_position': 0.12}, {'orientation': 0.07, 'joint_position': 0.2, 'velocity': 0.05}])
def test_late_observations_are_those_of_the_cpu(latency):
    """Angles jump by full turns, and quaternions change their sign."""
    config = NoiseConfig(observation_latency_s=latency)
    cpu, memory, draws = Noise(config, ANT, 3), DeviceMemory(3, CPU), Draws(3, CPU)
    noise, rng = DeviceObservationNoise(config, ANT, memory), np.random.default_rng(0)
    done = torch.ones(3, dtype=torch.bool)
    memory.begin(done, draws)
    for row in range(3):
        cpu.begin(row, seed=row)
    for step in range(20):
        obs = rng.uniform(-np.pi, np.pi, (3, ANT.obs_dim))
        obs[:, 1:5] /= np.linalg.norm(obs[:, 1:5], axis=1, keepdims=True)
        if step == 0:
            cpu.observe(obs.copy(), first=True)
            noise.first(torch.tensor(obs).float(), done, draws)
            continue
        np.testing.assert_allclose(noise(torch.tensor(obs).float(), draws).numpy(),
                                   cpu.observe(obs.copy()), rtol=0, atol=1e-5)


def correlation(a, b):
    """Return the correlation of two tensors."""
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


def test_additive_noise_is_white():
    first, second = executed(0.2, 2, actuator=0.1)
    assert float(first.mean()) == pytest.approx(0.2, abs=2e-3)
    assert float(first.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(correlation(first, second)) < 0.02


def test_noise_with_a_time_constant_keeps_its_spread_and_forgets_in_time():
    first, second = executed(0.0, 2, actuator=0.1, actuator_time_constant_s=0.1)
    assert float(first.std()) == pytest.approx(0.1, rel=0.02)
    assert float(second.std()) == pytest.approx(0.1, rel=0.02)
    assert correlation(first, second) == pytest.approx(np.exp(-0.5), abs=0.02)


def test_relative_noise_is_a_part_of_the_command():
    first, second = executed(-0.5, 2, actuator_relative=0.2,
                             actuator_relative_time_constant_s=0.05)
    assert float(first.std()) == pytest.approx(0.1, rel=0.02)
    assert correlation(first, second) == pytest.approx(np.exp(-1.0), abs=0.02)


def test_what_is_carried_out_stays_within_full_scale():
    assert float(executed(3.0, actuator=0.5).max()) == 1.0


def test_a_bias_lasts_an_episode():
    noise, memory, draws = command_noise(actuator_bias=0.05)
    command, done = torch.zeros(NUM, 6), torch.arange(NUM) % 2 == 0
    before = noise(command, draws)
    assert float(before.std()) == pytest.approx(0.05, rel=0.02)
    memory.begin(done, draws)
    after = noise(command, draws)
    assert torch.equal(before[~done], after[~done])
    assert (before[done] != after[done]).all(1).float().mean() > 0.99


def test_a_lost_command_leaves_the_one_before():
    path = executed(0.5, 2, command_loss=0.3)
    assert set(path.unique().tolist()) == {0.0, 0.5}
    assert float((path[0] == 0).float().mean()) == pytest.approx(0.3, abs=0.015)
    assert float((path[1] == 0).float().mean()) == pytest.approx(0.09, abs=0.01)
    assert torch.equal(path[0], path[0][:, :1].expand(-1, 6))  # a command is lost as a whole


@pytest.mark.parametrize('key, lasts', [
    ('command_latency_spread_s', True), ('command_jitter_s', False)])
def test_latency_that_is_drawn_is_uniform(key, lasts):
    """Of a command that begins at 1, a latency below a period leaves 1 - latency at first."""
    noise, _, draws = command_noise(**{key: 0.05})
    first = noise(torch.ones(NUM, 6), draws)[:, 0]
    assert float(first.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(first.std()) == pytest.approx(np.sqrt(1 / 12), abs=0.01)
    for _ in range(3):
        noise(torch.zeros(NUM, 6), draws)
    again = noise(torch.ones(NUM, 6), draws)[:, 0]
    assert torch.equal(first, again) == lasts


def test_observations_are_biased_noisy_and_lost_by_term():
    config = NoiseConfig(observation={'height': 0.3}, observation_bias={'joint_position': 0.2},
                         observation_loss={'joint_velocity': 0.25})
    memory, draws = DeviceMemory(NUM, CPU), Draws(NUM, CPU)
    draws.generator.manual_seed(0)
    noise = DeviceObservationNoise(config, SPEC, memory)
    memory.begin(ALL_OF, draws)
    first = noise.first(torch.zeros(NUM, 17), ALL_OF, draws)
    second = noise(torch.ones(NUM, 17), draws)
    place = {term.name: SPEC.places_of([term.name]) for term in SPEC.observation}
    assert float(first[:, place['height']].std()) == pytest.approx(0.3, rel=0.03)
    bias = first[:, place['joint_position']]
    assert float(bias.std()) == pytest.approx(0.2, rel=0.03)
    torch.testing.assert_close(second[:, place['joint_position']] - 1, bias)
    seen = second[:, place['joint_velocity']]
    assert float((seen == 0).float().mean()) == pytest.approx(0.25, abs=0.015)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert torch.equal(second[:, place['forward_velocity']], torch.ones(NUM, 1))


@pytest.mark.parametrize('rate_hz, duration_s', [(2.0, 0.1), (50.0, 0.03)])
def test_pushes_follow_their_law(rate_hz, duration_s):
    """A body is pushed unless the last duration saw no push begin: 1 - exp(-rate duration)."""
    model = make_world(config_of('half_cheetah')).unwrapped.sim.model
    memory, draws = DeviceMemory(2000, CPU), Draws(2000, CPU)
    draws.generator.manual_seed(0)

    class Physics:
        device, data = CPU, {'xfrc_applied': torch.zeros(2000, model.nbody, 6)}

    config = {'torso': PushConfig(rate_hz, (5.0, 20.0), duration_s, ('x', 'z'))}
    pushes = DevicePushes(model, config, 0.001, Physics, memory)
    memory.begin(torch.ones(2000, dtype=torch.bool), draws)
    sizes, along = [], []
    for step in range(600):
        pushes.step(draws)
        force = Physics.data['xfrc_applied'][:, model.body('torso').id]
        if step > 300:
            sizes.append(force[:, [0, 2]].norm(dim=1))
            along.append(force[:, 0])
    assert not force[:, [1, 3, 4, 5]].any()
    sizes, along = torch.stack(sizes), torch.stack(along)
    pushed = 1 - np.exp(-rate_hz * duration_s)
    assert float(sizes.mean()) == pytest.approx(12.5 * pushed, rel=0.05)
    assert float((along ** 2).mean() / (sizes ** 2).mean()) == pytest.approx(0.5, abs=0.05)
    assert abs(float(along.mean())) < 0.05 * 12.5


def test_the_impulse_of_a_push_is_right_in_a_long_period():
    """With periods of 50 ms, several pushes begin in one and each is averaged over it."""
    model = make_world(config_of('half_cheetah')).unwrapped.sim.model
    means = []
    for dt in (0.001, 0.05):
        memory, draws = DeviceMemory(4000, CPU), Draws(4000, CPU)
        draws.generator.manual_seed(0)

        class Physics:
            device, data = CPU, {'xfrc_applied': torch.zeros(4000, model.nbody, 6)}

        pushes = DevicePushes(model, {'torso': PushConfig(60.0, (10.0, 10.0), 0.02, ('x',))}, dt,
                              Physics, memory)
        memory.begin(torch.ones(4000, dtype=torch.bool), draws)
        impulse = torch.zeros(4000)
        for _ in range(round(0.2 / dt)):
            pushes.step(draws)
            impulse += Physics.data['xfrc_applied'][:, 1, 0] * dt
        means.append(float(impulse.square().mean()))
    assert means[0] == pytest.approx(means[1], rel=0.1)


RANDOM = {
    'half_cheetah': RandomizeConfig(
        friction={'floor': (0.2, 0.6)}, gravity_m_s2=(8.0, 11.0),
        scale=ScaleConfig((0.5, 2.0), (), (0.5, 2.0), (0.8, 1.2))),
    'reach': RandomizeConfig(gravity_m_s2=(9.0, 10.0), scale=ScaleConfig(
        (0.5, 2.0), (0.5, 2.0), (0.5, 2.0), (0.8, 1.2)))}


def model_of(nominal, fields, row):
    """Return the CPU's model with the numbers that one world has drawn."""
    model = copy.copy(nominal)
    mass = fields['body_mass'][row].numpy()
    ratio = np.divide(mass, model.body_mass, out=np.ones_like(model.body_mass),
                      where=model.body_mass > 0)
    weight = -float(fields['gravity'][row, 2]) / -model.opt.gravity[2]
    gain = fields['actuator_gainprm'][row, :, 0].numpy() / model.actuator_gainprm[:, 0]
    model.body_mass[:] = mass
    model.body_inertia[:] *= ratio[:, None]
    model.body_gravcomp[:] /= ratio * weight  # what a drive knows of is the nominal weight
    model.actuator_gainprm[:, 0] *= gain
    model.actuator_biasprm[:, 1:3] *= gain[:, None]
    model.dof_damping[:] = fields['dof_damping'][row].numpy()
    model.geom_friction[:] = fields['geom_friction'][row].numpy()
    model.opt.gravity[2] *= weight
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


@pytest.mark.parametrize('name', RANDOM)
def test_each_world_has_a_model_of_its_own_and_mujoco_agrees(name):
    """The CPU's model with the same numbers moves as that of the device."""
    worlds = make_worlds(name, 6, noise=NoiseConfig(randomize=RANDOM[name]))
    worlds.reset(seed=0)
    data, fields = worlds.physics.data, worlds.physics.model
    masses = fields['body_mass'].clone()
    assert len(masses[:, 1].unique()) == 6
    start = {key: data[key].numpy().astype(float) for key in ('qpos', 'qvel')}
    sim, action = make_world(config_of(name)).unwrapped.sim, torch.full((6, 6), 0.7)
    worlds.step(action)
    for row in range(6):
        model = model_of(sim.model, fields, row)
        cpu = mujoco.MjData(model)
        for key, values in start.items():
            getattr(cpu, key)[:] = values[row]
        cpu.ctrl[:] = data['ctrl'][row].numpy()
        mujoco.mj_step(model, cpu, nstep=round(sim.dt / model.opt.timestep))
        np.testing.assert_allclose(data['qvel'][row], cpu.qvel, rtol=0, atol=2e-3)
        nominal = mujoco.MjData(sim.model)
        for key, values in start.items():
            getattr(nominal, key)[:] = values[row]
        nominal.ctrl[:] = cpu.ctrl
        mujoco.mj_step(sim.model, nominal, nstep=round(sim.dt / model.opt.timestep))
        assert np.abs(nominal.qvel - cpu.qvel).max() > 1e-2  # or nothing would be compared
    worlds.steps[2] = 10 ** 6
    worlds.step(action)
    assert (fields['body_mass'] != masses).any(1).tolist() == [row == 2 for row in range(6)]


def test_drawn_models_keep_to_their_ranges_and_their_seed():
    worlds = make_worlds('half_cheetah', 3, noise=NoiseConfig(randomize=RANDOM['half_cheetah']))
    pool = worlds._pool.fields
    gravity, floor = -pool['gravity'][:, 2], pool['geom_friction'][:, 0, 0]
    assert 8.0 <= gravity.min() < 8.01 and 10.99 < gravity.max() <= 11.0
    assert 0.2 <= floor.min() < 0.21 and 0.59 < floor.max() <= 0.6
    worlds.reset(seed=5)
    first = pool['body_mass'].clone()
    worlds.reset(seed=6)
    assert not torch.equal(first, pool['body_mass'])
    worlds.reset(seed=5)
    assert torch.equal(first, pool['body_mass'])


def test_a_range_of_one_value_is_that_value():
    noise = NoiseConfig(randomize=RandomizeConfig(
        gravity_m_s2=(1.62, 1.62), mass_kg={'torso': (20.0, 20.0), 'foot': (2.0, 3.0)}))
    worlds, cpu = make_worlds('hopper', 2, noise=noise), make_world(WorldConfig(
        'hopper', noise=noise))
    worlds.reset(seed=0), cpu.reset(seed=0)
    model, pool = cpu.unwrapped.sim.model, worlds._pool.fields
    torso = model.body('torso').id
    assert (model.opt.gravity[2], model.body_mass[torso]) == (-1.62, 20.0)
    np.testing.assert_allclose(pool['gravity'][:, 2], -1.62)
    np.testing.assert_allclose(pool['body_mass'][:, torso], 20.0)
    np.testing.assert_allclose(worlds.physics.model['body_mass'][:, torso], 20.0)
    assert 'geom_friction' not in pool  # what is as the model has it is not copied


@pytest.mark.parametrize('config', [
    {'command_latency_s': 0.1}, {'command_loss': 0.5}, {'backlash': 0.4}], ids=str)
def test_a_new_episode_leaves_the_commands_of_other_worlds(config):
    def path(is_begun):
        noise, memory, draws = command_noise(6, **config)
        noise(torch.full((6, 6), 0.6), draws)
        if is_begun:
            state = draws.generator.get_state()
            memory.begin(HALF, draws)
            draws.generator.set_state(state)
            noise.hold(HALF, torch.full((6, 6), -0.9))
        return torch.stack([noise(torch.full((6, 6), 0.5), draws) for _ in range(3)], 1)
    ours, theirs = path(False), path(True)
    assert torch.equal(ours[~HALF], theirs[~HALF]) and not torch.equal(ours[HALF], theirs[HALF])


@pytest.mark.parametrize('config', [
    {'observation_latency_s': {'height': 0.1}}, {'observation_loss': {'height': 1.0}}], ids=str)
def test_a_new_episode_leaves_what_other_worlds_are_shown(config):
    memory, draws = DeviceMemory(6, CPU), Draws(6, CPU)
    noise = DeviceObservationNoise(NoiseConfig(**config), SPEC, memory)
    memory.begin(torch.ones(6, dtype=torch.bool), draws)
    noise.first(torch.ones(6, 17), torch.ones(6, dtype=torch.bool), draws)
    memory.begin(HALF, draws)
    noise.first(torch.full((6, 17), 5.0), HALF, draws)
    seen = noise(torch.full((6, 17), 9.0), draws)[:, SPEC.places_of(['height'])[0]]
    assert seen.tolist() == [5.0, 1.0] * 3


def test_a_fixed_latency_adds_to_a_spread():
    noise, _, draws = command_noise(command_latency_s=0.05, command_latency_spread_s=0.05)
    assert not noise(torch.ones(NUM, 6), draws).any()  # a period late at least
    second = noise(torch.ones(NUM, 6), draws)
    assert float(second.mean()) == pytest.approx(0.5, abs=0.01)
