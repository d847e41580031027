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

"""Pacing on absolute deadlines, ticks on the arrival of the state, and latency statistics."""

from __future__ import annotations

import math
import threading
import time
from typing import Callable

import numpy as np

# Waking from an event takes up to a millisecond now and then, from a sleep a fifth of that; an
# event can be interrupted, so it has the long part of a wait and the sleep the last part.
_SLEEP_S = 0.002
# How far ahead of the state a tick is ready for it: so many times what states come early or late
# by on average, at least so long [s], and at most this part of the period. While a tick waits,
# other programs have the processor's caches; while it is not ready, states wait.
_LEADS, _SHORTEST_LEAD_S, _LONGEST_LEAD = 4.0, 0.0005, 0.05
# How long a late state is waited for, which is still worth a command before the next is due; a
# part of the period.
_GRACE = 0.45
# How far the parts of one state may lie apart, and how long it may have been there when its tick
# is due; parts of the period.
_SPREAD = 0.25
# How much of its error a deadline makes good at once, and how far one state may move it, as a
# part of the period. A robot whose period is another one by less than that is followed.
_GAIN, _LARGEST_STEP = 0.125, 0.02
# Wait for states if most of so many ticks had a new one.
_MEMORY_TICKS, _MOST = 32.0, 0.75
# How long before its deadline a tick's rehearsal ends [s]: a state that comes during it is noticed
# only behind it. Where it takes longer than this part of the period, there is none for so many
# ticks.
_REHEARSED_S, _LONGEST_REHEARSAL, _REST_TICKS = 0.0001, 0.25, 500
# No wait lasts longer without a look at whether to go on [s].
_LOOK_S = 0.1


class SteadyClock:
    """Real time that no one sets; what a robot's loop runs on.

    ``num_jumps`` counts how often the clock was set.
    """

    num_jumps = 0

    def now(self) -> float:
        """Return the time [s]."""
        return time.monotonic()

    def patience_s(self, until_s: float) -> float:
        """Return how long to wait for a time before looking at the clock again [real s]."""
        return until_s - self.now()

    def close(self) -> None:
        """Nothing to end."""


class Deadlines:
    """Times a fixed period apart.

    A period that the work overran is skipped, never made up for: two ticks in quick succession
    would give the robot two commands for one state. ``num_missed`` counts skipped deadlines, and
    ``deadline_s`` is the newest one, on the clock.
    """

    def __init__(self, period_s: float, clock: SteadyClock):
        """Start a grid now."""
        self.period_s, self.clock = period_s, clock
        self.num_missed = 0
        self.deadline_s = clock.now()

    def restart(self, first_s: float) -> None:
        """Begin a new grid of deadlines.

        :param first_s: its first deadline, on the clock.
        """
        self.deadline_s = first_s - self.period_s

    def advance(self, grace_s: float = 0.0) -> None:
        """Go on to the next deadline that is not over by more than ``grace_s``."""
        self.deadline_s += self.period_s
        late = self.clock.now() - self.deadline_s - grace_s
        if late > 0:
            skipped = int(late / self.period_s) + 1
            self.num_missed += skipped
            self.deadline_s += skipped * self.period_s


class Pacer(Deadlines):
    """Wake at deadlines of the steady clock."""

    def __init__(self, period_s: float, stop: threading.Event):
        """Start a grid now.

        :param stop: ends every wait.
        """
        super().__init__(period_s, SteadyClock())
        self._stop = stop

    def wait(self) -> bool:
        """Sleep until the next deadline.

        :return: False if ``stop`` was set.
        """
        self.advance()
        return sleep_until(self.deadline_s, self._stop)


class PhaseLock:
    """Tick as soon as the state is there, once per period, and without it at the latest then.

    Where a robot publishes its state at the control rate, a free-running grid falls anywhere in
    its period, so that commands rest on a state up to one period old, and may miss the robot's
    next step. A fixed delay behind the state would have to be as long as the latest of states, and
    every command would pay for it. So each tick waits from its deadline on for the state, but no
    longer than half of the period, and where states regularly come less often than the control
    rate until just behind the place of one. The rate is that of the deadlines, whatever arrives,
    but for what these follow.

    Deadlines lie a little ahead of the state. As the first arrival may have been a late one, and
    two machines' clocks drift apart, they follow it slowly, unless states come faster than ticks.
    """

    def __init__(self, deadlines: Deadlines, listen: Callable[[float], None],
                 arrival: Callable[[], tuple[float, float]], is_ended: Callable[[], bool],
                 rehearse: Callable[[], None] = lambda: None):
        """Steer deadlines.

        :param listen: takes what arrives; returns after an arrival or so many real seconds.
        :param arrival: returns when the first and the last part of the newest state arrived [s of
            the deadlines' clock].
        :param is_ended: ends every wait.
        :param rehearse: called shortly before a tick that waits for a state.
        """
        self._deadlines, self._listen, self._arrival = deadlines, listen, arrival
        self._is_ended, self._rehearse = is_ended, rehearse
        self._longest_lead_s, self._grace_s, self._spread_s = (
            part * deadlines.period_s for part in (_LONGEST_LEAD, _GRACE, _SPREAD))
        self._lead_s = self._longest_lead_s
        self._is_locked, self._freshness, self._num_states = False, 1.0, 0
        self._rehearsal_s, self._num_rests, self._is_timed = 0.0, 0, True
        self._tick_s = self._last_tick_s = self._state_s = float('-inf')
        self._num_jumps = deadlines.clock.num_jumps

    def wait(self) -> bool:
        """Wait until the next tick is due.

        :return: False if it was ended.
        """
        deadlines = self._deadlines
        grace_s, is_awaited = 0.0, self._is_awaited
        if is_awaited:
            grace_s = self._lead_s + self._grace_s
        elif self._is_locked:  # states often fail to come: one that does comes just before
            grace_s = 2.0 * self._lead_s
        deadlines.advance(grace_s)
        self._num_states, self._is_timed = 0, True
        early_s = deadlines.deadline_s - _REHEARSED_S - self._rehearsal_s
        self._num_rests = max(0, self._num_rests - 1)
        if is_awaited and not self._num_rests and deadlines.clock.now() < early_s:
            self.listen_until(early_s)
            self._time_rehearsal()
        self.listen_until(deadlines.deadline_s)
        self.listen_until(deadlines.deadline_s + grace_s,
                          self._has_come if is_awaited else lambda: False)
        if self._clock_was_set():
            self._begin_anew()
        self._last_tick_s, self._tick_s = self._tick_s, deadlines.clock.now()
        return not self._is_ended()

    @property
    def _is_awaited(self):
        return self._is_locked and self._freshness > _MOST

    def _time_rehearsal(self):
        began_s = time.monotonic()
        self._rehearse()
        taken_s = time.monotonic() - began_s
        # One that was kept from its core says little about the next.
        longest_s = _LONGEST_REHEARSAL * self._deadlines.period_s
        self._rehearsal_s += _GAIN * (min(taken_s, 2.0 * longest_s) - self._rehearsal_s)
        if self._rehearsal_s > longest_s:
            self._rehearsal_s, self._num_rests = longest_s, _REST_TICKS
        # What is there now came when nobody looked, at the latest now.
        num_states = self._num_states
        self._take(0.0)
        self._is_timed = self._num_states == num_states

    def listen_until(self, time_s: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Take what arrives until a time of the clock, or until it is enough."""
        clock = self._deadlines.clock
        while not (is_enough() or self._is_ended() or self._clock_was_set()):
            if clock.now() >= time_s:
                return
            self._take(min(max(0.0, clock.patience_s(time_s)), _LOOK_S))

    def _take(self, timeout_s):
        self._listen(timeout_s)
        state_s, _ = self._arrival()
        self._num_states += self._tick_s < state_s != self._state_s
        self._state_s = state_s

    def _has_come(self):
        # A state long before its deadline is one that was late for the last: the next is due.
        return self._is_whole(max(self._tick_s, self._deadlines.deadline_s - self._spread_s))

    def _is_whole(self, since_s):
        """Return whether all parts of a state came since a time, and are not those of two."""
        first_s, last_s = self._arrival()
        return first_s > since_s and last_s - first_s < self._spread_s

    def restart(self) -> None:
        """Begin the grid anew, for the state that follows the newest one."""
        self._is_locked, self._freshness = True, 1.0
        period_s = self._deadlines.period_s
        expected_s = self._arrival()[1] + period_s
        # Behind a state that came long ago, whole periods on: none was missed.
        late_s = self._deadlines.clock.now() - expected_s
        expected_s += max(0, math.ceil(late_s / period_s)) * period_s
        self._lead_s, self._rehearsal_s, self._num_rests = self._longest_lead_s, 0.0, 0
        self._deadlines.restart(expected_s - self._lead_s)

    def lose(self) -> None:
        """Wait for no state from now on, until the next restart."""
        self._is_locked = False

    def _clock_was_set(self):
        return self._deadlines.clock.num_jumps != self._num_jumps

    def _begin_anew(self):
        self._num_jumps = self._deadlines.clock.num_jumps
        self._is_locked = False
        self._tick_s = self._last_tick_s = float('-inf')
        self._deadlines.restart(self._deadlines.clock.now() + self._deadlines.period_s)

    def track(self) -> bool:
        """Follow the state that the last tick used.

        :return: whether it is a new one.
        """
        is_whole = self._is_whole(self._last_tick_s)
        self._freshness += (is_whole - self._freshness) / _MEMORY_TICKS
        if is_whole and self._num_states == 1:
            self._steer()
        return self._arrival()[0] > self._last_tick_s

    def _steer(self):
        deadlines = self._deadlines
        early_s = deadlines.deadline_s + self._lead_s - self._arrival()[1]
        if early_s > 0.5 * deadlines.period_s:  # go the short way round
            early_s -= deadlines.period_s
        if early_s < 0.0 and not self._is_timed or \
                not self._is_awaited and abs(early_s) > 2.0 * self._lead_s:
            return
        largest_s = _LARGEST_STEP * deadlines.period_s
        deadlines.deadline_s -= min(max(_GAIN * early_s, -largest_s), largest_s)
        if not self._is_awaited:
            return
        # This grows by more than what one late state has just moved the grid, and falls as slowly.
        lead_s = self._lead_s + _GAIN * (_LEADS * abs(early_s) - self._lead_s)
        lead_s = min(max(lead_s, _SHORTEST_LEAD_S), self._longest_lead_s)
        deadlines.deadline_s += self._lead_s - lead_s
        self._lead_s = lead_s


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
