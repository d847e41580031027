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

import numpy as np

# Waking from an event takes up to a millisecond now and then, from a sleep a fifth of that; an
# event can be interrupted, so it has the long part of a wait and the sleep the last part.
_SLEEP_S = 0.002


class Pacer:
    """Wake at deadlines that lie a fixed period apart.

    A period that the work overran is skipped, never made up for: two ticks in quick succession
    would give the robot two commands for one state. ``num_missed`` counts skipped deadlines, and
    ``deadline_s`` is the last one waited for, on the clock of ``time.monotonic``.
    """

    def __init__(self, period_s: float, stop: threading.Event):
        """Start a grid now.

        :param stop: ends every wait.
        """
        self.period_s = period_s
        self.num_missed = 0
        self.deadline_s = time.monotonic()
        self._stop = stop

    def restart(self, first_s: float) -> None:
        """Begin a new grid of deadlines.

        :param first_s: its first deadline, on the clock of ``time.monotonic``.
        """
        self.deadline_s = first_s - self.period_s

    def wait(self) -> bool:
        """Sleep until the next deadline.

        :return: False if ``stop`` was set.
        """
        self.deadline_s += self.period_s
        late = time.monotonic() - self.deadline_s
        if late > 0:
            skipped = int(late / self.period_s) + 1
            self.num_missed += skipped
            self.deadline_s += skipped * self.period_s
        return sleep_until(self.deadline_s, self._stop)


class PhaseLock:
    """Keep the deadlines a small part of a period behind the arrival of the state.

    Where a robot publishes its state at the control rate, a free-running grid falls anywhere in
    its period, so that commands rest on a state up to one period old, and may miss the robot's
    next step. Locked, each tick uses the state that has just arrived. The first arrival may have
    been a late one, and two machines' clocks drift apart; so the least delay over a window of
    ticks is compared with the wanted one. A state that comes more often than the control rate
    never moves the grid.
    """

    def __init__(self, pacer: Pacer, phase: float, window: int = 32):
        """Steer a pacer.

        :param phase: wanted delay from arrival to tick, as a part of the period, in [0, 1).
        """
        self._pacer = pacer
        self._delay_s = phase * pacer.period_s
        self._window = window
        self._num, self._least_s = 0, float('inf')

    def restart(self, received_s: float) -> None:
        """Begin the grid anew, one period after the tick that this arrival would have had."""
        self._pacer.restart(received_s + self._delay_s + self._pacer.period_s)
        self._num, self._least_s = 0, float('inf')

    def track(self, received_s: float) -> None:
        """Take note of the arrival time of the state used in this tick."""
        pacer = self._pacer
        self._least_s = min(self._least_s, pacer.deadline_s - received_s)
        self._num += 1
        if self._num < self._window:
            return
        excess = self._least_s - self._delay_s
        if 0.02 * pacer.period_s < excess < pacer.period_s:
            # A grid has the same phase if moved by a whole period: go the short way round.
            earlier = excess if excess < 0.5 * pacer.period_s else excess - pacer.period_s
            pacer.deadline_s -= earlier
        self._num, self._least_s = 0, float('inf')


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
