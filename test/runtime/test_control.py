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

"""Tests of the control step, free of ROS."""

from types import SimpleNamespace

import numpy as np
from policy_files import joint_spec, pose_spec, reach_weights, write_model
import pytest

from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.control import PolicyControl
from dpg_robot.runtime.onnx_policy import OnnxPolicy


def pose(x, y, z):
    return SimpleNamespace(pose=SimpleNamespace(position=SimpleNamespace(x=x, y=y, z=z)))


@pytest.fixture
def make_control(tmp_path):
    def make(mode='deterministic', seed=0, recover_ticks=1, **options):
        path = write_model(tmp_path / 'model.onnx', pose_spec(), reach_weights(), **options)
        control = PolicyControl(OnnxPolicy(path), mode, seed, recover_ticks)
        control.observation.update('hand/pose', pose(0.0, 0.0, 0.0), 1.0)
        control.observation.update('goal/pose', pose(0.1, -0.2, 3.0), 1.0)
        return control
    return make


def test_a_tick_gives_a_limited_command(make_control):
    control = make_control()
    step = control.tick(1.01)
    np.testing.assert_allclose(step.command, [0.1, -0.2, 0.5], rtol=1e-6)
    assert step.faults == ()
    assert (control.num_ticks, control.num_safe) == (1, 0)


def test_a_fault_gives_the_safe_command(make_control):
    control = make_control()
    control.tick(1.01)
    step = control.tick(1.2)
    assert step.command.tolist() == [0.0, 0.0, 0.0]
    assert [(fault.term, fault.kind) for fault in step.faults] == [('hand', 'stale')]
    assert (control.num_ticks, control.num_safe) == (2, 1)


def test_a_fault_takes_command_away_until_some_ticks_are_without_one(make_control):
    control = make_control(recover_ticks=3)

    def ticks(text):
        """Tick once a letter, g with a good state and b with a bad one; tell who commands."""
        told = ''
        for letter in text:
            x = 0.0 if letter == 'g' else float('nan')
            control.observation.update('hand/pose', pose(x, 0.0, 0.0), 1.0)
            step = control.tick(1.01)
            assert step.is_driven == step.command.any()
            assert bool(step.faults) is (letter == 'b')
            told += 'p' if step.is_driven else 's'
        return told
    assert ticks('bbgg') == 'sspp'  # the first start needs no recovery
    assert ticks('bgbgbggbgggg') == 'sssssssssspp'
    assert control.num_safe == 12


@pytest.mark.parametrize('recover_ticks', [1, 3])
def test_an_interrupted_tick_gives_the_safe_command(make_control, recover_ticks):
    control = make_control(recover_ticks=recover_ticks)
    control.tick(1.0)
    policy, given = control.policy, []

    def stuck(observation, eps):
        given.append(control.interrupt().tolist())
        return policy(observation, eps)
    stuck.spec = policy.spec
    control.policy = stuck
    assert not control.tick(1.01).is_driven
    assert given == [[0.0, 0.0, 0.0]]
    control.policy = policy
    driven = [control.tick(1.02).is_driven for _ in range(3)]
    assert driven == [n >= recover_ticks for n in (1, 2, 3)]


def test_nan_from_the_policy_is_no_recovery(make_control):
    control = make_control(recover_ticks=2)
    good = control.policy
    control.tick(1.01)
    control.policy = lambda observation, eps: np.full(3, np.nan)
    assert all(control.tick(1.01).faults for _ in range(5))
    control.policy = good
    assert [control.tick(1.01).is_driven for _ in range(3)] == [False, True, True]
    assert control.limiter.num_not_finite == 5


@pytest.mark.parametrize('rate_factor', [1.0, 4.0])
def test_the_rate_limit_holds_in_the_time_of_the_robot(tmp_path, rate_factor):
    weights = np.zeros((4, 2))
    path = write_model(tmp_path / 'joint.onnx', joint_spec(), weights, bias=np.array([2.0, 0.0]))
    control = PolicyControl(OnnxPolicy(path), rate_factor=rate_factor)
    state = SimpleNamespace(name=['shoulder', 'elbow'], position=[0.0, 0.0], velocity=[0.0, 0.0])
    control.observation.update('joint_states', state, 1.0)
    period_s = 0.02 / rate_factor
    times = 1.0 + period_s * np.array([0.0, 0.25, 0.5, 3.0])
    # 50 / s, so 1 in a period; a late tick gets no more than one.
    assert [control.tick(now_s).command[0] for now_s in times] == pytest.approx(
        [1.0, 1.25, 1.5, 2.0])
    control.limiter.last[0] = -2.0
    assert control.tick(times[-1] + 1.5 * period_s).command[0] == pytest.approx(-1.0)


def test_a_policy_that_gives_nan_is_silenced(make_control):
    step = make_control(bias=np.array([0.0, np.nan, 0.0])).tick(1.01)
    assert step.command.tolist() == [0.0, 0.0, 0.0]
    assert [(fault.term, fault.kind) for fault in step.faults] == [('action', 'not finite')]


def test_an_exception_gives_the_safe_command_and_is_told(make_control):
    control = make_control()
    control.policy = lambda observation, eps: 1 / 0
    step = control.tick(1.01)
    assert step.command.tolist() == [0.0, 0.0, 0.0]
    assert str(step.faults[0]) == 'control: exception, ZeroDivisionError: division by zero'
    assert 'Traceback' in control.last_error


def test_sampling_follows_the_seed(make_control):
    first, again, other = (
        [make_control('sampled', seed).tick(1.01).command.tolist()] for seed in (1, 1, 2))
    assert first == again != other
    control = make_control('sampled', 1)
    assert control.tick(1.01).command.tolist() != control.tick(1.01).command.tolist()


def test_an_unknown_mode(make_control):
    with pytest.raises(SpecError, match='mode must be one of deterministic, sampled; got random'):
        make_control('random')
