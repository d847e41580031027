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

"""Pacing on absolute deadlines of the steady clock, and latency statistics."""

from __future__ import annotations

import threading
import time
from typing import Callable

import numpy as np

# Waking from an event takes up to a millisecond now and then, from a sleep a fifth of that; an
# event can be interrupted, so it has the long part of a wait and the sleep the last part.
_SLEEP_S = 0.002
# How long a tick waits for a late state, as a part of the period.
_GRACE = 0.25


class SteadyClock:
    """Real time that no one sets; what a robot's loop runs on.

    ``num_jumps`` counts how often the clock was set.
    """

    num_jumps = 0

    def now(self) -> float:
        """Return the time [s]."""
        return time.monotonic()

    def sleep_until(self, time_s: float, stop: threading.Event) -> bool:
        """Sleep until a time, or until ``stop`` is set; return False if it was."""
        return sleep_until(time_s, stop)

    def wait(self, event: threading.Event, until_s: float) -> bool:
        """Wait for an event, but no longer than until a time; return whether it was set."""
        return event.wait(max(0.0, until_s - self.now()))

    def close(self) -> None:
        """Nothing to end."""


class Pacer:
    """Wake at deadlines that lie a fixed period apart.

    A period that the work overran is skipped, never made up for: two ticks in quick succession
    would give the robot two commands for one state. ``num_missed`` counts skipped deadlines, and
    ``deadline_s`` is the last one waited for, on the clock.
    """

    def __init__(self, period_s: float, stop: threading.Event, clock: SteadyClock | None = None):
        """Start a grid now.

        :param stop: ends every wait.
        :param clock: tells the time and sleeps; the steady clock if not given.
        """
        self.period_s = period_s
        self.num_missed = 0
        self.clock = clock or SteadyClock()
        self.deadline_s = self.clock.now()
        self._stop = stop

    def restart(self, first_s: float) -> None:
        """Begin a new grid of deadlines.

        :param first_s: its first deadline, on the clock.
        """
        self.deadline_s = first_s - self.period_s

    def wait(self) -> bool:
        """Sleep until the next deadline.

        :return: False if ``stop`` was set.
        """
        self.deadline_s += self.period_s
        late = self.clock.now() - self.deadline_s
        if late > 0:
            skipped = int(late / self.period_s) + 1
            self.num_missed += skipped
            self.deadline_s += skipped * self.period_s
        return self.sleep_until(self.deadline_s)

    def sleep_until(self, time_s: float) -> bool:
        """Sleep until a time of the clock; return False if ``stop`` was set."""
        return self.clock.sleep_until(time_s, self._stop)


class PhaseLock:
    """Keep the ticks a small part of a period behind the arrival of the state.

    Where a robot publishes its state at the control rate, a free-running grid falls anywhere in
    its period, so that commands rest on a state up to one period old, and may miss the robot's
    next step. Locked, each tick uses the state that has just arrived.

    A state that comes after its deadline is worth a short wait, unless the state regularly
    comes less often than the control rate. The first arrival may have been a late one, and two
    machines' clocks drift apart; so the grid moves earlier if over a window of ticks even the
    latest state came too early, and later if even the earliest came too late.
    """

    def __init__(self, pacer: Pacer, phase: float, arrival: Callable[[], float],
                 window: int = 32):
        """Steer a pacer.

        :param phase: wanted delay from arrival to tick, as a part of the period, in [0, 1).
        :param arrival: returns since when all parts of the newest state have been there [s of
            the pacer's clock]. A state is new if this is later than the last tick.
        """
        self.arrived = threading.Event()
        self._pacer, self._arrival = pacer, arrival
        self._delay_s, self._grace_s = phase * pacer.period_s, _GRACE * pacer.period_s
        self._window = window
        self._is_locked, self._follows, self._late_s = False, True, 0.0
        self._tick_s = self._last_tick_s = float('-inf')
        self._num_jumps = pacer.clock.num_jumps
        self._clear()

    def _clear(self):
        self._num = self._num_fresh = 0
        self._least_delay_s = self._least_late_s = float('inf')

    def wait(self) -> bool:
        """Sleep until the next tick; set ``arrived`` at each arrival to end the wait for it.

        :return: False if the pacer was stopped.
        """
        is_running = self._pacer.wait()
        self._late_s = 0.0
        if is_running and self._is_locked and self._follows and not self._clock_was_set():
            is_running = self._wait_for_state(self._pacer.deadline_s + self._grace_s)
        if self._clock_was_set():
            self._begin_anew()
        self._last_tick_s, self._tick_s = self._tick_s, self._pacer.clock.now()
        return is_running

    def _wait_for_state(self, last_s):
        while self._arrival() <= self._tick_s and not self._clock_was_set():
            self._late_s = self._grace_s
            self.arrived.clear()
            # Look again: it may have arrived just before the event was cleared.
            if self._arrival() <= self._tick_s and \
                    not self._pacer.clock.wait(self.arrived, last_s):
                return True
        tick_s = min(self._arrival() + self._delay_s, last_s)
        if self._late_s:
            self._late_s = tick_s - self._pacer.deadline_s
        return self._pacer.sleep_until(tick_s)

    def restart(self) -> None:
        """Begin the grid anew, one period after the tick that the newest state would have had."""
        self._is_locked = self._follows = True
        self._pacer.restart(self._arrival() + self._delay_s + self._pacer.period_s)
        self._clear()

    def lose(self) -> None:
        """Wait for no state from now on, until the next restart."""
        self._is_locked = False

    def _clock_was_set(self):
        return self._pacer.clock.num_jumps != self._num_jumps

    def _begin_anew(self):
        self._num_jumps = self._pacer.clock.num_jumps
        self._is_locked = False
        self._tick_s = self._last_tick_s = float('-inf')
        self._pacer.restart(self._pacer.clock.now() + self._pacer.period_s)

    def track(self, used_s: float) -> bool:
        """Take note of the arrival time of the state that the last tick used.

        :return: whether it is a new one.
        """
        is_fresh = used_s > self._last_tick_s
        self._num += 1
        self._num_fresh += is_fresh
        self._least_delay_s = min(self._least_delay_s, self._pacer.deadline_s - used_s)
        self._least_late_s = min(self._least_late_s, self._late_s)
        if self._num == self._window:
            self._follows = self._num_fresh > 0.75 * self._window
            self._move_grid()
            self._clear()
        return is_fresh

    def _move_grid(self):
        period_s, least_s = self._pacer.period_s, 0.02 * self._pacer.period_s
        excess = self._least_delay_s - self._delay_s
        if self._least_late_s > least_s:
            self._pacer.deadline_s += self._least_late_s
        elif least_s < excess < period_s:
            # A grid has the same phase if moved by a whole period: go the short way round.
            self._pacer.deadline_s -= excess if excess < 0.5 * period_s else excess - period_s


def sleep_until(deadline_s: float, stop: threading.Event) -> bool:
    """Sleep until a time of ``time.monotonic``, or until ``stop`` is set.

    :return: False if ``stop`` was set.
    """
    long_part = deadline_s - time.monotonic() - _SLEEP_S
    if long_part > 0:
        stop.wait(long_part)
    if not stop.is_set():
        time.sleep(max(0.0, deadline_s - time.monotonic()))
    return not stop.is_set()


class LatencyStatistics:
    """Percentiles over the newest samples, kept in a ring without allocating."""

    def __init__(self, window: int = 10000):
        """Keep this many samples."""
        self._ring = np.zeros(window)
        self.count = 0

    def add(self, seconds: float) -> None:
        """Add one latency [s]."""
        self._ring[self.count % len(self._ring)] = seconds
        self.count += 1

    def summary_us(self) -> dict[str, float]:
        """Return p50, p99 and max of the window in microseconds; empty without samples."""
        if not self.count:
            return {}
        samples = self._ring[:self.count]
        p50, p99, largest = np.percentile(samples, (50, 99, 100)) * 1e6
        return {'p50': float(p50), 'p99': float(p99), 'max': float(largest)}
