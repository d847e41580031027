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
