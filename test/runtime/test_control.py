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

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
from policy_files import joint_spec, pose_spec, reach_weights, write_model
import pytest

from dpg_robot.contract.observation import Fault
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.control import PolicyControl
from dpg_robot.runtime.onnx_policy import OnnxPolicy


def pose(x, y, z):
    return SimpleNamespace(pose=SimpleNamespace(position=SimpleNamespace(x=x, y=y, z=z)))


@pytest.fixture
def make_control(tmp_path):
    def make(mode='deterministic', seed=0, recover_ticks=1, control_options=None, **options):
        path = write_model(tmp_path / 'model.onnx', pose_spec(), reach_weights(), **options)
        control = PolicyControl(OnnxPolicy(path), mode, seed, recover_ticks,
                                **(control_options or {}))
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


def test_what_holds_the_policy_gives_the_safe_command_and_needs_no_recovery(make_control):
    why = [Fault('estop', 'listening', '1.0 s more')]
    control = make_control(recover_ticks=3, control_options={
        'hold': lambda: why[0] if why else None})
    step = control.tick(1.01)
    assert (step.command.tolist(), step.faults, step.is_driven) == ([0.0] * 3, tuple(why), False)
    why.clear()
    assert control.tick(1.03).is_driven


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


def test_the_rate_is_counted_from_sending_to_sending(tmp_path):
    path = write_model(tmp_path / 'joint.onnx', joint_spec(), np.zeros((4, 2)),
                       bias=np.array([2.0, 0.0]))
    now = [1.0]
    control = PolicyControl(OnnxPolicy(path), now=lambda: now[0])
    policy = control.policy
    state = SimpleNamespace(name=['shoulder', 'elbow'], position=[0.0, 0.0], velocity=[0.0, 0.0])
    control.observation.update('joint_states', state, 1.0)

    def tick(began_s, sent_s):
        def slow(observation, eps):
            now[0] = sent_s
            return policy(observation, eps)
        slow.spec = policy.spec
        control.policy, now[0] = slow, began_s
        return control.tick(began_s).command[0]
    # 50 / s: the second tick is on its deadline, but 0.005 s after the first one's command.
    assert tick(1.0, 1.015) == pytest.approx(1.0)
    assert tick(1.02, 1.02) == pytest.approx(1.25)
    now[0] = 1.038
    assert control.interrupt()[0] == 0.0
    assert tick(1.04, 1.04) == pytest.approx(0.1)


def test_a_policy_that_gives_nan_is_silenced(make_control):
    control = make_control()
    policy = control.policy
    control.policy = lambda observation, eps: policy(observation, eps) + [0.0, np.nan, 0.0]
    step = control.tick(1.01)
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


def test_a_rehearsal_leaves_no_trace(make_control):
    sent, rehearsed = [], []
    control, other = (make_control('sampled', 1, control_options={
        'send': sent.append,
        'rehearse_sending': lambda command: rehearsed.append(command.tolist())})
        for _ in range(2))
    control.rehearse(1.01)
    control.rehearse(2.0)  # stale
    control.policy = SimpleNamespace(spec=control.policy.spec)  # and one that cannot be called
    control.rehearse(1.01)
    control.policy = lambda observation: np.full(3, np.nan)
    control.rehearse(1.01)
    control.policy = other.policy
    np.testing.assert_allclose(rehearsed, [[0.1, -0.2, 0.5]], rtol=1e-6)  # without eps
    assert (sent, control.num_ticks, control.last_error) == ([], 0, '')
    assert control.limiter.num_not_finite == control.limiter.num_clipped.max() == 0
    steps = [each.tick(1.01) for each in (control, other)]
    np.testing.assert_array_equal(steps[0].command, steps[1].command)


def test_an_unknown_mode(make_control):
    with pytest.raises(SpecError, match='mode must be one of deterministic, sampled; got random'):
        make_control('random')


@pytest.fixture
def sender(make_control):
    """Return a control and the list of all commands that it sent."""
    def make(**options):
        sent = []
        return make_control(control_options={
            'send': lambda command: sent.append(command.tolist()), **options}), sent
    return make


def drive(control, now_s):
    """Tick with a state that has just arrived."""
    control.observation.update('hand/pose', pose(0.0, 0.0, 0.0), now_s)
    return control.tick(now_s)


def test_a_policy_that_takes_command_blends_in(sender):
    control, sent = sender(blend_s=0.1)  # periods of 0.02 s
    for i in range(8):
        drive(control, 1.0 + 0.02 * i) if i != 6 else control.interrupt()
    np.testing.assert_allclose(
        [command[0] for command in sent], [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.0, 0.02],
        rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(sent[1], [0.04, -0.08, 0.2], rtol=1e-6)  # of the clipped action


def test_another_policy_blends_in_from_the_last_command(sender, tmp_path):
    control, sent = sender(blend_s=0.04)
    for i in range(3):
        drive(control, 1.0 + 0.02 * i)
    control.offer(OnnxPolicy(write_model(tmp_path / 'b.onnx', pose_spec(), -reach_weights())))
    steps = [drive(control, 1.06 + 0.02 * i) for i in range(3)]
    assert all(step.is_driven for step in steps)
    np.testing.assert_allclose([command[0] for command in sent],
                               [0.05, 0.1, 0.1, 0.0, -0.1, -0.1], rtol=1e-6, atol=1e-9)
    assert control.num_exchanges == 1


def test_a_closed_control_takes_another_policy_at_once(sender, tmp_path):
    control, sent = sender()
    control.close(repeats=0)
    other = OnnxPolicy(write_model(tmp_path / 'b.onnx', pose_spec(), -reach_weights()))
    control.offer(other)
    assert control.policy is other and sent == []


def test_an_action_that_comes_too_late_is_not_sent(sender):
    now = [1.0]
    control, sent = sender(now=lambda: now[0])
    policy = control.policy

    def slow(observation, eps):
        now[0] = 1.11  # the hand may be 0.1 s old
        return policy(observation, eps)
    slow.spec = policy.spec
    control.policy = slow
    step = control.tick(1.0)
    assert not step.is_driven and sent == [[0.0, 0.0, 0.0]]
    assert str(step.faults[0]).startswith('control: stale, the action came 0.010 s after')
    control.policy, now[0] = policy, 1.05
    assert control.tick(1.05).is_driven


def during(control, act):
    """Make the policy's next thought be interrupted by an act of another thread."""
    policy = control.policy

    def interrupted(observation, eps):
        act()
        control.policy = policy
        return policy(observation, eps)
    interrupted.spec = policy.spec
    control.policy = interrupted


def test_a_stop_wins_over_a_tick_that_had_begun_and_stays(sender):
    control, sent = sender()
    why = Fault('estop', 'latched', 'by hand')
    control.tick(1.0)
    during(control, lambda: control.stop(why))
    steps = [control.tick(1.01) for _ in range(3)]
    assert [step.faults for step in steps] == [(why,)] * 3
    assert sent[1:] == [[0.0, 0.0, 0.0]] * 4
    control.lift()
    assert control.tick(1.02).is_driven


def test_after_closing_nothing_is_sent_but_a_stop(sender):
    control, sent = sender()
    during(control, lambda: control.close(repeats=3))
    control.tick(1.0)
    assert sent == [[0.0, 0.0, 0.0]] * 3
    control.tick(1.01)
    control.interrupt()
    control.close(repeats=3)
    assert len(sent) == 3
    control.stop(Fault('estop', 'latched', 'by hand'))
    assert len(sent) == 4
    control.lift()
    control.open()
    assert control.tick(1.02).is_driven and len(sent) == 5


def test_what_was_held_before_an_opening_is_not_sent_again(tmp_path):
    spec = pose_spec(action=(dataclasses.replace(pose_spec().action[0], safe=(None,) * 3),))
    control = PolicyControl(OnnxPolicy(write_model(tmp_path / 'm.onnx', spec, reach_weights())))
    for name in ('hand', 'goal'):
        control.observation.update(f'{name}/pose', pose(0.0, 0.0, 0.0), 1.0)
    control.tick(1.0)
    assert not np.isnan(control.tick(2.0).command).any()
    control.close()
    control.open()
    assert np.isnan(control.tick(2.0).command).all()


def test_a_stop_of_a_closed_control_does_not_send_what_was_held(tmp_path):
    spec = pose_spec(action=(dataclasses.replace(pose_spec().action[0], safe=(None,) * 3),))
    sent = []
    control = PolicyControl(OnnxPolicy(write_model(tmp_path / 'm.onnx', spec, reach_weights())),
                            send=lambda command: sent.append(command.copy()))
    for name in ('hand', 'goal'):
        control.observation.update(f'{name}/pose', pose(0.1, 0.0, 0.0), 1.0)
    assert control.tick(1.0).is_driven
    control.close()
    assert not np.isnan(sent[-1]).any()  # it holds, at the end
    assert control.tick(1.0).is_driven and len(sent) == 2  # a last tick that nobody hears
    control.stop(Fault('estop', 'latched', 'by hand'))
    assert len(sent) == 3 and np.isnan(sent[-1]).all()


def test_a_step_tells_what_the_policy_read_and_answered(make_control):
    control = make_control('sampled', 1)
    step = control.tick(1.01)
    np.testing.assert_array_equal(step.action, control.policy(step.observation, step.eps))
    assert np.abs(step.action - step.command).max() > 1.0  # what the limits cut off
    assert control.tick(1.3)[3:] == (None, None, None)


def test_what_was_decided_before_a_stop_goes_out_before_it(sender):
    control, sent = sender()
    why, look = Fault('estop', 'latched', 'by hand'), control._last_look
    stopper = threading.Thread(target=lambda: control.stop(why))

    def look_and_be_stopped(turn):
        seen = look(turn)
        stopper.start()
        stopper.join(0.2)  # it waits at the gate
        return seen
    control._last_look = look_and_be_stopped
    assert control.tick(1.0).is_driven
    stopper.join()
    assert len(sent) == 2 and sent[-1] == [0.0, 0.0, 0.0]


def test_the_policy_blends_in_again_behind_a_fault(sender):
    control, sent = sender(blend_s=0.1)
    for i in range(6):
        drive(control, 1.0 + 0.02 * i)
    control.observation.update('hand/pose', pose(float('nan'), 0.0, 0.0), 1.12)
    control.tick(1.12)
    drive(control, 1.14)
    np.testing.assert_allclose([command[0] for command in sent[-3:]], [0.1, 0.0, 0.02], rtol=1e-6)


def test_a_blend_is_in_simulated_time(sender):
    control, sent = sender(blend_s=0.1, rate_factor=4.0)  # periods of 0.005 s
    for i in range(4):
        drive(control, 1.0 + 0.005 * i)
    np.testing.assert_allclose([command[0] for command in sent], [0.02, 0.04, 0.06, 0.08],
                               rtol=1e-6)


def test_a_new_activation_has_nothing_to_recover_from(make_control):
    control = make_control(recover_ticks=3)
    assert control.tick(1.0).is_driven
    control.close()
    control.open()
    assert not control.tick(2.0).is_driven  # stale
    assert drive(control, 1.02).is_driven


def test_a_lifted_stop_leaves_the_policy_to_recover(make_control):
    control = make_control(recover_ticks=3)
    assert control.tick(1.0).is_driven
    control.stop(Fault('estop', 'latched', 'by hand'))
    control.lift()
    assert [control.tick(1.01).is_driven for _ in range(3)] == [False, False, True]
