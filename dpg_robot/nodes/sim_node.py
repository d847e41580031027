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

"""The stochastic world as a robot in real time: state topics out, commands in.

At each tick of the control rate the newest command acts for one period, and the new state is
published.
"""

from __future__ import annotations

from functools import partial
import sys
import threading
import time

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger

from dpg_robot.contract.fields import check_fields, FieldFault, FieldReader
from dpg_robot.contract.messages import group_by_topic, message_class, MessageWriter
from dpg_robot.contract.strict import dump, load, SpecError
from dpg_robot.garbage import collect_garbage, quiet_garbage_collector
from dpg_robot.nodes.common import (
    declare_parameters,
    Diagnostics,
    flatten,
    flush,
    NEWEST_RELIABLE,
    Parameter,
    run,
)
from dpg_robot.resources import task_file
from dpg_robot.runtime.timing import LatencyStatistics, Pacer
from dpg_robot.sim.robot import SimulatedRobot
from dpg_robot.sim.robot_config import locate
from dpg_robot.sim.world import make_world, WorldConfig
from dpg_robot.strict_yaml import read_task_file

PARAMETERS = (
    Parameter('config', '', "Task file (.yaml) whose 'world' to simulate, or the name of one that "
              'comes with the package; empty for fetch_reach.'),
    Parameter('seed', 0, 'Seed of the world.', 0, 2**31 - 1),
    Parameter('actuator_noise', -1.0, 'Standard deviation of the actuator noise, as a part of '
              "full scale; negative for the task file's.", -1.0, 10.0),
    Parameter('command_latency_s', -1.0, 'Delay from a command to its effect [s]; negative for '
              "the task file's.", -1.0, 1.0),
    Parameter('observation_noise', [''], 'Standard deviations of the observation noise, such as '
              "'end_effector_position=0.005' [unit of the term]; those not named are the task "
              "file's."),
    Parameter('hold_s', 0.2, 'How long the last command acts after commands stop [s of '
              'simulated time]; then the safe one does.', 0.0, 10.0),
    Parameter('auto_reset', True, 'Begin the next episode at once when one ends; otherwise wait '
              'for the reset service.'),
    Parameter('wait_for_command', True, 'Hold the first state of an episode until a command '
              'other than the safe one arrives.'),
    Parameter('speed', 1.0, 'Simulated seconds in a second.', 0.1, 20.0),
    Parameter('episodes', 0, 'Stop simulating, and hold the last state, after this many '
              'episodes; 0 for never.', 0, 1000000),
    Parameter('diagnostics_period_s', 1.0, 'Time between two diagnostics [s].', 0.1, 60.0),
    Parameter('frame_id', 'world', 'Frame in the headers of the state topics.'),
)


class SimNode(Node):
    """Connect a simulated robot to topics and let it go on in real time."""

    def __init__(self, stop: threading.Event):
        """Build the world and connect its topics.

        :param stop: ends :meth:`loop`.
        :raises SpecError: if a parameter, the task file or a message type is wrong.
        """
        super().__init__('sim_node')
        self.settings = declare_parameters(self, PARAMETERS)
        options = ('seed', 'hold_s', 'auto_reset', 'wait_for_command', 'episodes')
        self.robot = SimulatedRobot(
            _load_world(self.settings), **{name: self.settings[name] for name in options})
        self._stop = stop
        self._pacer = Pacer(self.robot.spec.control_dt / self.settings['speed'], stop)
        self._step_time = LatencyStatistics()
        self._reset_wanted, self._reset_done = threading.Event(), threading.Event()
        self._bad_command, self._num_bad_commands, self._state = '', 0, ''
        self._reported_s, self._reported_ticks, self._num_ticks = time.monotonic(), 0, 0
        self._rate_hz = 0.0
        self._diagnostics = Diagnostics(self, 'world', self.robot.spec.robot)
        # Deep enough for a listener that joins in the middle of a long evaluation.
        self._episodes = self.create_publisher(DiagnosticStatus, '~/episode', QoSProfile(
            depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self.create_service(Trigger, '~/reset', self._on_reset)
        spec = self.robot.spec
        self._connect(spec)
        self.get_logger().info(
            f'{spec.task}: a {spec.robot} at {1.0 / self._pacer.period_s:g} Hz; publishes '
            f'{", ".join(self._state_publishers)}; obeys {", ".join(group_by_topic(spec.action))}')

    def _connect(self, spec):
        frame = self.settings['frame_id']
        self._writer = MessageWriter(
            spec.observation, lambda name: message_class(name)(), frame)
        # A policy waits for the topics that age fastest: a new goal must be there before them.
        groups = group_by_topic(spec.observation)
        ages = {topic: min(term.max_age_s for term in spec.observation if term.topic == topic)
                for topic in groups}
        self._state_publishers = {
            topic: self.create_publisher(message_class(groups[topic].type), topic, NEWEST_RELIABLE)
            for topic in sorted(groups, key=ages.get, reverse=True)}
        for topic, group in group_by_topic(spec.action).items():
            kind = message_class(group.type)
            check_fields(group.fields, kind(), f'action topic {topic}')
            receive = partial(self._receive, topic, FieldReader(group.fields),
                              np.zeros(len(group.fields)))
            self.create_subscription(kind, topic, receive, NEWEST_RELIABLE)

    def _receive(self, topic, reader, values, message):
        try:
            reader.read(message, values)
            if not np.isfinite(values).all():
                raise FieldFault('not finite', f'command must be finite, got {values}')
        except FieldFault as fault:
            self._num_bad_commands += 1
            self._bad_command = f'ignored a command on {topic}: {fault}'
            self.get_logger().warning(self._bad_command, throttle_duration_sec=5.0)
            return
        self.robot.give_command(topic, values)

    def _on_reset(self, request, response):
        # The world belongs to the loop's thread, so let that do it.
        self._reset_done.clear()
        self._reset_wanted.set()
        response.success = self._reset_done.wait(timeout=2.0)
        response.message = 'a new episode begins; the old one is not counted' \
            if response.success else 'the simulation did not answer'
        return response

    def loop(self) -> None:
        """Simulate until stopped."""
        quiet_garbage_collector()
        while self._pacer.wait():
            self._num_ticks += 1
            started_s = time.monotonic()
            if self._reset_wanted.is_set():
                self._reset_wanted.clear()
                self.robot.begin_episode()
                result = None
                self._reset_done.set()
            else:
                result = self.robot.tick()
            self._publish_state()
            self._step_time.add(time.monotonic() - started_s)
            self.robot.rest()
            if result is not None:
                self._publish_result(result)
            is_due = time.monotonic() - self._reported_s >= self.settings['diagnostics_period_s']
            if is_due or self.robot.state != self._state:
                self._report()
                collect_garbage()
        self._report()
        flush([self._episodes])

    def _publish_state(self):
        stamp = self.get_clock().now().to_msg()
        messages = dict(self._writer.write(self.robot.observation, stamp))
        for topic, publisher in self._state_publishers.items():
            if topic in messages:
                publisher.publish(messages[topic])

    def _publish_result(self, result):
        success = {} if result.success is None else {'success': int(result.success)}
        values = flatten({'episode': result.episode, **success,
                          'return': result.episode_return, 'length': result.length})
        self._episodes.publish(DiagnosticStatus(
            name=f'{self.get_fully_qualified_name().lstrip("/")}: episode',
            message={None: 'ended', True: 'success', False: 'failure'}[result.success],
            hardware_id=self.robot.spec.robot,
            values=[KeyValue(key=k, value=v) for k, v in values.items()]))

    def _report(self):
        robot, now_s = self.robot, time.monotonic()
        elapsed_s = now_s - self._reported_s
        # A change is told at once, and too short a time tells no rate.
        if elapsed_s >= 0.5 * self.settings['diagnostics_period_s']:
            self._rate_hz = (self._num_ticks - self._reported_ticks) / elapsed_s
            self._reported_s, self._reported_ticks = now_s, self._num_ticks
        if robot.state != self._state:
            self._state = robot.state
            if robot.state == 'safe':
                self.get_logger().warning('commands stopped: the safe one acts')
            elif robot.state == 'ended':
                won = f', {robot.num_successes} of them successes' * (robot.num_successes > 0)
                self.get_logger().info(
                    f'the last state is held: {robot.num_episodes} episodes have ended{won}')
        level = 'WARN' if self._bad_command or robot.state in ('waiting', 'safe') else 'OK'
        meaning = _MEANINGS['refused' if robot.is_refused else robot.state]
        self._diagnostics.publish(level, self._bad_command or meaning, {
            'state': robot.state, 'task': robot.spec.task,
            'control_rate_hz': 1.0 / self._pacer.period_s, 'achieved_rate_hz': self._rate_hz,
            'episodes': robot.num_episodes, 'successes': robot.num_successes,
            'steps': robot.num_steps, 'safe_steps': robot.num_safe_steps,
            'late_commands': robot.num_late_commands, 'bad_commands': self._num_bad_commands,
            'deadline_misses': self._pacer.num_missed,
            'step_us': self._step_time.summary_us()})
        self._bad_command = ''


_MEANINGS = {
    'waiting': 'waiting for a command',
    'refused': 'waiting for another command than the safe one: does the policy refuse this state?',
    'driven': 'commands arrive',
    'safe': 'commands stopped: the safe one acts', 'ended': 'ended: waiting for a reset'}


def _load_world(settings):
    path = task_file(settings['config'] or 'fetch_reach')
    data = read_task_file(path)
    if 'world' not in data:
        raise SpecError(f'config file {path} must have a section world, got '
                        f'{", ".join(map(str, data)) or "none"}')
    locate(data['world'], path.parent)
    world = dump(load(WorldConfig, data['world'], 'world'))
    for key, name in (('actuator', 'actuator_noise'), ('command_latency_s',) * 2):
        if settings[name] >= 0:
            world['noise'][key] = settings[name]
    world['noise']['observation'].update(_read_noise(settings['observation_noise']))
    return make_world(load(WorldConfig, world, 'world'))


def _read_noise(entries):
    noise = {}
    for entry in filter(None, entries):
        term, _, text = entry.partition('=')
        try:
            noise[term.strip()] = float(text)
        except ValueError as error:
            raise SpecError('parameter observation_noise must hold entries TERM=NUMBER, '
                            f'got {entry!r}') from error
    return noise


def main(args=None) -> int:
    """Run the node; the exit code is 2 if it cannot start."""
    return run(SimNode, args)


if __name__ == '__main__':
    sys.exit(main())
