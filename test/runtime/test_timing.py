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


def lock_on(clock, pacer, arrivals, phase=0.2):
    """Tick on a stream of arrival times; return the delay from arrival to each tick."""
    lock, delays, index = PhaseLock(pacer, phase, window=8), [], 0
    lock.restart(arrivals[0])
    while pacer.wait():
        while index + 1 < len(arrivals) and arrivals[index + 1] <= clock.now:
            index += 1
        if index + 1 == len(arrivals):
            return np.array(delays)
        delays.append(clock.now - arrivals[index])
        lock.track(arrivals[index])


def test_ticks_follow_the_arrival_of_the_state(monkeypatch):
    clock = Clock(monkeypatch)
    delays = lock_on(clock, Pacer(0.1, threading.Event()), 100.03 + 0.1 * np.arange(50))
    np.testing.assert_allclose(delays, 0.02, atol=1e-9)


@pytest.mark.parametrize('late_s', [0.05, 0.079])
def test_a_late_first_arrival_is_made_good(monkeypatch, late_s):
    clock = Clock(monkeypatch)
    arrivals = 100.03 + 0.1 * np.arange(60)
    arrivals[0] += late_s
    delays = lock_on(clock, Pacer(0.1, threading.Event()), arrivals)
    np.testing.assert_allclose(delays[10:], 0.02, atol=1e-9)


@pytest.mark.parametrize('drift', [1e-4, -1e-4])
def test_two_clocks_may_drift_apart(monkeypatch, drift):
    clock = Clock(monkeypatch)
    arrivals = 100.03 + 0.1 * (1 + drift) * np.arange(4000)
    delays = lock_on(clock, Pacer(0.1, threading.Event()), arrivals)
    assert delays.max() < 0.1 + 1e-6
    assert np.mean(delays < 0.03) > 0.98


def test_a_faster_state_does_not_move_the_grid(monkeypatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0.1, threading.Event())
    lock_on(clock, pacer, 100.03 + 0.001 * np.arange(5000))
    assert (pacer.deadline_s - 100.05) % 0.1 == pytest.approx(0.0, abs=1e-6) \
        or (pacer.deadline_s - 100.05) % 0.1 == pytest.approx(0.1, abs=1e-6)


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
