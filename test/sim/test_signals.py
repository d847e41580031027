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

"""The arithmetic of noise: by hand where it is exact, by its statistics where it is random.

Limits are 4 to 5 standard errors of the estimate: of a mean ``std / sqrt(n)``, of a standard
deviation ``std / sqrt(2 n)``, of a correlation ``1 / sqrt(n)``. Seeds are fixed.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim import terms
from dpg_robot.sim.noise import Noise, NoiseConfig
from dpg_robot.sim.signals import dead_zone, delayed, Gaussian, per_element

RATE_HZ, NUM = 50.0, 4000
SPEC = SimpleNamespace(
    task='rail', control_rate_hz=RATE_HZ, action_dim=2, observation=(
        SimpleNamespace(name='position', size=2, unit='m', fields=('data[0]', 'data[1]')),
        SimpleNamespace(name='angle', size=1, unit='rad', fields=('data[2]',))))
EVERYTHING = NoiseConfig(
    actuator=0.2, actuator_time_constant_s=0.1, actuator_relative=0.1,
    actuator_relative_time_constant_s=0.3, actuator_bias=0.05, dead_zone=0.02, backlash=0.05,
    command_latency_s=0.01, command_latency_spread_s=0.05, command_jitter_s=0.02,
    command_loss=0.2, observation={'position': 0.1}, observation_bias={'angle': 0.1},
    observation_latency_s={'position': 0.03, 'angle': 0.015}, observation_loss={'angle': 0.3})


def make_noise(num=NUM, **config):
    noise = Noise(NoiseConfig(**config), SPEC, num)
    begin(noise, 0)
    return noise


def begin(noise, first_seed=None):
    for row in range(len(noise.rngs)):
        noise.begin(row, None if first_seed is None else first_seed + row)


def executed(noise, commands):
    """Give every world these commands, (steps, 2) or (steps,); return (steps, worlds, 2)."""
    shape = len(noise.rngs), 2
    return np.array([noise.act(np.broadcast_to(command, shape)) for command in commands])


def assert_normal(samples, std):
    """Check mean and standard deviation of independent samples, first axis, elementwise."""
    n = len(samples)
    assert (np.abs(samples.mean(0)) < 4.5 * std / n ** 0.5).all()
    assert (np.abs(samples.std(0) / std - 1) < 4.5 / (2 * n) ** 0.5).all()


def assert_uniform(samples, upper):
    """Check the moments and the ends of independent samples from 0 to ``upper``."""
    std, n = upper / 12 ** 0.5, samples.size
    assert samples.min() >= -1e-9 and samples.max() <= upper + 1e-9
    assert abs(samples.mean() - upper / 2) < 4.5 * std / n ** 0.5
    # The fourth central moment of a uniform is 1.8 squared variances: var(s^2) = 0.8 std^4 / n.
    assert abs(samples.var() / std ** 2 - 1) < 4.5 * (0.8 / n) ** 0.5


def test_correlated_noise_is_stationary_and_forgets_in_its_time_constant():
    std, tau = 0.1, 0.06
    noise = make_noise(actuator=std, actuator_time_constant_s=tau)
    out = executed(noise, np.zeros(8))
    for step in out:  # the first one too
        assert_normal(step, std)
    for lag in (1, 3, 7):
        found = (out[lag:] * out[:-lag]).mean((1, 2)) / std ** 2
        assert (np.abs(found - np.exp(-lag / RATE_HZ / tau)) < 4.5 / (2 * NUM) ** 0.5).all()
    # A new episode begins independently of the old one's end.
    begin(noise)
    assert abs((executed(noise, [0.0])[0] * out[-1]).mean()) / std ** 2 < 4.5 / (2 * NUM) ** 0.5


def test_the_discretisation_is_exact():
    """Two half periods have the law of a whole one."""
    whole, half = Gaussian(0.3, 0.07, 0.04), Gaussian(0.3, 0.07, 0.02)
    assert half.keep ** 2 == pytest.approx(whole.keep, rel=1e-12)
    assert half.add ** 2 * (1 + half.keep ** 2) == pytest.approx(whole.add ** 2, rel=1e-12)
    assert whole.add ** 2 / (1 - whole.keep ** 2) == pytest.approx(0.3 ** 2, rel=1e-12)


@pytest.mark.parametrize('tau', [0.0, 0.1])
def test_relative_noise_is_a_fraction_of_the_command(tau):
    noise = make_noise(actuator_relative=0.2, actuator_relative_time_constant_s=tau)
    for command in (0.5, -0.25):
        out = executed(noise, [command])[0]
        assert_normal(out - command, 0.2 * abs(command))
    assert (executed(noise, [0.0]) == 0).all()


def test_relative_noise_is_white_without_a_time_constant_and_independent_of_the_additive():
    noise = make_noise(actuator_relative=0.3, actuator=0.1)
    first, second = executed(noise, [0.0, 0.5])
    assert_normal(first, 0.1)
    assert_normal(second - 0.5, (0.1 ** 2 + 0.15 ** 2) ** 0.5)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 4.5 / NUM ** 0.5


def test_a_bias_lasts_an_episode():
    noise = make_noise(actuator_bias=0.1)
    out = executed(noise, np.zeros(3))
    assert (out == out[0]).all()
    assert_normal(out[0], 0.1)
    begin(noise)
    after = executed(noise, [0.0])[0]
    assert_normal(after, 0.1)
    assert np.abs(np.corrcoef(out[0].ravel(), after.ravel())[0, 1]) < 4.5 / (2 * NUM) ** 0.5


def test_dead_zone_by_hand():
    out = dead_zone(np.array([-1.0, -0.3, -0.2, -0.1, 0.0, 0.15, 0.2, 0.7]), 0.2)
    np.testing.assert_allclose(out, [-0.8, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], atol=1e-12)
    noise = make_noise(1, dead_zone=0.2)
    np.testing.assert_allclose(executed(noise, [0.7, -0.1])[:, 0, 0], [0.5, 0.0], atol=1e-12)


def test_backlash_by_hand():
    """Play of 0.2: the output follows 0.1 behind, and stays while a reversal crosses the play."""
    noise = make_noise(1, backlash=0.2)
    commands = [0.05, 0.3, 0.5, 0.45, 0.3, 0.2, -0.4, -0.35, 0.0]
    expected = [0.0, 0.2, 0.4, 0.4, 0.4, 0.3, -0.3, -0.3, -0.1]
    np.testing.assert_allclose(executed(noise, commands)[:, 0, 0], expected, atol=1e-12)
    begin(noise)
    assert executed(noise, [0.05])[0, 0, 0] == 0.0


@pytest.mark.parametrize('latency, expected', [
    (0.0, [1, 2, 3, 4, 5]),
    (1.0, [0, 1, 2, 3, 4]),
    (3.0, [0, 0, 0, 1, 2]),
    # The old command acts for the first quarter of the period: 0.25 * old + 0.75 * new.
    (0.25, [0.75, 1.75, 2.75, 3.75, 4.75]),
    (1.5, [0, 0.5, 1.5, 2.5, 3.5]),
    (2.75, [0, 0, 0.25, 1.25, 2.25])])
def test_delay_by_hand(latency, expected):
    history = np.zeros((1, 5, 2))
    out = [delayed(history, np.array([[x, -10.0 * x]]), latency)[0]
           for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    np.testing.assert_allclose(out, np.outer(expected, [1.0, -10.0]), atol=1e-12)


def test_delays_differ_by_world_and_by_element():
    history = np.zeros((2, 4, 2))
    for x in (1.0, 2.0, 3.0):
        out = delayed(history, np.full((2, 2), x), np.array([[0.0, 1.0], [2.0, 0.5]]))
    assert out.tolist() == [[3.0, 2.0], [1.0, 2.5]]


@pytest.mark.parametrize('older, newer, half_way', [
    (3.1, -3.1, np.pi), (-3.1, 3.1, np.pi), (0.2, 0.4, 0.3), (-0.5, 0.5, 0.0)])
def test_between_two_angles_lies_the_shorter_arc(older, newer, half_way):
    history = np.full((1, 3, 2), older)
    angle, number = delayed(history, np.full((1, 2), newer), 0.5, np.array([True, False]))[0]
    assert abs(angle) == pytest.approx(abs(half_way), abs=1e-12)
    assert number == pytest.approx((older + newer) / 2, abs=1e-12)


@pytest.mark.parametrize('fraction', [0.25, 0.5, 0.75])
def test_between_two_quaternions_either_sign_is_the_same(fraction):
    half = np.deg2rad(20)  # a turn of 40 degrees from the older to the newer
    newer = [[np.cos(half), 0.0, 0.0, np.sin(half)]]
    found = []
    for sign in (1.0, -1.0):
        history = np.zeros((1, 3, 4))
        history[:, :, 0] = sign
        found.append(delayed(history, np.array(newer), fraction, quaternions=[slice(4)])[0])
    np.testing.assert_array_equal(*found)
    assert np.linalg.norm(found[0]) == pytest.approx(1.0, abs=1e-12)
    angle = 2 * np.arctan2(found[0][3], found[0][0])
    # What a straight line leaves of a turn of 40 degrees at its worst place: 0.4 degrees.
    assert np.rad2deg(angle) == pytest.approx(40 * (1 - fraction), abs=0.5)


def test_a_delayed_orientation_stays_one():
    block = terms.orientation('block', 'block/pose', 0.1)
    spec = SimpleNamespace(**{**vars(SPEC), 'observation': (*SPEC.observation, block)})
    noise = Noise(NoiseConfig(observation_latency_s={'block': 0.01}), spec)
    noise.begin(0, 0)
    orientation = np.array([0.5, -0.5, 0.5, 0.5])
    noise.observe(np.array([[1.0, 2.0, 3.0, *orientation]]), first=True)
    found = noise.observe(np.array([[4.0, 5.0, 6.0, *-orientation]]))[0]
    np.testing.assert_allclose(found, [4.0, 5.0, 6.0, *-orientation], atol=1e-12)


def latencies(noise, steps):
    """Return the latency of each period and world [s], (steps, worlds), read from a ramp."""
    ramp = 0.01 * np.arange(1, 21 + steps)
    out = executed(noise, ramp)[20:, :, 0]
    return (ramp[20:, None] - out) / 0.01 / RATE_HZ


def test_latency_of_an_episode_is_uniform_above_the_fixed_one_and_lasts():
    found = latencies(make_noise(command_latency_s=0.03, command_latency_spread_s=0.05), 3)
    np.testing.assert_allclose(found, found[:1].repeat(3, 0), atol=1e-9)
    assert_uniform(found[0] - 0.03, 0.05)


def test_jitter_is_uniform_and_drawn_each_period():
    found = latencies(make_noise(command_latency_s=0.01, command_jitter_s=0.07), 3) - 0.01
    for step in found:
        assert_uniform(step, 0.07)
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 4.5 / NUM ** 0.5


def test_a_lost_command_leaves_the_one_before():
    loss, commands = 0.3, 0.05 * np.arange(1, 13)
    out = executed(make_noise(command_loss=loss), commands)[:, :, 0]
    age = np.round(commands[:, None] / 0.05 - out / 0.05).astype(int)
    for k in (0, 5, 11):
        # The newest to arrive is j periods old with probability (1 - loss) loss^j.
        for j in range(min(k, 3) + 1):
            expected = (1 - loss) * loss ** j
            error = (expected * (1 - expected) / NUM) ** 0.5
            assert abs((age[k] == j).mean() - expected) < 4.5 * error
    # With none before there is zero, the middle of the range.
    assert (out[0][age[0] == 1] == 0.0).all() and (age[0] <= 1).all()
    lost = age > 0
    assert abs(np.corrcoef(lost[7], lost[8])[0, 1]) < 4.5 / NUM ** 0.5


def test_jitter_does_not_depend_on_loss():
    noise = make_noise(command_loss=0.5, command_jitter_s=1 / RATE_HZ)
    out = executed(noise, [0.2] * 30 + [0.6])[-1, :, 0]
    # Where the last one came, a part of the period is still that of the one before.
    assert_uniform((0.6 - out[out > 0.2]) / 0.4, 1.0)


def observed(noise, truth, first=True):
    """Show every world these true observations, (steps, 3); return (steps, worlds, 3)."""
    shape = len(noise.rngs), 3
    return np.array([noise.observe(np.broadcast_to(np.array(row, float), shape),
                                   first=first and i == 0) for i, row in enumerate(truth)])


def test_a_bias_of_the_observation_lasts_an_episode():
    noise = make_noise(observation_bias={'angle': 0.2})
    out = observed(noise, [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert (out[:, :, :2] == [[[1.0, 2.0]], [[0.0, 0.0]]]).all()
    np.testing.assert_allclose(out[0, :, 2] - 3.0, out[1, :, 2], atol=1e-12)
    assert_normal(out[1, :, 2], 0.2)
    begin(noise)
    after = observed(noise, [[0.0, 0.0, 0.0]])[0, :, 2]
    assert abs(np.corrcoef(after, out[1, :, 2])[0, 1]) < 4.5 / NUM ** 0.5


def test_an_old_observation_is_interpolated_and_begins_with_the_first():
    noise = make_noise(1, observation_latency_s={'position': 0.03})  # 1.5 periods
    truth = [[x, -x, x] for x in (1.0, 2.0, 3.0, 4.0)]
    expected = [[1.0, -1.0, 1.0], [1.0, -1.0, 2.0], [1.5, -1.5, 3.0], [2.5, -2.5, 4.0]]
    for _ in range(2):
        np.testing.assert_allclose(observed(noise, truth)[:, 0], expected, atol=1e-12)
        begin(noise)


def test_a_lost_term_keeps_what_was_shown_noise_included():
    loss = 0.4
    noise = make_noise(observation={'position': 0.1}, observation_loss={'position': loss})
    out = observed(noise, np.zeros((4, 3)))
    assert_normal(out[0, :, :2], 0.1)  # the first one always comes
    kept = out[1:, :, :2] == out[:-1, :, :2]
    assert (kept[..., 0] == kept[..., 1]).all()  # a term is lost as a whole
    error = (loss * (1 - loss) / NUM) ** 0.5
    assert (np.abs(kept[..., 0].mean(1) - loss) < 4.5 * error).all()
    assert (out[..., 2] == 0).all()


def test_losses_of_two_terms_are_independent():
    noise = make_noise(observation_loss={'position': 0.5, 'angle': 0.5})
    out = observed(noise, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])[1]
    both = (out[:, 0] == 1.0) & (out[:, 2] == 1.0)
    assert abs(both.mean() - 0.25) < 4.5 * (0.25 * 0.75 / NUM) ** 0.5


def follow(noise, rows, steps=12, seed=3):
    """Return what some worlds of a batch do and see, given the same by step and world."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(steps):
        commands, truth = rng.uniform(-1, 1, (5, 2)), rng.normal(size=(5, 3))
        out.append(np.concatenate([noise.act(commands[rows]), noise.observe(truth[rows])], 1))
    return np.array(out)


def start(num_worlds, seeds):
    noise = Noise(EVERYTHING, SPEC, num_worlds)
    for row, seed in enumerate(seeds):
        noise.begin(row, seed)
        noise.observe(np.ones((1, 3)), slice(row, row + 1), first=True)
    return noise


def test_a_world_is_the_same_alone_and_among_others():
    together = follow(start(5, range(5)), slice(0, 5))
    for i in (0, 3, 4):
        alone = follow(start(1, [i]), slice(i, i + 1))
        np.testing.assert_array_equal(alone[:, 0], together[:, i])
    assert (together[:, 0] != together[:, 1]).any(0).all()


def test_a_new_episode_of_one_world_leaves_the_others_alone():
    noise, other = start(5, range(5)), start(5, range(5))
    other.begin(2)
    ours, theirs = follow(noise, slice(0, 5)), follow(other, slice(0, 5))
    rest = [0, 1, 3, 4]
    np.testing.assert_array_equal(ours[:, rest], theirs[:, rest])
    assert (ours[:, 2] != theirs[:, 2]).any()


def test_state_restores_to_the_bit_and_is_plain():
    noise = start(5, range(5))
    follow(noise, slice(0, 5), seed=8)
    states = [noise.get_state(row) for row in range(5)]
    expected = follow(noise, slice(0, 5))
    fresh = Noise(EVERYTHING, SPEC, 5)
    for row, state in enumerate(states):
        fresh.set_state(row, state)
    np.testing.assert_array_equal(follow(fresh, slice(0, 5)), expected)
    for row, state in enumerate(states):  # they were copies
        noise.set_state(row, state)
    np.testing.assert_array_equal(follow(noise, slice(0, 5)), expected)


def test_the_callers_arrays_are_left_alone():
    noise = start(5, range(5))
    commands, truth = np.full((5, 2), 3.0), np.ones((5, 3))
    noise.act(commands)
    noise.observe(truth)
    assert (commands == 3.0).all() and (truth == 1.0).all()


def test_values_follow_the_order_of_the_terms():
    assert per_element(SPEC, {'angle': 3.0, 'position': 0.5}, 'x').tolist() == [0.5, 0.5, 3.0]
    with pytest.raises(SpecError, match=r'noise\.observation_loss\.speed is not an observation '
                                        r'term of rail; its terms: position, angle'):
        per_element(SPEC, {'speed': 0.1}, 'observation_loss')


def test_jitter_is_of_the_control_period():
    spec = SimpleNamespace(**{**vars(SPEC), 'control_rate_hz': 10.0})
    noise = Noise(NoiseConfig(command_jitter_s=0.05), spec, NUM)
    begin(noise, 0)
    noise.act(np.zeros((NUM, 2)))
    assert_uniform(1.0 - noise.act(np.ones((NUM, 2)))[:, 0], 0.5)  # half a period


def test_noise_is_not_the_stream_of_the_goals():
    noise = Noise(NoiseConfig(), SPEC)
    noise.begin(0, 3)
    assert noise.rngs[0].random() != np.random.default_rng(3).random()
