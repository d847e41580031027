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

"""Ticks of a policy on their deadlines, with their times, states and stalls; free of ROS."""

from __future__ import annotations

import math
import threading
import time
from typing import Callable

from dpg_robot.runtime.control import PolicyControl, Step
from dpg_robot.runtime.recorder import FlightRecorder
from dpg_robot.runtime.timing import Deadlines, LatencyStatistics, PhaseLock, SteadyClock

# A control thread without a tick for so long is stuck; a busy machine alone takes less.
_STALL_PERIODS, _LEAST_STALL_S = 3.0, 0.1


class ControlLoop:
    """One activation of a control: from waiting for the first observation to its end.

    A thread of its own calls :meth:`wait` and :meth:`tick` in turn. It takes the state itself,
    because an executor wakes behind whatever callback runs just then, and handing a message from
    its thread to another one takes longer than the policy does.

    ``state`` is 'waiting' before the first full observation, then 'running' or 'safe', or
    'recovering' in between, and 'estop' while the control is stopped; ``faults`` are those of the
    last tick. ``is_stalled`` is whether ticks were stuck at the last :meth:`watch`.
    """

    def __init__(self, control: PolicyControl, period_s: float, listen: Callable[[float], None],
                 stop: threading.Event, clock: SteadyClock):
        """Prepare for the first tick.

        :param period_s: between two ticks, on the clock.
        :param listen: updates the observation with what arrives; returns after an arrival or so
            many real seconds.
        :param stop: ends :meth:`wait`.
        :param clock: of the observation's updates.
        """
        self.control, self.clock = control, clock
        self.state, self.faults = 'waiting', ()
        self.num_repeated = self.num_stalls = 0
        self.tick_time, self.latency = LatencyStatistics(), LatencyStatistics()
        self._stop, self._is_closed = stop, False
        self._deadlines = Deadlines(period_s, clock)
        self._phase = PhaseLock(
            self._deadlines, listen, control.observation.arrival_s, self._is_ended,
            lambda: control.rehearse(clock.now()))
        self._stall_s = max(_STALL_PERIODS * period_s, _LEAST_STALL_S)
        self._tick_s = self._latency_s = math.nan
        self._ticked_s = self._ticked_real_s = math.inf
        self._has_begun = self.is_stalled = False

    @property
    def period_s(self) -> float:
        """Return the time between two ticks [s]."""
        return self._deadlines.period_s

    @property
    def num_missed(self) -> int:
        """Return how many deadlines were skipped."""
        return self._deadlines.num_missed

    def close(self) -> None:
        """End :meth:`wait`, from another thread."""
        self._is_closed = True

    def _is_ended(self):
        return self._is_closed or self._stop.is_set()

    def wait(self) -> bool:
        """Wait until the next tick is due; return False if stopped or closed."""
        if not self._has_begun:
            self._begin()
        return self._phase.wait()

    def _begin(self):
        # Simulated time is zero until its first message comes.
        self._phase.listen_until(1e-9)
        self._deadlines.restart(self.clock.now())
        self._ticked_s, self._ticked_real_s = self.clock.now(), time.monotonic()
        self._has_begun = True

    def tick(self) -> Step:
        """Tick once and keep the books."""
        control, started_s = self.control, time.monotonic()
        step = control.tick(self.clock.now())
        self._tick_s, self._latency_s = time.monotonic() - started_s, math.nan
        self.tick_time.add(self._tick_s)
        if step.is_driven:
            self._latency_s = self.clock.now() - control.observation.newest_s
            self.latency.add(self._latency_s)
        self._keep_phase(step.is_driven)
        self.state, self.faults = self._next_state(step), step.faults
        self._ticked_s, self._ticked_real_s = self.clock.now(), time.monotonic()
        return step

    def record(self, step: Step, recorder: FlightRecorder) -> None:
        """Record the last tick."""
        recorder.step(
            self._ticked_s, step.observation, step.action, step.command, eps=step.eps,
            is_driven=step.is_driven, faults=step.faults, state=self.state,
            tick_s=self._tick_s, latency_s=self._latency_s)

    def _next_state(self, step):
        if step.is_driven:
            return 'running'
        if self.control.stopped is not None:
            return 'estop'
        if not step.faults:
            return 'recovering'
        is_broken = any(fault.kind == 'exception' for fault in step.faults)
        return 'waiting' if self.state == 'waiting' and not is_broken else 'safe'

    def _keep_phase(self, is_driven):
        if not is_driven:
            self._phase.lose()
        elif self.state == 'running':
            self.num_repeated += not self._phase.track()
        else:
            self._phase.restart()

    def watch(self) -> str:
        """Send the safe command if the ticks are stuck; called now and then by another thread.

        :return: at the beginning of a stall, one line about it; otherwise empty.
        """
        ticked_s, now_s = self._ticked_s, self.clock.now()  # the other thread may tick meanwhile
        if ticked_s == math.inf:
            # The thread may still be in a tick of the last activation: its silence begins now,
            # or with simulated time.
            self._ticked_s, self._ticked_real_s = now_s or math.inf, time.monotonic()
        elif now_s < ticked_s:  # a clock was set back
            self._ticked_s = now_s
        silence_s = now_s - self._ticked_s
        # A moment without a core is many periods of a simulation that runs fast.
        is_long = time.monotonic() - self._ticked_real_s > _LEAST_STALL_S
        was_stalled, self.is_stalled = self.is_stalled, \
            self.control.is_open and is_long and silence_s > self._stall_s
        if not self.is_stalled:
            return ''
        self.control.interrupt()
        if was_stalled:
            return ''
        self.num_stalls += 1
        return f'stalled: no tick for {silence_s:.3f} s; safe command'
