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

"""Tests of ticks, states and stalls, with a clock that moves when told."""

import threading
from types import SimpleNamespace

import numpy as np
from policy_files import pose_spec, reach_weights, write_model
import pytest

from dpg_robot.contract.observation import Fault
from dpg_robot.runtime import control_loop
from dpg_robot.runtime.control import PolicyControl
from dpg_robot.runtime.control_loop import ControlLoop
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.runtime.timing import SteadyClock

PERIOD_S = 0.02


class ToldClock(SteadyClock):
    """A clock that only moves when told."""

    def __init__(self):
        self.time_s = 100.0

    def now(self):
        return self.time_s

    def listen(self, timeout_s):
        self.time_s += timeout_s + 1e-9


def pose():
    return SimpleNamespace(pose=SimpleNamespace(position=SimpleNamespace(x=0.2, y=0.0, z=0.0)))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a loop, its clock, which real time follows, and the commands it sent."""
    path = write_model(tmp_path / 'model.onnx', pose_spec(), -reach_weights())
    clock, sent = ToldClock(), []
    monkeypatch.setattr(control_loop.time, 'monotonic', clock.now)
    control = PolicyControl(OnnxPolicy(path), recover_ticks=2, now=clock.now,
                            send=lambda command: sent.append(command.tolist()))
    loop = ControlLoop(control, PERIOD_S, clock.listen, threading.Event(), clock)
    return loop, clock, sent


def observe(loop, clock):
    for name in ('hand', 'goal'):
        loop.control.observation.update(f'{name}/pose', pose(), clock.now())


def test_states(bench):
    loop, clock, sent = bench
    states = []

    def tick():
        assert loop.wait()
        loop.tick()
        states.append(loop.state)
    tick()
    observe(loop, clock)
    tick()
    clock.time_s += 0.3
    tick()
    observe(loop, clock)
    tick()
    tick()
    loop.control.stop(Fault('estop', 'latched', 'by hand'))
    observe(loop, clock)
    tick()
    assert states == ['waiting', 'running', 'safe', 'recovering', 'running', 'estop']
    assert [fault.term for fault in loop.faults] == ['estop']
    assert loop.latency.count == 2 and loop.tick_time.count == 6
    assert len(sent) == 7  # a stop sends at once


def test_a_stall_is_told_once_and_sends_until_it_ends(bench):
    loop, clock, sent = bench
    assert loop.watch() == ''
    observe(loop, clock)
    assert loop.wait()
    loop.tick()
    clock.time_s += 0.05
    assert loop.watch() == ''
    clock.time_s += 0.1
    assert loop.watch() == 'stalled: no tick for 0.150 s; safe command'
    assert loop.watch() == ''
    assert (loop.num_stalls, len(sent)) == (1, 3)
    assert sent[1:] == [[0.0] * 3] * 2


def test_a_moment_without_a_core_is_no_stall_though_simulated_time_flies(bench, monkeypatch):
    loop, clock, sent = bench
    monkeypatch.setattr(control_loop.time, 'monotonic', lambda: 0.1 * clock.now())
    observe(loop, clock)
    assert loop.wait()
    loop.tick()
    clock.time_s += 0.9
    assert loop.watch() == '' and len(sent) == 1
    clock.time_s += 0.2
    assert loop.watch() == 'stalled: no tick for 1.100 s; safe command'


def test_a_stall_while_the_clock_is_set_back_is_told_in_time(bench, monkeypatch):
    loop, clock, sent = bench
    real = ToldClock()
    monkeypatch.setattr(control_loop.time, 'monotonic', real.now)
    observe(loop, clock)
    assert loop.wait()
    loop.tick()
    clock.time_s -= 5.0
    assert loop.watch() == ''
    clock.time_s += 0.15
    real.time_s += 0.15
    assert loop.watch() == 'stalled: no tick for 0.150 s; safe command'


def test_a_tick_while_the_watchdog_looks_keeps_its_time(bench, monkeypatch):
    loop, clock, sent = bench
    observe(loop, clock)
    assert loop.wait()
    loop.tick()
    now, times = clock.now, []

    def ticking():
        seen_s = now()
        monkeypatch.setattr(clock, 'now', now)
        clock.time_s += 0.004
        loop.tick()
        return seen_s
    monkeypatch.setattr(clock, 'now', ticking)
    assert loop.watch() == ''
    loop.record(loop.control.tick(now()), SimpleNamespace(
        step=lambda time_s, *values, **options: times.append(time_s)))
    assert times == [now()]


def test_a_thread_that_never_begins_is_stalled(bench):
    loop, clock, sent = bench
    assert loop.watch() == ''
    clock.time_s += 0.15
    assert loop.watch() == 'stalled: no tick for 0.150 s; safe command'
    assert sent == [[0.0] * 3]
    observe(loop, clock)
    assert loop.wait()
    loop.tick()
    assert loop.watch() == '' and loop.num_stalls == 1


def test_before_simulated_time_begins_nothing_is_stalled(bench):
    loop, clock, sent = bench
    clock.time_s = 0.0
    assert loop.watch() == ''
    clock.time_s = 1000.0
    assert loop.watch() == '' and sent == []


def test_a_closed_control_is_not_stalled(bench):
    loop, clock, _ = bench
    assert loop.wait()
    loop.tick()
    loop.control.close()
    clock.time_s += 1.0
    assert loop.watch() == '' and loop.num_stalls == 0


def test_a_clock_that_was_set_back_begins_a_new_grid(bench):
    loop, clock, _ = bench
    observe(loop, clock)
    for _ in range(3):
        assert loop.wait()
        loop.tick()
        observe(loop, clock)
    clock.time_s, clock.num_jumps = 5.0, 1
    loop.control.observation.forget()
    assert loop.wait()
    loop.tick()
    assert loop.state == 'safe'
    times = []
    for _ in range(4):
        observe(loop, clock)
        assert loop.wait()
        loop.tick()
        times.append(clock.time_s)
    assert loop.state == 'running'
    assert 5.0 < times[0] < times[-1] < 5.2
    assert loop.num_missed == 0


def test_a_stopped_loop_ends():
    stop = threading.Event()
    stop.set()
    control = SimpleNamespace(observation=SimpleNamespace(arrival_s=lambda: (0.0, 0.0)))
    clock = ToldClock()
    assert not ControlLoop(control, PERIOD_S, clock.listen, stop, clock).wait()


def test_a_closed_loop_ends_though_its_clock_stands_still(bench):
    loop, clock, _ = bench
    closer = ControlLoop(loop.control, PERIOD_S, lambda timeout_s: closer.close(),
                         threading.Event(), clock)
    assert closer.wait()  # the first tick is due at once
    assert not closer.wait()


def test_ticks_on_an_old_state_are_counted(bench):
    loop, clock, _ = bench
    observe(loop, clock)
    for _ in range(3):
        assert loop.wait()
        loop.tick()
    assert loop.num_repeated == 2


def test_ticks_lock_on_to_the_state(tmp_path):
    clock = ToldClock()
    control = PolicyControl(OnnxPolicy(write_model(
        tmp_path / 'm.onnx', pose_spec(), reach_weights())))
    states = [100.013]

    def listen(timeout_s):
        if states[-1] <= clock.time_s + timeout_s:
            clock.time_s = max(clock.time_s, states[-1])
            observe(loop, clock)
            states.append(states[-1] + PERIOD_S)
        else:
            clock.listen(timeout_s)
    loop = ControlLoop(control, PERIOD_S, listen, threading.Event(), clock)
    ages = []
    for _ in range(8):
        assert loop.wait()
        loop.tick()
        ages.append(clock.now() - control.observation.newest_s)
    assert loop.state == 'running' and loop.num_repeated == 0
    np.testing.assert_allclose(ages[3:], 0.0, atol=1e-6)


def test_a_slow_loop_has_as_many_periods_before_it_is_stuck(bench):
    loop, clock, sent = bench
    slow = ControlLoop(loop.control, 0.1, clock.listen, threading.Event(), clock)
    assert slow.watch() == ''
    clock.time_s += 0.29
    assert slow.watch() == '' and sent == []
    clock.time_s += 0.02
    assert slow.watch().startswith('stalled')


def test_a_policy_that_breaks_at_once_is_no_waiting(bench):
    loop, clock, _ = bench
    observe(loop, clock)
    loop.control.policy = lambda observation, eps: 1 / 0
    assert loop.wait()
    loop.tick()
    assert loop.state == 'safe'


def test_a_tick_is_recorded_with_its_times(bench):
    loop, clock, _ = bench
    rows = []
    recorder = SimpleNamespace(step=lambda now_s, *parts, **rest: rows.append((now_s, rest)))

    def tick():
        assert loop.wait()
        clock.time_s += 0.004
        loop.record(loop.tick(), recorder)
    observe(loop, clock)
    tick()
    clock.time_s += 0.3
    tick()
    (first_s, first), (second_s, second) = rows
    assert (first_s, first['latency_s']) == pytest.approx((100.004, 0.004), abs=1e-6)
    assert second_s == clock.now() and np.isnan(second['latency_s'])
    assert (first['state'], second['state']) == ('running', 'safe')
