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

from dataclasses import asdict
import json
from pathlib import Path
import re
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import yaml

from dpg_robot.contract.strict import dump, load, SpecError
from dpg_robot.sim import world as worlds
from dpg_robot.sim.noise import NoiseConfig, StochasticWorld
from dpg_robot.sim.world import WorldConfig

RATE_HZ = 50.0
NUM = 8_000


class Rail(gymnasium.Env):
    """Two carts without noise; the reward is the sum of their true positions [m]."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy_spec = SimpleNamespace(
        task='rail', control_rate_hz=RATE_HZ, action_dim=2, observation=(
            SimpleNamespace(name='position', size=2, unit='m'),
            SimpleNamespace(name='charge', size=1, unit='C')))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.executed = np.array([1.0, 2.0]), []
        return self._observe(), {}

    def step(self, action):
        self.executed.append(np.array(action))
        self.position = self.position + 0.1 * action
        return self._observe(), self.position.sum(), False, False, {}

    def _observe(self):
        return np.append(self.position, 7.0)


def make_world(seed=0, **noise):
    world = StochasticWorld(Rail(), NoiseConfig(**noise))
    world.reset(seed=seed)
    return world


def executed(world, commands):
    """Step through the commands; return what the actuators carried out, shape (steps, 2)."""
    return np.array([world.step(np.array(c))[4]['executed_action'] for c in commands])


def test_actuator_noise_is_white_and_has_the_configured_moments():
    command, std = np.array([0.3, -0.2]), 0.1
    noise = executed(make_world(actuator=std), np.tile(command, (NUM, 1))) - command
    # Standard errors: of a mean std / sqrt(n), of a std 1 / sqrt(2 n) of it, of a correlation
    # of white noise 1 / sqrt(n). The limits are 7 standard deviations away.
    assert (np.abs(noise.mean(0)) < 4 * std / NUM ** 0.5).all()
    assert (np.abs(noise.std(0) / std - 1) < 4 / (2 * NUM) ** 0.5).all()
    unit = noise / std
    for lag in (1, 2, 5):
        assert (np.abs((unit[lag:] * unit[:-lag]).mean(0)) < 4 / NUM ** 0.5).all()
    assert abs((unit[:, 0] * unit[:, 1]).mean()) < 4 / NUM ** 0.5


def test_actuator_noise_repeats_for_a_seed_and_not_for_another():
    runs = [executed(make_world(seed, actuator=0.3), np.zeros((20, 2))) for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).all()


def test_a_reset_without_a_seed_draws_new_noise():
    world = make_world(actuator=0.3)
    first = executed(world, np.zeros((5, 2)))
    world.reset()
    assert (executed(world, np.zeros((5, 2))) != first).all()


def test_commands_are_clipped_before_the_noise_and_after():
    assert (executed(make_world(), [[3.0, -3.0]]) == [[1.0, -1.0]]).all()
    out = executed(make_world(actuator=0.1), np.tile([5.0, -5.0], (500, 1)))
    assert np.abs(out).max() == 1.0
    # The noise is symmetric about the clipped command: half of it shows.
    assert (np.abs(np.mean(np.abs(out) < 1.0, axis=0) - 0.5) < 4 * 0.5 / 500 ** 0.5).all()


def test_the_task_carries_out_what_info_says():
    world = make_world(actuator=0.3, command_latency_s=0.03)
    out = executed(world, np.random.default_rng(0).uniform(-1, 1, (10, 2)))
    assert (np.array(world.unwrapped.executed) == out).all()


def test_latency_is_in_seconds_and_ends_with_the_episode():
    world = make_world(command_latency_s=0.03)
    ramp = np.array([[0.1, -0.1], [0.2, -0.2], [0.3, -0.3]])
    expected = np.outer([0.0, 0.05, 0.15], [1.0, -1.0])
    np.testing.assert_allclose(executed(world, ramp), expected, atol=1e-12)
    world.reset()
    np.testing.assert_allclose(executed(world, ramp), expected, atol=1e-12)


def test_observation_noise_has_the_configured_std_per_term_in_its_unit():
    world = make_world(observation={'position': 0.02})
    obs = np.array([world.step(np.zeros(2))[0] for _ in range(NUM)])
    noise = obs[:, :2] - [1.0, 2.0]
    assert (np.abs(noise.mean(0)) < 4 * 0.02 / NUM ** 0.5).all()
    assert (np.abs(noise.std(0) / 0.02 - 1) < 4 / (2 * NUM) ** 0.5).all()
    assert abs((noise[1:] * noise[:-1]).mean() / 0.02 ** 2) < 4 / NUM ** 0.5
    assert (obs[:, 2] == 7.0).all()


def test_the_first_observation_is_noisy_too():
    world = make_world()
    assert world.reset(seed=3)[0].tolist() == [1.0, 2.0, 7.0]
    noisy = make_world(observation={'position': 0.5, 'charge': 1.0})
    assert (noisy.reset(seed=3)[0] != [1.0, 2.0, 7.0]).all()


def test_reward_comes_from_the_true_state():
    world = make_world(observation={'position': 10.0})
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2)):
        obs, reward, *_ = world.step(action)
        assert reward == world.unwrapped.position.sum()
        assert abs(obs[:2].sum() - reward) > 1e-3


def test_no_noise_leaves_the_task_as_it_is():
    world, task = make_world(), Rail()
    task.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2)):
        got, wanted = world.step(action), task.step(action)
        assert (got[0] == wanted[0]).all() and got[1] == wanted[1]


def test_an_unknown_term_is_named_with_those_that_exist():
    with pytest.raises(SpecError, match=r'noise\.observation\.speed is not an observation term of '
                                        r'rail; its terms: position, charge'):
        make_world(observation={'position': 0.1, 'speed': 0.1})


# The noise of a hopper in YAML, and what it is answered with.
MISTAKES = [
    ('actuator: -0.1', 'noise.actuator must be at least 0, got -0.1'),
    ('actuator: much', "noise.actuator must be a number, got 'much'"),
    ('actuator: .inf', 'noise.actuator must be finite, got inf'),
    ('actuators: 0.1', 'noise.actuators is not a known key; known keys: actuator, '),
    ('actuator_time_constant_s: -1', 'noise.actuator_time_constant_s must be at least 0, got -1'),
    ('actuator_relative: -0.2', 'noise.actuator_relative must be at least 0, got -0.2'),
    ('actuator_bias: [0.1, 0.2]', 'noise.actuator_bias must be a number, got [0.1, 0.2]'),
    ('dead_zone: 1.5', 'noise.dead_zone must be at most 1.0, got 1.5'),
    ('backlash: -0.1', 'noise.backlash must be at least 0, got -0.1'),
    ('command_latency_s: -0.01', 'noise.command_latency_s must be at least 0, got -0.01'),
    ('command_latency_s: 20', 'noise.command_latency_s must be at most 1.0, got 20'),
    ('command_latency_spread_s: -0.01', 'noise.command_latency_spread_s must be at least 0, got'),
    ('command_jitter_s: 5', 'noise.command_jitter_s must be at most 1.0, got 5'),
    ('command_loss: 1.1', 'noise.command_loss must be at most 1.0, got 1.1'),
    ('observation: 0.1', 'noise.observation must be a mapping, got 0.1'),
    ('observation: {height: -1}', 'noise.observation.height must be at least 0, got -1'),
    ('observation: {hight: 0.1}', 'noise.observation.hight is not an observation term of hopper; '
                                  'its terms: height, joint_position, '),
    ('observation_bias: {speed: 0.1}', 'noise.observation_bias.speed is not an observation term'),
    ('observation_latency_s: {height: 2}', 'noise.observation_latency_s.height must be at most '
                                           '1.0, got 2'),
    ('observation_loss: {height: 30}', 'noise.observation_loss.height must be at most 1.0, '
                                       'got 30'),
    ('pushes: {torso: 5}', 'noise.pushes.torso must be a mapping, got 5'),
    ('pushes: {torso: {rate_hz: 1, force_n: [1, 2]}}',
     'noise.pushes.torso.duration_s is required and missing'),
    ('pushes: {torso: {rate_hz: 0, force_n: [1, 2], duration_s: 0.1}}',
     'noise.pushes.torso.rate_hz must be greater than 0, got 0'),
    ('pushes: {torso: {rate_hz: 1, force_n: [20, 10], duration_s: 0.1}}',
     'noise.pushes.torso.force_n must be [lower, upper], lower at most upper, got [20.0, 10.0]'),
    ('pushes: {torso: {rate_hz: 1, force_n: [-5, 5], duration_s: 0.1}}',
     'noise.pushes.torso.force_n[0] must be at least 0, got -5'),
    ('pushes: {torso: {rate_hz: 1, force_n: [1, 2], duration_s: 0.1, axes: [x, up]}}',
     'noise.pushes.torso.axes[1] must be one of x, y, z; got up'),
    ('pushes: {torso: {rate_hz: 1, force_n: [1, 2], duration_s: 0.1, axes: [x, x]}}',
     "noise.pushes.torso.axes must be at least one of x, y, z, each once, got ['x', 'x']"),
    ('pushes: {head: {rate_hz: 1, force_n: [1, 2], duration_s: 0.1}}',
     'noise.pushes must name a body of hopper (torso, thigh, leg, foot), got head'),
    ('randomize: {weight: [1, 2]}',
     'noise.randomize.weight is not a known key; known keys: mass_kg, '),
    ('randomize: {mass_kg: {torso: 3.5}}',
     'noise.randomize.mass_kg.torso must be a list, got 3.5'),
    ('randomize: {mass_kg: {torso: [4, 3]}}',
     'noise.randomize.mass_kg.torso must be [lower, upper], lower at most upper, got [4.0, 3.0]'),
    ('randomize: {mass_kg: {torso: [3]}}',
     'noise.randomize.mass_kg.torso must be [lower, upper], lower at most upper, got [3.0]'),
    ('randomize: {mass_kg: {torso: [0, 3]}}',
     'noise.randomize.mass_kg.torso[0] must be greater than 0, got 0'),
    ('randomize: {mass_kg: {head: [1, 2]}}',
     'noise.randomize.mass_kg must name a body with a mass of hopper (torso, thigh, leg, foot), '
     'got head'),
    ('randomize: {friction: {ice: [0, 1]}}',
     'noise.randomize.friction must name a geom of hopper (floor, torso_geom, '),
    ('randomize: {damping: {knee: [0, 1]}}',
     'noise.randomize.damping must name a joint of hopper (rootx, '),
    ('randomize: {actuator_gain: {knee: [0, 1]}}',
     'noise.randomize.actuator_gain must name an actuator with a gain of hopper (thigh_joint, '),
    ('randomize: {gravity_m_s2: [-10, -9]}',
     'noise.randomize.gravity_m_s2[0] must be at least 0, got -10'),
    ('randomize: {scale: {mass: [1.2, 0.8]}}',
     'noise.randomize.scale.mass must be [lower, upper], lower at most upper, got [1.2, 0.8]'),
    ('randomize: {scale: {inertia: [1, 2]}}',
     'noise.randomize.scale.inertia is not a known key; known keys: mass, friction, '),
]


def hopper(text):
    return load(WorldConfig, {'task': 'hopper', 'noise': yaml.safe_load(text)}, 'world')


@pytest.mark.parametrize('text, message', MISTAKES)
def test_a_mistake_is_named_with_its_rule_and_value(text, message):
    with pytest.raises(SpecError) as error:
        worlds.make_world(hopper(text))
    assert str(error.value).removeprefix('world.').startswith(message)


def test_what_a_task_lacks_cannot_be_scaled():
    config = {'task': 'fetch_reach', 'noise': yaml.safe_load(
        'randomize: {scale: {actuator_gain: [0.8, 1.2]}}')}
    with pytest.raises(SpecError, match=(
            r'noise\.randomize\.scale\.actuator_gain must be left out for fetch_reach, which '
            r'lacks an actuator with a gain to change; got \[0\.8, 1\.2\]')):
        worlds.make_world(load(WorldConfig, config, 'world'))


DOCUMENT = Path(__file__).parents[2] / 'docs' / 'worlds.md'


@pytest.mark.parametrize('text, answer', re.findall(
    r'^\| `(.+: .+)` \| `(.+)` \|$', DOCUMENT.read_text(), re.M))
def test_a_mistake_is_answered_as_documented(text, answer):
    with pytest.raises(SpecError) as error:
        worlds.make_world(hopper(text))
    assert str(error.value).startswith(answer.removesuffix('...'))


def test_the_documented_example_has_every_key_and_works():
    part, = re.findall('```yaml\n(.*?)```', DOCUMENT.read_text(), re.S)
    full = yaml.safe_load(part)
    assert full['world']['noise'].keys() == asdict(NoiseConfig()).keys()
    randomize = full['world']['noise']['randomize']
    assert randomize.keys() == asdict(NoiseConfig())['randomize'].keys()
    assert randomize['scale'].keys() == asdict(NoiseConfig())['randomize']['scale'].keys()
    config = load(WorldConfig, full['world'], 'world')
    noise = config.noise
    assert all(noise.beyond_white.values())
    # Stored in model files and results as JSON, and taken back from there.
    assert load(NoiseConfig, json.loads(json.dumps(asdict(noise)))) == noise
    assert load(NoiseConfig, dump(noise)) == noise
    world = worlds.make_world(config)
    seen = [world.reset(seed=0)[0]] + [world.step(np.zeros(3))[0] for _ in range(20)]
    assert np.isfinite(seen).all() and (np.ptp(seen, axis=0) > 0).all()


@pytest.mark.parametrize('noise, keys', [
    ({}, []),
    ({'actuator': 0.3}, []),
    ({'observation': {'height': 0.0}}, []),
    ({'actuator': 0.3, 'actuator_time_constant_s': 0.1}, ['actuator_time_constant_s']),
    ({'dead_zone': 0.1, 'command_loss': 0.1}, ['dead_zone', 'command_loss']),
    ({'observation_bias': {'height': 0.1}}, ['observation_bias']),
    ({'pushes': {'torso': {'rate_hz': 1, 'force_n': [0, 1], 'duration_s': 1}}}, ['pushes']),
    ({'randomize': {'scale': {'mass': [0.9, 1.1]}}}, ['randomize'])])
def test_only_white_noise_on_commands_leaves_a_world_that_one_step_tells(noise, keys):
    assert list(load(NoiseConfig, noise).beyond_white) == keys
