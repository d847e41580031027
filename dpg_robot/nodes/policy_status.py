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

"""What policy_node tells about itself: ``/diagnostics`` by part, and all of it on ``~/status``."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile

from dpg_robot.nodes.clock import SimulatedClock
from dpg_robot.nodes.common import Diagnostics

_LEVELS = {'running': 'OK', 'safe': 'ERROR', 'stalled': 'ERROR', 'estop': 'ERROR',
           'failed': 'ERROR'}
# Fewer of the ticks that are due are a warning.
_FAIR = 0.9


class PolicyStatus:
    """Publish the statuses of a policy node, from either of its threads.

    ``published_s`` is when it last did, on the clock of ``time.monotonic``.
    """

    def __init__(self, node: Any):
        """Read everything from a :class:`.policy_node.PolicyNode`."""
        self._node, self._lock = node, threading.Lock()
        self._diagnostics = Diagnostics(node, 'control', '')
        self._publisher = node.create_publisher(DiagnosticStatus, '~/status', QoSProfile(
            depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self._statuses, self._num_dropped = [], 0
        self.published_s = time.monotonic()
        self._counted_s = self._counted_at_s = -math.inf  # real time; of the loop's clock
        self._num_ticks, self._rate_hz = 0, 0.0
        self._counted, self._is_slow = None, False

    def publish(self, state: str, why: str = '') -> None:
        """Publish all parts.

        :param state: of the control, see docs/policy_node.md.
        :param why: what to say beside the state.
        """
        with self._lock:
            node, self._statuses = self._node, []
            # The other thread may just be leaving them.
            control, topics, loader = node.control, node.topics, node.loader
            if control is not None:
                self._diagnostics.hardware_id = control.policy.spec.robot
            self._control(state, why, control, node.control_loop)
            if all(part is not None for part in (control, topics, loader)):
                self._inputs(topics, control.observation)
                self._model(loader, control)
            self._recorder(node.recorder)
            self._estop(node.estop)
            self._diagnostics.send(self._statuses)
            first = self._statuses[0]
            self._publisher.publish(DiagnosticStatus(
                level=first.level, name=first.name, message=first.message,
                hardware_id=first.hardware_id,
                values=[value for status in self._statuses for value in status.values]))

    def _add(self, part, level, message, values):
        self._statuses.append(self._diagnostics.status(part, level, message, values))

    def _control(self, state, why, control, loop):
        level, message = _LEVELS.get(state, 'WARN'), f'{state}: {why}' if why else state
        values = {'state': state, 'lifecycle': self._node.lifecycle}
        self.published_s = time.monotonic()
        self._count(control, loop)
        if loop is not None:
            values |= self._figures(loop)
        if state == 'running' and self._is_slow:
            level = 'WARN'
            message += f'; {self._rate_hz:.1f} ticks a second, not {1.0 / loop.period_s:g}'
        self._add('control', level, message, values)

    def _count(self, control, loop):
        """Keep the rate of ticks: two reports may follow each other at once, which tells none."""
        least_s = 0.5 * self._node.settings['diagnostics_period_s']
        if loop is not None and self.published_s - self._counted_s < least_s:
            return
        clock, num_ticks = self._node.clock, control.num_ticks if control is not None else 0
        now_s, counted = clock.now(), (loop, clock.num_jumps)
        elapsed_s, num_new = now_s - self._counted_at_s, num_ticks - self._num_ticks
        # Of a loop that has just begun, not all of the time is its own; nor if a clock was set.
        is_rated = loop is not None and elapsed_s > 0.0 and counted == self._counted
        self._rate_hz = num_new / elapsed_s if is_rated else 0.0
        # Of the first period and the last, a part belongs to others; a simulation may jump ahead.
        self._is_slow = is_rated and not isinstance(clock, SimulatedClock) \
            and (num_new + 1) * loop.period_s < _FAIR * elapsed_s
        self._counted_s, self._counted_at_s = self.published_s, now_s
        self._num_ticks, self._counted = num_ticks, counted

    def _figures(self, loop):
        control, limiter = loop.control, loop.control.limiter
        return {
            'control_rate_hz': 1.0 / loop.period_s, 'achieved_rate_hz': self._rate_hz,
            'ticks': control.num_ticks, 'safe_ticks': control.num_safe,
            'deadline_misses': loop.num_missed, 'stalls': loop.num_stalls,
            'repeated_states': loop.num_repeated,
            'tick_us': loop.tick_time.summary_us(),
            'state_to_command_us': loop.latency.summary_us(),
            'clipped': dict(zip(limiter.element_names, limiter.num_clipped.tolist())),
            'rate_limited': dict(zip(limiter.element_names, limiter.num_rate_limited.tolist())),
            'not_finite_actions': limiter.num_not_finite,
            'realtime': self._node.realtime or 'as asked',
            'fault': {fault.term: f'{fault.kind}, {fault.detail}' for fault in loop.faults}}

    def _inputs(self, topics, observation):
        publishers = topics.publishers()
        crowds = [f'{topic} has {len(names)} publishers: {", ".join(names)}'
                  for topic, names in publishers.items() if len(names) > 1]
        crowds += [f'{topic}: {name}' for topic, names in publishers.items()
                   for name in names if 'not heard' in name]
        listeners = topics.num_listeners()
        crowds += [f'{topic} has no subscriber' for topic, num in listeners.items() if not num]
        ages = observation.ages_s(self._node.clock.now())
        self._add('inputs', 'WARN' if crowds else 'OK', '; '.join(crowds) or 'no conflict', {
            'age_s': {term: 'never received' if age is None else age
                      for term, age in ages.items()},
            'received': {topic: guard.num_received for topic, guard in topics.guards.items()},
            'refused': {topic: dict(guard.refused) for topic, guard in topics.guards.items()},
            'publishers': {topic: ', '.join(names) for topic, names in publishers.items()},
            'subscribers': listeners})

    def _model(self, loader, control):
        policy = control.policy
        level, message = ('WARN', loader.refusal) if loader.refusal else ('OK', policy.spec.task)
        self._add('model', level, message, {
            'task': policy.spec.task, 'mode': self._node.settings['mode'],
            'model': str(policy.path),
            'content_hash': policy.content_hash, 'exchanges': control.num_exchanges,
            'refused_models': loader.num_refused})

    def _recorder(self, recorder):
        if recorder is not None:
            told = recorder.status()
            num_new, self._num_dropped = told['dropped'] - self._num_dropped, told['dropped']
            problem = told['problem'] or (f'{num_new} ticks dropped' if num_new > 0 else '')
            self._add('recorder', 'WARN' if problem else 'OK', problem or told['state'],
                      {'recorder': told})

    def _estop(self, estop):
        state, crowd = 'latched' if estop.why else 'not latched', estop.num_publishers
        message = f'{state} {estop.why}'.strip()
        if crowd > 1:
            message += f'; {crowd} publishers, of whom only the last word of any is known'
        self._add('estop', 'ERROR' if estop.why else 'WARN' if crowd > 1 else 'OK', message,
                  {'estop': state, 'stops': estop.num_stops, 'estop_publishers': crowd})
