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

"""Pushes, and models that differ by episode: their statistics, and what MuJoCo makes of them."""

from types import SimpleNamespace

import gymnasium
import mujoco
import numpy as np
import pytest

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.disturbances import (
    PushConfig,
    Pushes,
    RandomizeConfig,
    RandomModel,
    ScaleConfig,
)
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_world, WorldConfig

DT = 0.05
MODEL = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="base"/>
    <body name="ball"><freejoint name="free"/><geom name="shell" size="0.1" mass="2"/></body>
    <body name="arm" pos="1 0 0">
      <joint name="elbow" damping="0.5"/>
      <geom type="capsule" size="0.02" fromto="0 0 0 0.3 0 0" density="500" friction="0.8"/>
    </body>
  </worldbody>
  <actuator>
    <position name="servo" joint="elbow" kp="10" kv="2"/>
    <motor joint="elbow" gear="3"/>
  </actuator>
</mujoco>
"""


def test_constants_do_not_depend_on_where_the_last_episode_put_the_door():
    env = make_world(WorldConfig('adroit_door', noise=NoiseConfig(randomize=RandomizeConfig(
        scale=ScaleConfig(friction=(0.8, 1.2))))))
    model = env.unwrapped.sim.model

    def constants(seed):
        env.reset(seed=seed)
        return [getattr(model, name).copy() for name in (
            'body_pos', 'dof_M0', 'dof_invweight0', 'body_invweight0', 'geom_friction')]
    first = constants(5)
    for seed in range(6, 12):
        assert not np.array_equal(constants(seed)[0], first[0])
        for now, then in zip(constants(5), first):
            np.testing.assert_array_equal(now, then)


@pytest.fixture
def sim():
    model = mujoco.MjModel.from_xml_string(MODEL)
    return SimpleNamespace(model=model, data=mujoco.MjData(model))


def forces(sim, num, seed=0, **push):
    """Return the force of each control period, shape (num, 3)."""
    pushes = Pushes(sim, 'toy', {'ball': PushConfig(**push)}, DT)
    rng, found = np.random.default_rng(seed), []
    pushes.begin(rng)
    for _ in range(num):
        pushes.step(rng)
        found.append(sim.data.xfrc_applied[sim.model.body('ball').id].copy())
    found = np.array(found)
    assert (found[:, 3:] == 0).all()
    return found[:, :3]


def test_pushes_are_poisson_and_give_their_impulse(sim):
    """Short pushes rarely meet: each gives force times duration, in one period or two."""
    rate, force, duration, num = 2.0, 40.0, 0.01, 40_000
    found = forces(sim, num, rate_hz=rate, force_n=(force, force), duration_s=duration)
    impulse = np.linalg.norm(found, axis=1) * DT
    expected = rate * num * DT  # number of pushes, 4000
    # A push that another one ends, or a sum of two in one period, takes about 1 % away.
    assert impulse.sum() / (force * duration) == pytest.approx(
        expected, abs=4.5 * expected ** 0.5 + 0.02 * expected)
    # Counted in windows of 1 s, the variance of a Poisson process is its mean.
    windows = impulse.reshape(-1, 20).sum(1) / (force * duration)
    assert windows.var() / windows.mean() == pytest.approx(1.0, abs=4.5 * (2 / 2000) ** 0.5)
    # A whole impulse in one period: of one push, not too late in it, and none before that lasts.
    share = rate * (DT - duration) * np.exp(-rate * (DT + duration))
    whole = np.isclose(impulse, force * duration).mean()
    assert abs(whole - share) < 4.5 * (share * (1 - share) / num) ** 0.5


def test_directions_are_uniform_on_the_sphere_or_in_a_plane(sim):
    found = forces(sim, 20_000, rate_hz=5.0, force_n=(1.0, 1.0), duration_s=0.01)
    direction = found[np.linalg.norm(found, axis=1) > 1e-12]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    n = len(direction)
    assert n > 3000
    # On a sphere each element is uniform in -1 to 1.
    assert (np.abs(direction.mean(0)) < 4.5 / (3 * n) ** 0.5).all()
    assert (np.abs((direction ** 2).mean(0) - 1 / 3) < 4.5 * (4 / 45 / n) ** 0.5).all()
    flat = forces(sim, 500, rate_hz=5.0, force_n=(3.0, 3.0), duration_s=0.5, axes=('x', 'y'))
    assert (flat[:, 2] == 0).all() and (np.abs(flat[:, :2]).max(0) > 1).all()


def test_force_is_uniform_in_its_range_and_lasts_its_duration(sim):
    # Rare and long: nearly all periods of a push lie between its ends.
    found = forces(sim, 60_000, rate_hz=0.5, force_n=(20.0, 60.0), duration_s=0.2)
    size = np.linalg.norm(found, axis=1)
    assert size.max() <= 60 + 1e-9
    # Time under a push: those that the next one ends are shorter, 1 - exp(-rate duration) of it.
    share = (1 - np.exp(-0.5 * 0.2))
    assert size.sum() / 40.0 / len(size) == pytest.approx(share, rel=0.08)
    inner = (size[1:-1] == size[:-2]) & (size[1:-1] > 0)
    drawn = np.unique(size[1:-1][inner])
    n = len(drawn)
    assert n > 1000 and drawn.min() >= 20
    assert abs(drawn.mean() - 40) < 4.5 * (40 / 12 ** 0.5) / n ** 0.5
    assert abs(drawn.std() / (40 / 12 ** 0.5) - 1) < 4.5 * (0.2 / n) ** 0.5


def test_a_push_moves_the_body_by_its_impulse(sim):
    pushes = Pushes(sim, 'toy', {'ball': PushConfig(3.0, (5.0, 9.0), 0.13)}, DT)
    rng, impulse = np.random.default_rng(1), np.zeros(3)
    pushes.begin(rng)
    for _ in range(200):
        pushes.step(rng)
        impulse += sim.data.xfrc_applied[sim.model.body('ball').id, :3] * DT
        mujoco.mj_step(sim.model, sim.data, nstep=5)
    assert np.linalg.norm(impulse) > 1
    np.testing.assert_allclose(sim.data.qvel[:3], impulse / 2.0, atol=1e-9)


@pytest.mark.parametrize('name, kind', [
    ('base', 'a movable body'), ('world', 'a movable body'), ('leg', 'a body')])
def test_what_cannot_move_cannot_be_pushed(sim, name, kind):
    with pytest.raises(SpecError, match=rf'^noise.pushes must name {kind} of toy \(ball, arm\), '
                       f'got {name}$'):
        Pushes(sim, 'toy', {name: PushConfig(1.0, (1.0, 2.0), 0.1)}, DT)


def draws(model, num=3000, **config):
    """Return the numbers of many episodes, shape (num, parts)."""
    random = RandomModel(SimpleNamespace(model=model), 'toy', RandomizeConfig(**config))
    rng, found = np.random.default_rng(0), []
    for _ in range(num):
        random.begin(rng)
        found.append(random.memory.copy())
    return np.array(found)


def test_numbers_are_uniform_in_their_ranges_and_independent(sim):
    found = draws(sim.model, mass_kg={'ball': (1.0, 3.0)}, gravity_m_s2=(9.0, 10.0),
                  scale=ScaleConfig(mass=(0.5, 1.5), friction=(0.5, 1.0), damping=(0.0, 2.0)))
    arm = 500 * (np.pi * 0.02 ** 2 * 0.3 + 4 / 3 * np.pi * 0.02 ** 3)
    lower = [1.0, 0.5 * arm, 0.5, 0.4, 0.0, 9.0]
    upper = [3.0, 1.5 * arm, 1.0, 0.8, 1.0, 10.0]
    assert found.shape == (3000, 6)
    unit = (found - lower) / np.subtract(upper, lower)
    assert unit.min() > -1e-9 and unit.max() < 1 + 1e-9
    n = len(unit)
    assert (np.abs(unit.mean(0) - 0.5) < 4.5 / (12 * n) ** 0.5).all()
    assert (np.abs(unit.var(0) * 12 - 1) < 4.5 * (0.8 / n) ** 0.5).all()
    between = np.corrcoef(unit.T) - np.eye(6)
    assert np.abs(between).max() < 4.5 / n ** 0.5


def test_every_number_goes_where_it_belongs(sim):
    model, before = sim.model, mujoco.MjModel.from_xml_string(MODEL)
    random = RandomModel(sim, 'toy', RandomizeConfig(
        mass_kg={'ball': (3.0, 3.0)}, friction={'shell': (0.3, 0.3)},
        damping={'elbow': (0.25, 0.25)}, actuator_gain={'servo': (20.0, 20.0)},
        gravity_m_s2=(5.0, 5.0)))
    random.begin(np.random.default_rng(0))
    ball, arm = model.body('ball').id, model.body('arm').id
    assert model.body_mass[ball] == 3.0
    np.testing.assert_allclose(model.body_inertia[ball], 1.5 * before.body_inertia[ball])
    assert model.body_mass[arm] == before.body_mass[arm]
    assert model.geom('shell').friction.tolist() == [0.3, *before.geom('shell').friction[1:]]
    assert model.dof_damping.tolist() == [0.0] * 6 + [0.25]
    assert model.actuator('servo').gainprm[0] == 20.0
    # Stiffness and damping of the servo follow, so that it still goes where it is told.
    np.testing.assert_allclose(model.actuator('servo').biasprm[:3], [0.0, -20.0, -4.0])
    assert model.actuator_gainprm[1, 0] == before.actuator_gainprm[1, 0]
    assert model.opt.gravity.tolist() == [0.0, 0.0, -5.0]


def test_an_actuator_without_a_name_is_called_like_its_joint():
    model = gymnasium.make('Hopper-v5').unwrapped.model
    random = RandomModel(SimpleNamespace(model=model), 'hopper', RandomizeConfig(
        actuator_gain={'leg_joint': (0.5, 0.5)}, scale=ScaleConfig(actuator_gain=(2.0, 2.0))))
    random.begin(np.random.default_rng(0))
    names = [model.joint(i).name for i in model.actuator_trnid[:, 0]]
    assert dict(zip(names, model.actuator_gainprm[:, 0])) == {
        'thigh_joint': 2.0, 'leg_joint': 0.5, 'foot_joint': 2.0}


def constants(model):
    """Return every number of a compiled model, but for the memory of names and textures."""
    found = {'gravity': model.opt.gravity.copy(), 'meaninertia': model.stat.meaninertia}
    for name in dir(model):
        value = None if name.startswith('_') else getattr(model, name)
        if isinstance(value, np.ndarray) and not name.startswith(('tex_', 'mesh_', 'name')):
            found[name] = value.copy()
    return found


def assert_equal_constants(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_masses_give_the_model_that_a_compiler_gives():
    """Against a model compiled anew from geoms that are so much denser."""
    path = gymnasium.make('Hopper-v5').unwrapped.fullpath
    spec = mujoco.MjSpec.from_file(path)
    for geom in spec.body('torso').geoms:
        geom.density *= 1.7
    compiled, model = spec.compile(), mujoco.MjModel.from_xml_path(path)
    mass = compiled.body('torso').mass[0]
    assert mass == pytest.approx(1.7 * model.body('torso').mass[0])
    RandomModel(SimpleNamespace(model=model), 'hopper', RandomizeConfig(
        mass_kg={'torso': (mass, mass)})).begin(np.random.default_rng(0))
    ours, theirs = constants(model), constants(compiled)
    for name in ('body_mass', 'body_inertia', 'body_subtreemass', 'body_invweight0',
                 'dof_invweight0', 'dof_M0', 'actuator_acc0', 'meaninertia'):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('task', ['hopper', 'hand_reach'])
def test_nothing_adds_up_and_factors_of_one_are_the_nominal_model(task):
    nominal = constants(make_world(WorldConfig(task)).env.sim.model)
    world = make_world(WorldConfig(task, noise=NoiseConfig(randomize=RandomizeConfig(
        gravity_m_s2=(9.0, 10.0), scale=ScaleConfig(
            mass=(0.5, 2.0), friction=(0.5, 2.0), damping=(0.5, 2.0),
            actuator_gain=(0.5, 2.0))))))
    model, random = world.env.sim.model, world._physics['model']
    assert_equal_constants(constants(model), nominal)
    numbers = random.memory.copy()
    world.reset(seed=0)
    first = constants(model)
    for name in ('body_mass', 'geom_friction', 'dof_damping', 'actuator_gainprm', 'gravity',
                 'dof_invweight0'):
        assert (first[name] != nominal[name]).any(), name
    for _ in range(5):
        world.reset()
    world.reset(seed=0)
    assert_equal_constants(constants(model), first)
    random.memory[:] = numbers
    random.apply()
    assert_equal_constants(constants(model), nominal)


def test_the_friction_that_is_drawn_is_the_one_that_acts():
    """As the documentation has it: of two geoms, the one with the larger coefficient."""
    world = make_world(WorldConfig('hopper', noise=NoiseConfig(randomize=RandomizeConfig(
        friction={'foot_geom': (1.5, 1.6)}))))
    sim, found = world.env.sim, []
    for seed in range(3):
        world.reset(seed=seed)
        while not sim.data.ncon:
            world.step(np.zeros(3))
        found.append(sim.data.contact[0].friction[0])
        assert found[-1] == world._physics['model'].memory[0]
    assert len(set(found)) == 3 and 1.5 <= min(found) <= max(found) <= 1.6


SHAKEN = WorldConfig('hopper', noise=NoiseConfig(
    actuator=0.1, command_latency_spread_s=0.02, observation={'joint_velocity': 0.1},
    pushes={'torso': PushConfig(20.0, (5.0, 30.0), 0.02, ('x', 'z'))},
    randomize=RandomizeConfig(mass_kg={'foot': (4.0, 6.0)}, gravity_m_s2=(9.0, 10.0),
                              scale=ScaleConfig(friction=(0.5, 1.0), damping=(0.5, 2.0)))))


def follow(world, num=60):
    """Return what is seen, over the ends of episodes."""
    rng, rows = np.random.default_rng(4), []
    for _ in range(num):
        obs, reward, terminated, truncated, _ = world.step(rng.uniform(-1, 1, 3))
        rows.append([*obs, reward])
        if terminated or truncated:
            rows.append([*world.reset()[0], 0.0])
    return np.array(rows)


def test_state_restores_pushes_and_model_in_a_fresh_world():
    world, fresh = make_world(SHAKEN), make_world(SHAKEN)
    world.reset(seed=1)
    follow(world, 37)
    state, model = world.state, constants(world.env.sim.model)
    expected = follow(world)
    fresh.reset(seed=2)
    follow(fresh, 11)
    for again in (fresh, world):
        again.state = state
        assert_equal_constants(constants(again.env.sim.model), model)
        np.testing.assert_array_equal(follow(again), expected)
    assert len(expected) > 62  # some episodes ended


def test_a_seed_repeats_pushes_and_models_and_an_episode_changes_them():
    world, other = make_world(SHAKEN), make_world(SHAKEN)
    world.reset(seed=1)
    other.reset(seed=5)
    first = follow(world)
    other.reset(seed=1)
    np.testing.assert_array_equal(follow(other), first)
    masses = []
    for _ in range(3):
        world.reset()
        masses.append(world.env.sim.model.body('foot').mass[0])
    assert len(set(masses)) == 3
