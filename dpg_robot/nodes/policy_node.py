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

A lifecycle node. One thread takes the newest message of each topic and, while the node is active,
ticks as soon as the state is there, or on an absolute deadline; the executor's thread serves all
else. Whenever the policy may not speak (a term is missing, stale, not a number or out of range, an
exception, the emergency stop, the end of the node) the spec's safe command is sent at once, and
``/diagnostics`` says why. If the ticking thread itself gets stuck, a watchdog does that.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
import traceback

from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from dpg_robot.contract.model_file import file_signature
from dpg_robot.contract.observation import Fault
from dpg_robot.contract.strict import SpecError
from dpg_robot.garbage import collect_garbage, quiet_garbage_collector
from dpg_robot.nodes.clock import SimulatedClock
from dpg_robot.nodes.common import declare_parameters, run
from dpg_robot.nodes.estop import EmergencyStop
from dpg_robot.nodes.managed import ManagedNode
from dpg_robot.nodes.policy_parameters import PARAMETERS
from dpg_robot.nodes.policy_status import PolicyStatus
from dpg_robot.nodes.policy_topics import PolicyTopics
from dpg_robot.resources import share_path
from dpg_robot.runtime.control import PolicyControl
from dpg_robot.runtime.control_loop import ControlLoop
from dpg_robot.runtime.inputs import InputGuard
from dpg_robot.runtime.model_loader import ModelLoader
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.runtime.realtime import prepare_thread, wake_latency
from dpg_robot.runtime.recorder import FlightRecorder
from dpg_robot.runtime.timing import SteadyClock

# A listener that reads best effort may lose one last command, but hardly three.
_NUM_LAST_COMMANDS = 3
_LAST_COMMANDS_GAP_S = 0.005
# Two threads share the interpreter; neither keeps it from the other for longer [s].
_SWITCH_S = 0.0005
# A change that was told is not told again until the next diagnostics, or for so long [s].
_TOLD_S = 1.0
# How often the watchdog looks; and the control thread, whether it shall begin to tick [s].
_WATCH_S, _IDLE_S = 0.05, 0.02
# How long the end of the node waits for the watchdog to finish its look [s].
_LONGEST_LOOK_S = 1.0
_TOP_PRIORITY = 99
# How often garbage is collected while the node ticks [s].
_COLLECT_S = 1.0


class PolicyNode(ManagedNode):
    """Connect a policy's terms to topics and tick while active."""

    def __init__(self, stop: threading.Event):
        """Declare parameters, offer the services, and start if ``autostart`` says so.

        :param stop: ends :meth:`loop`.
        :raises SpecError: if a parameter is wrong, or it cannot start by itself.
        """
        super().__init__('policy_node')
        self.settings = declare_parameters(self, PARAMETERS)
        self._stop, self._ended = stop, threading.Event()
        self.control = self.control_loop = self.topics = self.loader = self.recorder = None
        self.clock, self.realtime = SteadyClock(), ''
        # The parameter, and what was announced or taken since.
        self._wanted_model, self._newer_model = self.settings['model'], ''
        self._told, self._told_lately, self._told_s = None, set(), -math.inf
        self._silent = None  # the loop whose silence was told
        self._collected_s, self._num_stops_told = -math.inf, 0
        self._watchdog = threading.Thread(target=self._watch, name='watchdog', daemon=True)
        self.estop = EmergencyStop(self, self._on_estop, self._on_lift)
        self._heard_s = math.inf  # until the loop begins, and the executor with it
        self._status = PolicyStatus(self)
        self._take_models()
        if self.settings['autostart']:
            self.start()
        else:
            self.get_logger().info('unconfigured: it waits for configure, then activate')

    def _take_models(self):
        self.add_post_set_parameters_callback(lambda parameters: [
            self._want(p.value) for p in parameters if p.name == 'model'])
        if self.settings['model_topic']:
            self.create_subscription(
                String, self.settings['model_topic'], self._on_announcement,
                QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def _want(self, path):
        self._wanted_model, self._newer_model = path, ''
        if self.loader is not None:
            self.loader.request(_model_path(path))

    def _on_announcement(self, message):
        loader = self.loader
        if loader is None:
            self._newer_model = message.data
        else:  # one that is refused is forgotten
            loader.request(_model_path(message.data))

    def configure(self) -> None:
        """Load and check the model, and connect its topics."""
        try:
            self._connect(_model_path(self._newer_model or self._wanted_model), self.settings)
        except Exception:
            self._newer_model = ''  # one that is refused is forgotten
            self.cleanup()
            raise

    def _connect(self, path, settings):
        seen = file_signature(path)  # before it is read, so that no change is missed
        policy = OnnxPolicy(path)
        self._choose_clock()
        self.topics = PolicyTopics(self, policy.spec, lambda: InputGuard(
            settings['future_tolerance_s'], settings['zero_stamp']))
        names = ('mode', 'seed', 'recover_ticks', 'rate_factor', 'blend_s')
        self.control = PolicyControl(
            policy, **{name: settings[name] for name in names}, send=self.topics.send,
            rehearse_sending=self.topics.rehearse_sending, now=self.clock.now,
            hold=self._listen_first)
        self.control.close(repeats=0)
        if self.estop.why:
            self.control.stop(self._estop_fault())
        self.topics.listen(self.control.observation, self.clock)
        self.loader = ModelLoader(policy, path, settings['watch_model'],
                                  self.control.offer, self._on_model, seen)
        if settings['record_folder']:
            self.recorder = FlightRecorder(
                settings['record_folder'], policy.spec, policy.content_hash,
                max_bytes=settings['record_mb'] * 10**6, model_path=path,
                rate_factor=settings['rate_factor'])
        self.get_logger().info(
            f'{policy.spec.task} from {path} ({policy.content_hash[:12]}), at '
            f'{policy.spec.control_rate_hz * settings["rate_factor"]:g} Hz; reads '
            f'{", ".join(self.control.observation.topics)}')

    def _choose_clock(self):
        if self.get_parameter('use_sim_time').value:
            if self.settings['rate_factor'] != 1.0:
                raise SpecError('rate_factor must be 1 with use_sim_time, whose clock has a rate '
                                f'of its own, got {self.settings["rate_factor"]:g}')
            self.clock = SimulatedClock(self, self._on_clock_set)
        else:
            self.clock = SteadyClock()

    def _on_clock_set(self):
        if self.control is not None:
            self.topics.forget()
            self.control.observation.forget()
            self.control.interrupt()
        self._log('WARN', 'simulated time was set: nothing received before counts')

    def activate(self) -> None:
        """Begin to tick: the safe command, until every term is fresh."""
        quiet_garbage_collector()
        period_s = self.control.policy.spec.control_dt / self.settings['rate_factor']
        self._told = None
        self._told_lately.clear()
        self.control.open()
        self.control_loop = ControlLoop(
            self.control, period_s, self.topics.receive, self._stop, self.clock)

    def deactivate(self) -> None:
        """Send the safe command, and no other any more."""
        try:
            self._end_commands()
        finally:
            if self.control_loop is not None:
                self.control_loop.close()
            self.control_loop = None

    def _end_commands(self):
        control, topics = self.control, self.topics
        if control is not None and topics is not None:  # the other thread may just be leaving
            was_open = control.is_open
            control.close(_NUM_LAST_COMMANDS, _LAST_COMMANDS_GAP_S)
            topics.flush()
            if was_open:
                self._log('INFO', 'no policy commands any more: the safe command is out')

    def cleanup(self) -> None:
        """Leave the topics and forget the model."""
        parts = self.recorder, self.clock, self.topics, self.loader
        self.control = self.topics = self.loader = self.recorder = None
        self.clock = SteadyClock()
        with contextlib.ExitStack() as closing:  # from the last on, whatever one of them raises
            for part in parts:
                if part is not None:
                    closing.callback(part.close)

    def shutdown(self) -> None:
        """Send the safe command if active, and leave the topics."""
        try:
            self.deactivate()
        finally:
            self.cleanup()

    def _listen_first(self):
        wait_s = self._heard_s - time.monotonic()
        return Fault('estop', 'listening', f'{wait_s:.1f} s more, for a stop that is pressed '
                     'already') if wait_s > 0.0 else None

    def _estop_fault(self):
        return Fault('estop', 'latched', f'{self.estop.why}; to go on, call reset_estop, then '
                                         'activate')

    def _on_estop(self, why):
        is_new = self.estop.num_stops != self._num_stops_told
        if self.control is not None:
            self.control.stop(self._estop_fault())
        if is_new:
            self._num_stops_told = self.estop.num_stops
            sent = 'not configured: nothing sent' if self.control is None else \
                'safe command' if self.control.is_open else 'inactive: safe command, except on ' \
                'topics with elements that hold'
            self._log('ERROR', f'emergency stop {why}: {sent}')
            self.report()

    def _log(self, level, text):
        # rclpy raises where one line of code logs with two severities.
        if level == 'INFO':
            self.get_logger().info(text)
        elif level == 'WARN':
            self.get_logger().warning(text)
        else:
            self.get_logger().error(text)
        if self.recorder is not None:
            self.recorder.event(level, text)

    def _on_lift(self):
        """Lift the stop; a reset alone must not make a robot move again."""
        if self.control_loop is not None:
            self.trigger_deactivate()
        if self.control is not None:
            self.control.lift()
        self._log('INFO', 'emergency stop lifted')
        self.report()
        return f'lifted; {self.lifecycle}: the policy commands again once activated'

    def _on_model(self, is_accepted, line):
        if is_accepted:
            loader = self.loader
            if loader is not None:
                self._newer_model = loader.path
            self._log('INFO', f'from the next tick on: {line}')
        else:
            self._log('ERROR', f'the running policy stays: {line}')
        self.report()

    def loop(self) -> None:
        """Tick whenever active, until stopped; then send the safe command a few last times."""
        # Before this thread has a core: who watches it must not have to wait for that one.
        self._watchdog.start()
        self._heard_s = time.monotonic() + self.settings['estop_listen_s']
        sys.setswitchinterval(_SWITCH_S)
        try:
            with wake_latency(self.settings['wake_latency_us']) as sleepiness:
                problems = sleepiness, prepare_thread(
                    self.settings['cpu'], self.settings['realtime_priority'])
                self.realtime = '; '.join(filter(None, problems))
                if self.realtime:
                    self.get_logger().warning(self.realtime)
                while not self._stop.is_set():
                    self._idle(self.topics)
                    self._drive(self.control_loop)
        finally:
            try:
                self._end_commands()
                if self.control_loop is not None:
                    self._status.publish('stopped')
            finally:
                if self.recorder is not None:
                    self.recorder.close()

    def _idle(self, topics):
        if topics is None:
            self._stop.wait(_IDLE_S)
        else:
            topics.receive(_IDLE_S)

    def _drive(self, loop):
        policy = None
        while loop is not None and loop is self.control_loop and loop.wait():
            step = loop.tick()
            recorder, is_first = self.recorder, policy is None
            is_other, policy = policy is not loop.control.policy, loop.control.policy
            if recorder is not None:
                if is_other:
                    recorder.use_model(policy.content_hash, policy.path)
                loop.record(step, recorder)
            self._tell_changes(loop)
            if is_other and not is_first:
                self.report()
            now_s = time.monotonic()
            if now_s - self._told_s >= min(_TOLD_S, self.settings['diagnostics_period_s']):
                self._told_s = now_s
                self._told_lately.clear()
            if now_s - self._status.published_s >= self.settings['diagnostics_period_s']:
                self.report()
            if now_s - self._collected_s >= _COLLECT_S:
                self._collected_s = now_s
                collect_garbage()

    def _tell_changes(self, loop):
        """Log and report each change once: not each tick, nor each time that a sensor flickers."""
        faults = frozenset((fault.term, fault.kind) for fault in loop.faults) \
            if loop.faults else None
        now = loop.state, faults
        # What is held back is told soon, if it is still so.
        if now == self._told or now in self._told_lately:
            return
        self._told = now
        self._told_lately.add(now)
        if loop.state == 'running':
            self.get_logger().info('all observations are fresh: the policy has command')
        elif loop.state == 'safe':
            self.get_logger().error(f'safe command: {_join(loop.faults)}')
            if any(fault.kind == 'exception' for fault in loop.faults):
                self.get_logger().error(loop.control.last_error)
        elif loop.state == 'waiting' and all(f.kind != 'listening' for f in loop.faults):
            self.get_logger().warning(f'waiting: {_join(loop.faults)}')
        self.report()

    def _watch(self):
        """Send the safe command while the control thread is stuck, and look for silence.

        Runs in a thread of its own. Silence is no matter for a timer: for each one an executor
        looks at all parts of the node, and keeps the interpreter from a tick for half a
        millisecond, every time at the same place in the robot's period.
        """
        priority = self.settings['realtime_priority']
        prepare_thread(-1, min(priority + 1, _TOP_PRIORITY) if priority else 0)
        while not self._ended.wait(_WATCH_S):
            try:
                loop = self.control_loop
                stalled = loop.watch() if loop is not None else ''
                if stalled:
                    self._log('ERROR', stalled)
                    self._status.publish('stalled', stalled.partition(': ')[2])
                self._look_for_silence()
            except Exception:  # of a node that is leaving; a watchdog goes on
                if not self._ended.is_set():
                    self.get_logger().fatal(traceback.format_exc())

    def destroy_node(self) -> None:
        """End the watchdog too."""
        self._ended.set()
        if self._watchdog.is_alive():
            self._watchdog.join(_LONGEST_LOOK_S)
        super().destroy_node()

    def _look_for_silence(self):
        loop, period_s = self.control_loop, self.settings['diagnostics_period_s']
        if loop is None:
            if self._silence_s() > period_s and self.executor and not self._stop.is_set():
                self.executor.create_task(self._report_if_silent)
        elif self._silence_s() > 2.0 * max(period_s, loop.period_s):
            state = 'estop' if self.estop.why else 'stalled' if loop.is_stalled else 'waiting'
            why = 'no ticks; does /clock stand still?' \
                if isinstance(self.clock, SimulatedClock) else 'no ticks'
            if self._silent is not loop:
                self._silent = loop
                self._log('WARN', f'{state}: {why}')
            self._status.publish(state, why)

    def _silence_s(self):
        return time.monotonic() - self._status.published_s

    def _report_if_silent(self):
        # In turn with the transitions; the node may have become active meanwhile.
        if self.control_loop is None and \
                self._silence_s() > self.settings['diagnostics_period_s']:
            self.report()
            collect_garbage()

    def report(self) -> None:
        """Publish diagnostics and status as things are now."""
        loop = self.control_loop
        stopped = loop.control.stopped if loop is not None else None
        if stopped is not None:  # whether or not a tick has seen it yet
            self._status.publish('estop', str(stopped))
        elif loop is not None:
            self._status.publish(loop.state, _join(loop.faults))
        elif self.failure:
            self._status.publish('failed', self.failure)
        else:
            self._status.publish(self.lifecycle, 'estop latched' * bool(self.estop.why))


def _model_path(path):
    return str(path or share_path('models', 'fetch_reach.onnx'))


def _join(faults):
    return '; '.join(map(str, faults))


def main(args=None) -> int:
    """Run the node; the exit code is 2 if it cannot start."""
    return run(PolicyNode, args)


if __name__ == '__main__':
    sys.exit(main())
