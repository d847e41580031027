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

"""Tests of the command limiter."""

import dataclasses

from hypothesis import given, strategies
from hypothesis.extra.numpy import arrays
import numpy as np
from policy_files import joint_spec, pose_spec
import pytest

from dpg_robot.contract.command import CommandLimiter


def with_action(spec, **changes):
    return dataclasses.replace(spec, action=(dataclasses.replace(spec.action[0], **changes),))


def test_what_is_within_limits_passes_unchanged():
    limiter = CommandLimiter(pose_spec())
    assert limiter.limit(np.array([0.1, -0.5, 0.5])).tolist() == [0.1, -0.5, 0.5]
    assert limiter.num_clipped.tolist() == [0, 0, 0]


def test_clips_are_counted_by_element():
    limiter = CommandLimiter(pose_spec())
    assert limiter.limit(np.array([0.7, 0.0, -9.0])).tolist() == [0.5, 0.0, -0.5]
    limiter.limit(np.array([0.7, 0.0, 0.0]))
    assert limiter.num_clipped.tolist() == [2, 0, 1]
    assert limiter.element_names[0] == 'hand_velocity.twist.linear.x'


def test_rounding_is_no_clip():
    spec = with_action(pose_spec(), lower=(-0.1,) * 3, upper=(0.1,) * 3)
    limiter = CommandLimiter(spec)
    command = limiter.limit(np.full(3, 0.1, np.float32))
    assert (command <= 0.1).all()
    assert limiter.num_clipped.tolist() == [0, 0, 0]


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    limiter = CommandLimiter(pose_spec())
    limiter.limit(np.array([0.1, 0.2, 0.3]))
    assert limiter.limit(np.array([0.0, value, 0.0])) is None
    assert limiter.num_not_finite == 1
    assert limiter.last.tolist() == [0.1, 0.2, 0.3]


def test_the_rate_is_limited_from_the_last_command():
    limiter = CommandLimiter(joint_spec())  # 50 / s at 50 Hz: 1 in a tick
    commands = [limiter.limit(np.array([2.0, 2.0])).tolist() for _ in range(3)]
    assert commands == [[1.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    assert limiter.limit(np.array([-2.0, -2.0])).tolist() == [1.0, -2.0]
    assert limiter.num_rate_limited.tolist() == [2, 0]
    assert limiter.element_names == ('torque.shoulder', 'torque.elbow')


def test_the_rate_holds_over_the_time_that_has_passed():
    limiter = CommandLimiter(joint_spec())  # 50 / s, periods of 0.02 s
    up = np.array([2.0, 2.0])
    limiter.limit(np.array([-2.0, 0.0]))
    limiter.limit(np.array([-2.0, 0.0]))
    firsts = [limiter.limit(up, elapsed_s)[0] for elapsed_s in (0.005, 0.02, 0.3, 0.0)]
    assert firsts == pytest.approx([-1.75, -0.75, 0.25, 0.25])
    assert limiter.limit(up, 0.0)[1] == 2.0  # without a limit, no time is needed


def test_the_safe_command_comes_at_once():
    spec = with_action(joint_spec(), safe=(0.5, 0.0))
    limiter = CommandLimiter(spec)
    limiter.limit(np.array([-2.0, 2.0]))
    limiter.limit(np.array([-2.0, 2.0]))
    assert limiter.safe().tolist() == [0.5, 0.0]
    assert limiter.limit(np.array([2.0, 0.0])).tolist() == [1.5, 0.0]


def test_hold_has_nothing_to_send_before_the_first_command():
    spec = with_action(joint_spec(), safe=(None, 0.0))
    limiter = CommandLimiter(spec)
    assert np.array_equal(limiter.safe(), [np.nan, 0.0], equal_nan=True)
    assert limiter.limit(np.array([1.7, 1.0])).tolist() == [1.7, 1.0]
    assert limiter.safe().tolist() == [1.7, 0.0]
    assert limiter.safe().tolist() == [1.7, 0.0]


@given(strategies.lists(arrays(np.float32, 2, elements=strategies.floats(-1e6, 1e6, width=32)),
                        min_size=1, max_size=20))
def test_limits_and_rates_hold_whatever_the_policy_says(actions):
    limiter = CommandLimiter(joint_spec())
    last = np.zeros(2)
    for action in actions:
        command = limiter.limit(action).copy()
        assert (np.abs(command) <= 2.0).all()
        assert abs(command[0] - last[0]) <= 1.0 + 1e-12
        last = command


def braking(acceleration=(100.0, None), **changes):
    """Return a limiter of 50 Hz whose first element has rate 50 / s, and its control period."""
    return CommandLimiter(with_action(
        joint_spec(), acceleration_limit=acceleration, **changes)), 0.02


def test_the_rate_grows_and_falls_by_the_acceleration():
    limiter, dt = braking()  # 2 / s in a period: steps of 0.04, 0.08, ...
    first = [limiter.limit(np.array([2.0, 2.0]), dt)[0] for _ in range(3)]
    assert first == pytest.approx([0.04, 0.12, 0.24])
    while limiter.last[0] < 2.0 - 1e-9:
        before = limiter.last[0]
        limiter.limit(np.array([2.0, 2.0]), dt)
        assert limiter.last[0] > before
    assert limiter.last[0] == pytest.approx(2.0)
    assert limiter.limit(np.array([2.0, 2.0]), dt).tolist() == [2.0, 2.0]
    assert limiter.num_rate_limited[1] == 0


def test_a_sudden_turn_is_braked_not_jumped():
    limiter, dt = braking(rate_limit=(None, None))
    for _ in range(5):
        limiter.limit(np.array([2.0, 0.0]), dt)
    rates, last = [], limiter.last[0]
    for _ in range(12):
        rates.append((limiter.limit(np.array([-2.0, 0.0]), dt)[0] - last) / dt)
        last = limiter.last[0]
    assert rates[0] > 0 > rates[-1]
    assert np.diff(rates) == pytest.approx(-2.0)


def test_after_the_safe_command_it_starts_from_rest():
    limiter, dt = braking()
    for _ in range(5):
        limiter.limit(np.array([2.0, 0.0]), dt)
    limiter.safe()
    assert limiter.limit(np.array([2.0, 0.0]), dt)[0] == pytest.approx(0.04)


def test_a_held_element_has_nothing_to_accelerate_from():
    limiter, dt = braking(safe=(None, 0.0))
    assert limiter.limit(np.array([1.5, 0.0]), dt)[0] == 1.5
    assert limiter.limit(np.array([-1.5, 0.0]), dt)[0] == pytest.approx(1.46)
    limiter.forget()
    assert np.isnan(limiter.last[0])


@pytest.mark.parametrize('elapsed_s', [0.0, -5.0])
def test_no_time_is_no_step(elapsed_s):
    limiter, dt = braking()
    limiter.limit(np.array([2.0, 0.0]), dt)
    before = limiter.last[0]
    assert limiter.limit(np.array([2.0, 0.0]), elapsed_s)[0] == before


@given(strategies.data())
def test_whatever_the_policy_says_limit_rate_and_acceleration_hold(data):
    rate = data.draw(strategies.sampled_from([None, 3.0, 40.0]))
    acceleration = data.draw(strategies.sampled_from([1.0, 30.0, 800.0]))
    limiter, dt = braking((acceleration, None), rate_limit=(rate, None))
    last, velocity = 0.0, 0.0
    for _ in range(data.draw(strategies.integers(5, 60))):
        target = data.draw(strategies.sampled_from([-9.0, -2.0, 0.01, 1.9, 2.0, 5.0]))
        elapsed = data.draw(strategies.sampled_from([dt, dt, 0.3 * dt, 5.0]))
        now = float(limiter.limit(np.array([target, 0.0]), elapsed)[0])
        assert -2.0 <= now <= 2.0
        new = (now - last) / min(elapsed, dt)
        assert rate is None or abs(new) <= rate * (1 + 1e-9)
        assert abs(new - velocity) <= acceleration * dt + 1e-7
        last, velocity = now, new


def test_a_blend_goes_from_the_start_to_the_clipped_action():
    limiter = CommandLimiter(pose_spec())
    start = np.array([-0.5, 0.1, np.nan])
    got = limiter.limit(np.array([9.0, 0.1, 0.3]), start=start, weight=0.25)
    assert got == pytest.approx([-0.25, 0.1, 0.3])
    assert limiter.num_clipped.tolist() == [1, 0, 0]
    assert limiter.limit(np.array([9.0, 0.1, 0.3]), start=start).tolist() == [0.5, 0.1, 0.3]


def test_what_is_forgotten_starts_from_rest():
    limiter, dt = braking()
    for _ in range(5):
        limiter.limit(np.array([2.0, 0.0]), dt)
    limiter.forget()
    assert limiter.limit(np.array([2.0, 0.0]), dt)[0] == pytest.approx(0.04)
