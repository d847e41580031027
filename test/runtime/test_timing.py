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

"""Tests of pacing and latency statistics."""

import threading
import time

import numpy as np
import pytest

from dpg_robot.runtime import timing
from dpg_robot.runtime.timing import (
    LatencyStatistics,
    Pacer,
    PhaseLock,
    sleep_until,
)


class Clock:
    """A clock that only moves when told, in place of the module's time."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(timing.time, 'monotonic', lambda: self.now)
        monkeypatch.setattr(timing, 'sleep_until', self._sleep_until)

    def _sleep_until(self, deadline_s, stop):
        self.now = max(self.now, deadline_s)
        return True


def test_deadlines_are_absolute(monkeypatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0.1, threading.Event())
    times = []
    for work in (0.03, 0.09, 0.0, 0.05):
        pacer.wait()
        times.append(clock.now)
        clock.now += work
    np.testing.assert_allclose(times, [100.1, 100.2, 100.3, 100.4])
    assert pacer.num_missed == 0


def test_an_overrun_skips_deadlines_and_keeps_the_grid(monkeypatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0.1, threading.Event())
    times = []
    for work in (0.25, 0.11, 0.0):
        pacer.wait()
        times.append(clock.now)
        clock.now += work
    np.testing.assert_allclose(times, [100.1, 100.4, 100.6])
    assert pacer.num_missed == 3


def test_restart_moves_the_grid(monkeypatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0.1, threading.Event())
    pacer.wait()
    pacer.restart(100.17)
    pacer.wait()
    assert clock.now == pytest.approx(100.17)
    assert pacer.num_missed == 0


class Arrivals:
    """A stream of arrivals, and the event that each one sets."""

    def __init__(self, clock, times):
        self.clock, self.times = clock, np.sort(times)

    def newest(self):
        return self.times[max(0, np.searchsorted(self.times, self.clock.now, 'right') - 1)]

    def clear(self):
        pass

    def wait(self, timeout):
        end = self.clock.now + timeout
        following = self.times[np.searchsorted(self.times, self.clock.now, 'right')]
        self.clock.now = min(end, following)
        return following <= end


def lock_on(clock, times, phase=0.2, pacer=None):
    """Tick on a stream of arrival times; return when, and the delay from the newest arrival."""
    pacer = pacer or Pacer(0.1, threading.Event())
    arrivals = Arrivals(clock, times)
    clock.now = arrivals.times[0]
    lock, ticks, delays = PhaseLock(pacer, phase, arrivals.newest, window=8), [], []
    lock.arrived = arrivals
    lock.restart()
    while clock.now < arrivals.times[-1] - 0.3:
        assert lock.wait()
        ticks.append(clock.now)
        delays.append(clock.now - arrivals.newest())
        lock.track(arrivals.newest())
    return np.array(ticks), np.array(delays)


def test_ticks_follow_the_arrival_of_the_state(monkeypatch):
    _, delays = lock_on(Clock(monkeypatch), 100.03 + 0.1 * np.arange(50))
    np.testing.assert_allclose(delays, 0.02, atol=1e-9)


@pytest.mark.parametrize('late_s', [0.05, 0.079])
def test_a_late_first_arrival_is_made_good(monkeypatch, late_s):
    times = 100.03 + 0.1 * np.arange(60)
    times[0] += late_s
    _, delays = lock_on(Clock(monkeypatch), times)
    np.testing.assert_allclose(delays[10:], 0.02, atol=1e-9)


@pytest.mark.parametrize('drift', [1e-4, -1e-4])
def test_two_clocks_may_drift_apart(monkeypatch, drift):
    ticks, delays = lock_on(
        Clock(monkeypatch), 100.03 + 0.1 * (1 + drift) * np.arange(4000))
    assert delays.min() > 0.02 - 1e-9
    assert delays.max() < 0.03
    assert np.diff(ticks).min() > 0.04


def test_one_late_state_is_waited_for(monkeypatch):
    times = 100.03 + 0.1 * np.arange(40)
    times[20] += 0.03  # its tick is due 0.02 after it should have come
    ticks, delays = lock_on(Clock(monkeypatch), times)
    assert delays.max() < 0.02 + 1e-9
    lateness = ticks - (100.15 + 0.1 * np.arange(len(ticks)))
    assert lateness[19] == pytest.approx(0.025)  # a quarter of the period and no more
    np.testing.assert_allclose(np.delete(lateness, 19), 0.0, atol=1e-9)


def test_a_lost_state_delays_one_tick_by_a_quarter_of_the_period(monkeypatch):
    times = np.delete(100.03 + 0.1 * np.arange(40), 20)
    ticks, _ = lock_on(Clock(monkeypatch), times)
    lateness = ticks - (100.15 + 0.1 * np.arange(len(ticks)))
    assert lateness[19] == pytest.approx(0.025)
    np.testing.assert_allclose(np.delete(lateness, 19), 0.0, atol=1e-9)


def test_half_a_state_is_no_new_state(monkeypatch):
    """A part that missed its tick must not pass for the new state in the next."""
    clock = Clock(monkeypatch)
    first = Arrivals(clock, 100.03 + 0.1 * np.arange(40))
    second_times = 100.031 + 0.1 * np.arange(40)
    second_times[20] += 0.05
    second = Arrivals(clock, second_times)
    clock.now = 100.031
    lock = PhaseLock(Pacer(0.1, threading.Event()), 0.02,
                     lambda: min(first.newest(), second.newest()), window=8)
    lock.arrived = Arrivals(clock, np.concatenate([first.times, second.times]))
    assert lock.wait()
    lock.restart()
    fresh = []
    for _ in range(35):
        assert lock.wait()
        fresh.append(lock.track(min(first.newest(), second.newest())))
        last = clock.now - np.array([first.newest(), second.newest()])
        assert last.max() < 0.03 or not fresh[-1]
    assert fresh.count(False) == 1


def test_a_slower_state_is_not_waited_for(monkeypatch):
    ticks, _ = lock_on(Clock(monkeypatch), 100.03 + 0.3 * np.arange(60))
    np.testing.assert_allclose(np.diff(ticks[20:]), 0.1, atol=1e-9)


def test_a_faster_state_does_not_move_the_grid(monkeypatch):
    ticks, _ = lock_on(Clock(monkeypatch), 100.03 + 0.001 * np.arange(5000))
    np.testing.assert_allclose(np.diff(ticks), 0.1, atol=0.021)
    np.testing.assert_allclose(np.diff(ticks[10:]), 0.1, atol=1e-9)


def test_after_losing_the_state_nothing_is_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0.1, threading.Event())
    lock = PhaseLock(pacer, 0.2, lambda: 100.0)
    lock.restart()
    lock.lose()
    assert lock.wait()
    assert clock.now == pytest.approx(100.12)


def test_sleep_until_keeps_time_and_hears_stop():
    stop = threading.Event()
    deadline = time.monotonic() + 0.02
    assert sleep_until(deadline, stop)
    assert 0.0 <= time.monotonic() - deadline < 0.5
    threading.Timer(0.02, stop.set).start()
    begin = time.monotonic()
    assert not sleep_until(begin + 20.0, stop)
    assert time.monotonic() - begin < 5.0


def test_statistics():
    statistics = LatencyStatistics(window=100)
    assert statistics.summary_us() == {}
    for value in range(1, 101):
        statistics.add(value * 1e-6)
    summary = statistics.summary_us()
    assert summary == pytest.approx({'p50': 50.5, 'p99': 99.01, 'max': 100.0})


def test_statistics_forget_what_left_the_window():
    statistics = LatencyStatistics(window=10)
    for value in [1.0] * 10 + [2e-6] * 10:
        statistics.add(value)
    assert statistics.summary_us()['max'] == pytest.approx(2.0)
    assert statistics.count == 20
