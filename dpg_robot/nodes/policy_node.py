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

"""Run an exported policy on a robot: state topics in, commands out, at a fixed rate.

One thread ticks on absolute deadlines; the executor's thread only stores the newest message of
each topic. Whenever the policy may not speak (a term is missing, stale, not a number or out of
range, an exception, the end of the node) the spec's safe command is sent at once, and
``/diagnostics`` says why. If the ticking thread itself gets stuck, the executor's does that.
"""

from __future__ import annotations

from functools import partial
import sys
import threading
import time

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from dpg_robot.contract.fields import check_fields
from dpg_robot.contract.messages import message_class, MessageWriter
from dpg_robot.nodes.common import (
    collect_garbage,
    declare_parameters,
    Diagnostics,
    flush,
    NEWEST_BEST_EFFORT,
    NEWEST_RELIABLE,
    Parameter,
    quiet_garbage_collector,
    run,
)
from dpg_robot.resources import share_path
from dpg_robot.runtime.control import MODES, PolicyControl
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.runtime.timing import LatencyStatistics, Pacer, PhaseLock

# A listener that reads best effort may lose one last command, but hardly three.
_NUM_LAST_COMMANDS = 3
_LAST_COMMANDS_GAP_S = 0.005
# A control thread without a tick for so long is stuck; a busy machine alone takes less.
_STALL_PERIODS, _LEAST_STALL_S = 3.0, 0.1

PARAMETERS = (
    Parameter('model', '', 'Policy file (.onnx); empty for the fetch_reach policy that comes '
              'with the package.'),
    Parameter('mode', 'deterministic', 'Use the policy without its noise, or sample it.',
              choices=MODES),
    Parameter('seed', 0, 'Seed of the sampled mode.', 0, 2**31 - 1),
    Parameter('tick_phase', 0.05, 'Delay from the arrival of the state to the tick, as a part of '
              'the control period; covers the time between the parts of a state.', 0.0, 0.9),
    Parameter('recover_ticks', 3, 'Ticks in a row without a fault before the policy takes command '
              'again, once a fault took it away.', 1, 1000),
    Parameter('rate_factor', 1.0, "Run this many times faster than the spec's control rate; only "
              'for a simulation that is itself so much faster than real time: rate limits are per '
              'simulated second.', 0.1, 20.0),
    Parameter('diagnostics_period_s', 1.0, 'Time between two diagnostics [s].', 0.1, 60.0),
)


class PolicyNode(Node):
    """Connect a policy's terms to topics and tick."""

    def __init__(self, stop: threading.Event):
        """Load the policy and connect its topics.

        :param stop: ends :meth:`loop`.
        :raises SpecError: if a parameter, the model file or a message type is wrong.
        """
        super().__init__('policy_node')
        self.settings = declare_parameters(self, PARAMETERS)
        path = self.settings['model'] or share_path('models', 'fetch_reach.onnx')
        self.model_path = str(path)
        self.policy = OnnxPolicy(path)
        options = ('mode', 'seed', 'recover_ticks', 'rate_factor')
        self.control = PolicyControl(
            self.policy, **{name: self.settings[name] for name in options})
        self._connect(self.policy.spec)
        self._stop = stop
        self._pacer = Pacer(
            self.policy.spec.control_dt / self.settings['rate_factor'], stop)
        self._phase = PhaseLock(
            self._pacer, self.settings['tick_phase'], self.control.observation.clock_s)
        self._tick_time, self._latency = LatencyStatistics(), LatencyStatistics()
        self._diagnostics = Diagnostics(self, 'control', self.policy.spec.robot)
        self._state, self._faults = 'waiting', ()
        self._reported_s, self._reported_ticks = time.monotonic(), 0
        self._num_repeated = 0
        self._start_watchdog()
        self.get_logger().info(
            f'{self.policy.spec.task} from {self.model_path} '
            f'({self.policy.content_hash[:12]}) at {1 / self._pacer.period_s:g} Hz; waiting for '
            f'{", ".join(self.control.observation.topics)}')

    def _connect(self, spec):
        for term in spec.observation:
            check_fields(term.fields, message_class(term.type)(),
                         f'observation term {term.name}')
        # The watchdog has messages of its own: it writes while the control thread may.
        self._writer, self._watchdog_writer = (
            MessageWriter(spec.action, lambda name: message_class(name)()) for _ in range(2))
        self._command_publishers = {
            term.topic: self.create_publisher(
                message_class(term.type), term.topic, NEWEST_RELIABLE)
            for term in spec.action}
        for topic, type_name in self.control.observation.topics.items():
            self.create_subscription(message_class(type_name), topic,
                                     partial(self._receive, topic), NEWEST_BEST_EFFORT)

    def _receive(self, topic, message):
        received_s = time.monotonic()
        stamp_s = None
        header = getattr(message, 'header', None)
        if header is not None and (header.stamp.sec or header.stamp.nanosec):
            # Stamps are in the node's clock; carry the age over to the steady clock.
            stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec
            age_ns = self.get_clock().now().nanoseconds - stamp_ns
            stamp_s = received_s - age_ns * 1e-9
        self.control.observation.update(topic, message, received_s, stamp_s)
        self._phase.arrived.set()

    def loop(self) -> None:
        """Tick until stopped, then send the safe command a few last times."""
        quiet_garbage_collector()
        self._ticked_s = time.monotonic()
        try:
            while self._phase.wait():
                self._tick()
                if time.monotonic() - self._reported_s >= self.settings['diagnostics_period_s']:
                    self._report()
                    collect_garbage()
        finally:
            self._ticked_s = float('inf')
            for _ in range(_NUM_LAST_COMMANDS):
                self._publish(self.control.limiter.safe())
                time.sleep(_LAST_COMMANDS_GAP_S)
            self._state, self._faults = 'stopped', ()
            self._report()
            flush(self._command_publishers.values())

    def _tick(self):
        arrival_s, started_s = self.control.observation.clock_s(), time.monotonic()
        step = self.control.tick(started_s)
        self._publish(step.command)
        done_s = time.monotonic()
        self._tick_time.add(done_s - started_s)
        if step.is_driven:
            self._latency.add(done_s - self.control.observation.newest_s)
        self._keep_phase(arrival_s, step.is_driven)
        self._update_state(step)
        self._ticked_s = time.monotonic()

    def _start_watchdog(self):
        self._ticked_s, self._num_stalls, self._is_stalled = float('inf'), 0, False
        self._stall_s = max(_STALL_PERIODS * self._pacer.period_s, _LEAST_STALL_S)
        self.create_timer(0.5 * self._stall_s, self._watch,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _watch(self):
        """Send the safe command while the control thread is stuck; runs in the executor's."""
        silence_s = time.monotonic() - self._ticked_s
        was_stalled, self._is_stalled = self._is_stalled, silence_s > self._stall_s
        if not self._is_stalled:
            return
        self._publish(self.control.interrupt(), self._watchdog_writer)
        if not was_stalled:
            self._num_stalls += 1
            message = f'stalled: no tick for {silence_s:.3f} s; safe command'
            self.get_logger().error(message)
            self._report(message)

    def _publish(self, command, writer=None):
        stamp = self.get_clock().now().to_msg()
        for topic, message in (writer or self._writer).write(command, stamp):
            self._command_publishers[topic].publish(message)

    def _keep_phase(self, arrival_s, is_driven):
        if not is_driven:
            self._phase.lose()
        elif self._state == 'running':
            self._num_repeated += not self._phase.track(arrival_s)
        else:
            self._phase.restart()

    def _update_state(self, step):
        """Log and report each change once, not each tick."""
        faults = step.faults
        broken = any(fault.kind == 'exception' for fault in faults)
        waiting = self._state == 'waiting' and not broken
        state = 'running' if step.is_driven else 'recovering' if not faults else \
            'waiting' if waiting else 'safe'
        kinds = {(fault.term, fault.kind) for fault in faults}
        if state == self._state and kinds == {(f.term, f.kind) for f in self._faults}:
            self._faults = faults
            return
        self._state, self._faults = state, faults
        if state == 'running':
            self.get_logger().info('all observations are fresh: the policy has command')
        elif state == 'safe':
            self.get_logger().error(f'safe command: {_join(faults)}')
            if broken:
                self.get_logger().error(self.control.last_error)
        self._report()

    def _report(self, stalled=''):
        now_s = time.monotonic()
        num_ticks, limiter = self.control.num_ticks, self.control.limiter
        rate = (num_ticks - self._reported_ticks) / max(now_s - self._reported_s, 1e-6)
        self._reported_s, self._reported_ticks = now_s, num_ticks
        state = 'stalled' if stalled else self._state
        level = {'running': 'OK', 'safe': 'ERROR', 'stalled': 'ERROR'}.get(state, 'WARN')
        message = stalled or (f'{state}: {_join(self._faults)}' if self._faults else state)
        self._diagnostics.publish(level, message, {
            'state': state, 'task': self.policy.spec.task,
            'mode': self.settings['mode'], 'model': self.model_path,
            'content_hash': self.policy.content_hash,
            'control_rate_hz': 1.0 / self._pacer.period_s, 'achieved_rate_hz': rate,
            'ticks': num_ticks, 'safe_ticks': self.control.num_safe,
            'deadline_misses': self._pacer.num_missed, 'stalls': self._num_stalls,
            'repeated_states': self._num_repeated,
            'tick_us': self._tick_time.summary_us(),
            'state_to_command_us': self._latency.summary_us(),
            'age_s': {term: 'never received' if age is None else age
                      for term, age in self.control.observation.ages_s(now_s).items()},
            'clipped': dict(zip(limiter.element_names, limiter.num_clipped.tolist())),
            'rate_limited': dict(zip(limiter.element_names, limiter.num_rate_limited.tolist())),
            'not_finite_actions': limiter.num_not_finite,
            'fault': {fault.term: f'{fault.kind}, {fault.detail}' for fault in self._faults}})


def _join(faults):
    return '; '.join(map(str, faults))


def main(args=None) -> int:
    """Run the node; the exit code is 2 if it cannot start."""
    return run(PolicyNode, args)


if __name__ == '__main__':
    sys.exit(main())
