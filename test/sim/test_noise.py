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

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from dpg_robot.contract.strict import load, SpecError
from dpg_robot.sim.noise import DelayLine, NoiseConfig, observation_std, StochasticWorld

RATE_HZ = 50.0
NUM = 20_000


class Rail(gymnasium.Env):
    """Two carts without noise; the reward is the sum of their true positions [m]."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy_spec = SimpleNamespace(
        task='rail', control_rate_hz=RATE_HZ, action_dim=2, observation=(
            SimpleNamespace(name='position', size=2), SimpleNamespace(name='charge', size=1)))

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


@pytest.mark.parametrize('latency, expected', [
    (0.0, [1, 2, 3, 4, 5]),
    (1.0, [0, 1, 2, 3, 4]),
    (3.0, [0, 0, 0, 1, 2]),
    # The old command acts for the first quarter of the period: 0.25 * old + 0.75 * new.
    (0.25, [0.75, 1.75, 2.75, 3.75, 4.75]),
    (1.5, [0, 0.5, 1.5, 2.5, 3.5]),
    (2.75, [0, 0, 0.25, 1.25, 2.25])])
def test_delay_line_by_hand(latency, expected):
    line = DelayLine(latency, 2)
    out = [line(np.array([x, -10.0 * x])) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    np.testing.assert_allclose(out, np.outer(expected, [1.0, -10.0]), atol=1e-12)


@pytest.mark.parametrize('latency', [0.0, 0.4, 1.0, 2.9])
def test_delay_line_settles_to_a_constant_command(latency):
    line, command = DelayLine(latency, 2), np.array([0.7, -0.3])
    out = [line(command) for _ in range(6)]
    settled = int(np.ceil(latency))
    np.testing.assert_allclose(out[settled:], np.tile(command, (6 - settled, 1)), atol=1e-15)
    assert settled == 0 or np.abs(out[settled - 1]).max() < 0.7


def test_delay_line_does_not_keep_the_callers_array():
    line, command = DelayLine(1.0, 1), np.array([1.0])
    line(command)
    command[:] = 9.0
    assert line(command) == [1.0]


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


def test_observation_std_follows_the_order_of_the_terms():
    noise = NoiseConfig(observation={'charge': 3.0, 'position': 0.5})
    assert observation_std(Rail.policy_spec, noise).tolist() == [0.5, 0.5, 3.0]


def test_an_unknown_term_is_named_with_those_that_exist():
    with pytest.raises(SpecError, match=r'noise\.observation\.speed is not an observation term of '
                                        r'rail; its terms: position, charge'):
        make_world(observation={'position': 0.1, 'speed': 0.1})


@pytest.mark.parametrize('data, message', [
    ({'actuator': -0.1}, r'actuator must be at least 0, got -0\.1'),
    ({'command_latency_s': -0.01}, r'command_latency_s must be at least 0, got -0\.01'),
    ({'command_latency_s': 2}, r'command_latency_s must be at most 1\.0, got 2'),
    ({'observation': {'position': -1}}, r'observation\.position must be at least 0, got -1'),
    ({'actuators': 0.1}, r'actuators is not a known key; known keys: actuator, ')])
def test_bad_noise_is_named(data, message):
    with pytest.raises(SpecError, match='task.noise.' + message):
        load(NoiseConfig, data, 'task.noise')
