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

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from dpg_robot import garbage
from dpg_robot.runtime import timing
from dpg_robot.runtime.timing import (
    Deadlines,
    LatencyStatistics,
    Pacer,
    PhaseLock,
    sleep_until,
    SteadyClock,
)


class Clock:
    """A clock that only moves when told, in place of the module's time."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(timing.time, 'monotonic', lambda: self.now)
        monkeypatch.setattr(timing, 'sleep_until', self._sleep_until)

    def advance(self, seconds):
        self.now += seconds

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
    """A stream of arrivals; listening to it moves the clock."""

    def __init__(self, clock, times):
        self.clock, self.times = clock, np.sort(times)

    def newest(self):
        return self.times[max(0, np.searchsorted(self.times, self.clock.now, 'right') - 1)]

    def listen(self, timeout):
        following = self.times[np.searchsorted(self.times, self.clock.now, 'right')]
        # As in life, a wait ends a little late.
        self.clock.now = min(self.clock.now + timeout + 1e-9, following)


def locked(clock, arrivals, arrival=None, rehearse=lambda: None):
    """Return a lock whose first tick was now, and its deadlines."""
    deadlines = Deadlines(0.1, SteadyClock())
    deadlines.restart(clock.now)
    lock = PhaseLock(deadlines, arrivals.listen, arrival or (lambda: 2 * (arrivals.newest(),)),
                     lambda: False, rehearse)
    assert lock.wait()
    lock.restart()
    return lock, deadlines


def lock_on(clock, times):
    """Tick on a stream of arrival times; return when, the age of its state, and misses."""
    arrivals = Arrivals(clock, times)
    clock.now = arrivals.times[0]
    (lock, deadlines), ticks, ages = locked(clock, arrivals), [], []
    while clock.now < arrivals.times[-1] - 0.3:
        assert lock.wait()
        ticks.append(clock.now)
        ages.append(clock.now - arrivals.newest())
        lock.track()
    return np.array(ticks), np.array(ages), deadlines.num_missed


def test_ticks_follow_the_arrival_of_the_state(monkeypatch):
    jitter = np.random.default_rng(0).uniform(0.0, 0.005, 50)
    ticks, ages, missed = lock_on(Clock(monkeypatch), 100.03 + 0.1 * np.arange(50) + jitter)
    np.testing.assert_allclose(ages, 0.0, atol=1e-8)
    assert missed == 0
    assert np.diff(ticks).min() > 0.09


@pytest.mark.parametrize('late_s', [0.01, 0.04, 0.05, 0.079])
def test_a_late_first_arrival_is_made_good(monkeypatch, late_s):
    times = 100.03 + 0.1 * np.arange(100)
    times[0] += late_s
    ticks, ages, missed = lock_on(Clock(monkeypatch), times)
    assert ages[25:].max() < 0.001
    np.testing.assert_allclose(ages[60:], 0.0, atol=1e-8)
    assert np.diff(ticks).min() > 0.045 and np.diff(ticks).mean() > 0.098
    assert missed == 0


def leads(clock, times):
    """Return how far ahead of its state each tick was ready."""
    arrivals, ahead = Arrivals(clock, times), []
    clock.now = arrivals.times[0]
    lock, deadlines = locked(clock, arrivals)
    for _ in times[2:]:
        assert lock.wait()
        ahead.append(clock.now - deadlines.deadline_s)
        lock.track()
    return np.array(ahead)


def test_a_tick_is_ready_just_before_a_regular_state(monkeypatch):
    times = 100.03 + 0.1 * np.arange(100)
    times[60] += 0.02
    ahead = leads(Clock(monkeypatch), times)
    assert ahead[0] == pytest.approx(0.005)
    assert (np.diff(ahead[:40]) <= 1e-9).all()
    np.testing.assert_allclose(ahead[[40, 58, 97]], 0.0005, atol=2e-5)
    assert 0.001 < ahead[60] < 0.005  # ahead by more behind a late one, and then by less again


def test_a_tick_is_ready_long_before_a_state_that_keeps_no_time(monkeypatch):
    jitter = np.random.default_rng(1).uniform(-0.003, 0.003, 200)
    ahead = leads(Clock(monkeypatch), 100.03 + 0.1 * np.arange(200) + jitter)
    assert ahead[100:].mean() == pytest.approx(0.005, abs=0.0005)
    assert ahead[100:].min() > 1e-6  # none had to wait


@pytest.mark.parametrize('drift', [1e-4, -1e-4, 0.015, -0.015])
def test_two_clocks_may_drift_apart(monkeypatch, drift):
    ticks, ages, missed = lock_on(
        Clock(monkeypatch), 100.03 + 0.1 * (1 + drift) * np.arange(4000))
    assert ages.max() < 0.01 + 1e-6
    np.testing.assert_allclose(np.diff(ticks)[100:], 0.1 * (1 + drift), atol=1e-6)
    assert missed == 0


@pytest.mark.parametrize('late_s', [0.015, 0.044])
def test_one_late_state_is_waited_for(monkeypatch, late_s):
    times = 100.03 + 0.1 * np.arange(40)
    times[20] += late_s
    ticks, ages, _ = lock_on(Clock(monkeypatch), times)
    np.testing.assert_allclose(ages, 0.0, atol=1e-8)
    assert ticks[19] == pytest.approx(102.03 + late_s)
    due = 100.13 + 0.1 * np.arange(len(ticks))
    np.testing.assert_allclose(np.delete(ticks - due, 19), 0.0, atol=1e-8)


@pytest.mark.parametrize('late_s', [0.047, 0.06, None])
def test_a_lost_state_delays_one_tick_by_half_of_the_period(monkeypatch, late_s):
    """Less the twentieth by which it is ready for the state before that should be there."""
    times = 100.03 + 0.1 * np.arange(40)
    times = np.delete(times, 20) if late_s is None else times + late_s * (np.arange(40) == 20)
    ticks, ages, missed = lock_on(Clock(monkeypatch), times)
    due = 100.13 + 0.1 * np.arange(len(ticks))
    assert ticks[19] - due[19] == pytest.approx(0.045)
    assert ages[19] == pytest.approx(0.145)
    np.testing.assert_allclose(np.delete(ticks - due, 19), 0.0, atol=1e-8)
    assert missed == 0


def test_half_a_state_is_no_new_state(monkeypatch):
    """A part that missed its tick must not pass for the new state in the next."""
    clock = Clock(monkeypatch)
    first = Arrivals(clock, 100.03 + 0.1 * np.arange(40))
    second_times = 100.031 + 0.1 * np.arange(40)
    second_times[20] += 0.05
    second = Arrivals(clock, second_times)
    both = Arrivals(clock, np.concatenate([first.times, second.times]))

    def arrival():
        times = first.newest(), second.newest()
        return min(times), max(times)
    clock.now = 100.031
    lock, _ = locked(clock, both, arrival)
    fresh, ages = [], []
    for _ in range(35):
        assert lock.wait()
        fresh.append(lock.track())
        ages.append(clock.now - arrival()[0])
    assert fresh.count(False) == 1
    np.testing.assert_allclose(np.delete(ages, fresh.index(False)), 0.001, atol=1e-8)


def test_parts_half_a_period_apart_do_not_hold_up_the_ticks(monkeypatch):
    clock = Clock(monkeypatch)
    parts = [Arrivals(clock, 100.03 + shift + 0.1 * np.arange(200)) for shift in (0.0, 0.05)]
    both = Arrivals(clock, np.concatenate([part.times for part in parts]))

    def arrival():
        times = [part.newest() for part in parts]
        return min(times), max(times)
    clock.now = 100.1
    (lock, deadlines), ticks, held, fresh = locked(clock, both, arrival), [], [], []
    for _ in range(150):
        assert lock.wait()
        ticks.append(clock.now)
        held.append(clock.now - deadlines.deadline_s)
        fresh.append(lock.track())
    np.testing.assert_allclose(np.diff(ticks[20:]), 0.1, atol=1e-6)
    np.testing.assert_allclose(held[20:], 0.01, atol=1e-6)  # just behind where one was awaited
    assert fresh.count(False) <= 1


@pytest.mark.parametrize('periods, settled', [(2, 30), (3, 20)])
def test_a_slower_state_is_not_waited_for(monkeypatch, periods, settled):
    ticks, ages, _ = lock_on(Clock(monkeypatch), 100.03 + 0.1 * periods * np.arange(60))
    np.testing.assert_allclose(np.diff(ticks[settled:]), 0.1, atol=1e-8)
    assert ages[settled:].min() < 0.01  # a tick is near, when one comes


@pytest.mark.parametrize('drift', [0.0, 1e-4, -1e-4])
def test_where_many_states_are_lost_the_others_do_not_wait(monkeypatch, drift):
    lost = np.random.default_rng(0).random(1000) < 0.5
    lost[:2] = False
    times = 100.03 + 0.1 * (1 + drift) * np.arange(1000)
    _, ages, missed = lock_on(Clock(monkeypatch), times[~lost])
    fresh = ages[60:][ages[60:] < 0.099]
    assert fresh.max() < 0.011 and len(fresh) > 400
    assert missed == 0


@pytest.mark.parametrize('period_s', [0.001, 0.0301, 0.05])
def test_a_faster_state_does_not_move_the_grid(monkeypatch, period_s):
    ticks, ages, _ = lock_on(Clock(monkeypatch), np.arange(100.03, 110.0, period_s))
    np.testing.assert_allclose(ticks - ticks[0], 0.1 * np.arange(len(ticks)), atol=0.005)
    assert ages.max() < period_s


@pytest.mark.parametrize('period_s', [0.095, 0.097])
def test_a_slightly_faster_state_hardly_moves_the_grid(monkeypatch, period_s):
    """Nor does it leave each tick with a state as old as it can be."""
    ticks, ages, _ = lock_on(Clock(monkeypatch), np.arange(100.03, 300.0, period_s))
    assert 0.1 * 0.98 - 1e-6 <= np.diff(ticks)[100:].mean() <= 0.1
    assert np.median(ages[100:]) < 0.5 * period_s


def test_after_losing_the_state_nothing_is_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    arrivals = Arrivals(clock, [100.0, 200.0])
    lock, _ = locked(clock, arrivals, lambda: (100.0, 100.0))
    lock.lose()
    assert lock.wait()
    assert clock.now == pytest.approx(100.095)


def test_each_tick_that_waits_for_a_state_is_rehearsed_before(monkeypatch):
    clock, rehearsed = Clock(monkeypatch), []
    arrivals = Arrivals(clock, 100.0 + 0.1 * np.arange(20))
    lock, deadlines = locked(clock, arrivals, rehearse=lambda: rehearsed.append(clock.now))
    assert rehearsed == []
    for count in range(1, 4):
        assert lock.wait() and len(rehearsed) == count
        assert rehearsed[-1] == pytest.approx(deadlines.deadline_s - 0.0001, abs=1e-6)
        assert lock.track()
    clock.now = deadlines.deadline_s + 0.1 - 0.00005  # no time for it
    assert lock.wait()
    assert len(rehearsed) == 3


@pytest.mark.parametrize('age_s', [0.0, 0.04, 0.06, 0.097, 0.12, 0.74])
def test_a_grid_that_begins_on_an_old_state_counts_no_misses(monkeypatch, age_s):
    clock = Clock(monkeypatch)
    arrivals = Arrivals(clock, [clock.now - age_s, 1000.0])
    lock, deadlines = locked(clock, arrivals, lambda: 2 * (arrivals.times[0],))
    began_s = clock.now
    lock.wait()
    assert deadlines.num_missed == 0
    expected_s = deadlines.deadline_s + 0.005 - began_s  # a twentieth ahead of a state
    assert 0.0 <= expected_s <= 0.1
    periods = (expected_s + age_s) / 0.1
    assert periods == pytest.approx(round(periods))


@pytest.mark.parametrize('age_s', [0.0, 0.03, 0.06, 0.09, 0.097, 0.0999])
def test_the_state_behind_a_first_command_has_a_tick_however_soon_it_comes(monkeypatch, age_s):
    clock = Clock(monkeypatch)
    arrivals = Arrivals(clock, clock.now - age_s + 0.1 * np.arange(20))
    lock, deadlines = locked(clock, arrivals)
    for state_s in arrivals.times[1:10]:
        lock.wait()
        assert clock.now == pytest.approx(state_s, abs=1e-6)
        assert lock.track()
    assert deadlines.num_missed == 0


class Mailbox(Arrivals):
    """What comes while nobody listens is taken, and stamped, when somebody does."""

    def __init__(self, clock, times):
        super().__init__(clock, times)
        self.taken = self.taken_s = self.newest()

    def listen(self, timeout):
        if self.newest() == self.taken:
            super().listen(timeout)
        if self.newest() != self.taken:
            self.taken, self.taken_s = self.newest(), self.clock.now


@pytest.mark.parametrize('late_s', [0.0, 0.012, 0.03])
@pytest.mark.parametrize('takes_s', [0.001, 0.0015, 0.005, 0.01, 0.02])
def test_no_state_waits_for_a_rehearsal(monkeypatch, takes_s, late_s):
    clock, ages = Clock(monkeypatch), []
    times = 100.0 + 0.1 * np.arange(100)
    times[0] += late_s
    clock.now = times[0]
    arrivals = Mailbox(clock, times)
    lock, _ = locked(clock, arrivals, lambda: 2 * (arrivals.taken_s,),
                     lambda: clock.advance(takes_s))
    for _ in range(90):
        assert lock.wait()
        ages.append(clock.now - arrivals.newest())
        lock.track()
    np.testing.assert_allclose(ages[40:], 0.0, atol=1e-8)


@pytest.mark.parametrize('takes_s', [0.03, 0.06, 0.095])
def test_what_takes_long_is_not_rehearsed(monkeypatch, takes_s):
    """It would have to begin long before its tick, or states would wait for its end."""
    clock, rehearsed, ages = Clock(monkeypatch), [], []

    def rehearse():
        rehearsed.append(clock.now)
        clock.advance(takes_s)
    arrivals = Mailbox(clock, 100.0 + 0.1 * np.arange(100))
    lock, _ = locked(clock, arrivals, lambda: 2 * (arrivals.taken_s,), rehearse)

    def tick(count):
        for _ in range(count):
            assert lock.wait()
            ages.append(clock.now - arrivals.newest())
            lock.track()
    tick(80)
    assert 1 <= len(rehearsed) <= 20
    np.testing.assert_allclose(ages[40:], 0.0, atol=1e-8)
    lock.restart()  # it may be another policy
    tick(1)
    assert rehearsed[-1] > 107.9


def test_a_rehearsal_is_tried_again_after_a_while(monkeypatch):
    clock, rehearsed = Clock(monkeypatch), []

    def rehearse():
        rehearsed.append(clock.now)
        clock.advance(0.06 if clock.now < 105.0 else 0.001)
    arrivals = Mailbox(clock, 100.0 + 0.1 * np.arange(1200))
    lock, _ = locked(clock, arrivals, lambda: 2 * (arrivals.taken_s,), rehearse)
    for _ in range(1100):
        assert lock.wait()
        lock.track()
    count = sum(time_s < 150.0 for time_s in rehearsed)
    assert count <= 20 and len(rehearsed) - count > 550


def test_one_rehearsal_that_was_kept_from_its_core_does_not_end_them(monkeypatch):
    clock, rehearsed, ages = Clock(monkeypatch), [], []

    def rehearse():
        rehearsed.append(clock.now)
        clock.advance(0.06 if len(rehearsed) == 50 else 0.001)
    arrivals = Mailbox(clock, 100.0 + 0.1 * np.arange(100))
    lock, deadlines = locked(clock, arrivals, lambda: 2 * (arrivals.taken_s,), rehearse)
    for _ in range(90):
        assert lock.wait()
        ages.append(clock.now - arrivals.newest())
        lock.track()
    assert len(rehearsed) == 90
    # A state that came meanwhile, nobody knows when, does not move the grid.
    np.testing.assert_allclose(np.delete(ages, 49)[10:], 0.0, atol=1e-8)
    assert ages[49] == pytest.approx(0.06, abs=0.003)


def test_a_state_that_is_there_is_used_though_its_deadline_is_over(monkeypatch):
    """A report that took too long is no reason to leave a state out."""
    clock = Clock(monkeypatch)
    arrivals = Arrivals(clock, 100.0 + 0.1 * np.arange(20))
    lock, deadlines = locked(clock, arrivals)
    assert lock.wait() and lock.track()
    clock.now += 0.11
    assert lock.wait() and lock.track()
    assert (clock.now, deadlines.num_missed) == (pytest.approx(100.21), 0)
    clock.now += 0.2
    assert lock.wait()
    assert (clock.now, deadlines.num_missed) == (pytest.approx(100.41), 1)


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


def test_what_was_set_aside_and_died_is_collected():
    """A node that is configured again and again must not keep every policy it ever had."""
    class Part:
        pass
    part = Part()
    part.itself, dead = part, weakref.ref(part)
    try:
        garbage.quiet_garbage_collector()
        del part
        garbage.collect_garbage()
        assert dead() is not None
        garbage.quiet_garbage_collector()
        assert dead() is None
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_restart_waits_for_states_again(monkeypatch):
    clock = Clock(monkeypatch)
    arrivals = Arrivals(clock, [100.0, *(103.05 + 0.1 * np.arange(10)), 104.07])
    lock, _ = locked(clock, arrivals)
    for _ in range(31):  # silence: states are not waited for any more
        lock.wait()
        lock.track()
    lock.lose()
    clock.now = 104.0
    lock.restart()  # the next one is late
    assert lock.wait()
    assert clock.now == pytest.approx(104.07)


def test_statistics_of_a_window_that_is_not_full():
    statistics = LatencyStatistics(window=100)
    for value in (1.0, 2.0, 3.0):
        statistics.add(value * 1e-6)
    assert statistics.summary_us()['p50'] == pytest.approx(2.0)
