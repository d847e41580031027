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

"""Tests of policy_node as a process, over real topics."""

from array import array
import os
from pathlib import Path
import re
import signal
import threading
import time
from types import SimpleNamespace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
import numpy as np
from policy_files import joint_spec, pose_spec, reach_weights, write_model
import pytest
import rclpy
from rclpy.qos import QoSProfile
from ros_harness import values
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from dpg_robot.nodes import policy_node
from dpg_robot.nodes.policy_node import PolicyNode
from dpg_robot.runtime.flight_reader import read_flight

PERIOD_S = 0.02
MAX_AGE_S = 0.1
STATUS = 'policy_node: control'
# torque = (position of the shoulder, 10 * velocity of the elbow)
WEIGHTS = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 10.0]])
GOOD = {'name': ['shoulder', 'elbow'], 'position': [0.5, 7.0], 'velocity': [0.0, 0.1]}
EXPECTED = [0.5, 1.0]


class Feeder:
    """Publish a joint state at 50 Hz, whatever it is set to."""

    def __init__(self, ros, topic='joint_states'):
        self.content, self.stamp_offset_s, self.silent = dict(GOOD), 0.0, False
        self.flickers, self._num = False, 0
        self._node = ros.node
        self._publisher = ros.node.create_publisher(JointState, topic, QoSProfile(depth=1))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(PERIOD_S):
            if self.silent:
                continue
            message = JointState(name=self.content['name'])
            message.position = array('d', self.content['position'])
            self._num += 1
            is_bad = self.flickers and self._num % 2
            message.velocity = array('d', () if is_bad else self.content['velocity'])
            stamp = time.time_ns() + int(self.stamp_offset_s * 1e9)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
            self._publisher.publish(message)

    def close(self):
        self._stop.set()
        self._thread.join()
        self._node.destroy_publisher(self._publisher)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('models') / 'joint.onnx', joint_spec(), WEIGHTS)


@pytest.fixture(scope='module')
def arm(ros, model):
    """Return a feeder, the commands, and the running node's process."""
    commands = ros.listen(Float64MultiArray, 'effort/commands')
    feeder = Feeder(ros)
    process = ros.start('policy_node', model=model, diagnostics_period_s=0.2)
    yield feeder, commands, process
    feeder.close()
    assert ros.stop(process) == 0


@pytest.fixture
def running(ros, arm):
    """Return feeder and commands, once the policy has command with a good state."""
    feeder, commands, _ = arm
    feeder.content, feeder.stamp_offset_s, feeder.silent = dict(GOOD), 0.0, False
    ros.wait(lambda: commands and newest(commands) == EXPECTED, what='the policy in command')
    return feeder, commands


def newest(commands):
    return list(commands[-1][1].data)


def test_commands_come_at_the_rate_of_the_spec(ros, running):
    _, commands = running
    count, arrays = len(commands), ros.listen(DiagnosticArray, '/diagnostics')

    def figures():
        """Return time [s], ticks and deadline misses at each report, as the node tells them."""
        return np.array([(array.header.stamp.sec % 10**6 + 1e-9 * array.header.stamp.nanosec,
                          int(values(status)['ticks']), int(values(status)['deadline_misses']))
                         for _, array in arrays for status in array.status
                         if status.name == STATUS])
    ros.wait(lambda: len(told := figures()) and np.ptp(told[:, 1]) >= 100, 30.0)
    seconds, ticks, misses = np.ptp(figures(), axis=0)
    # Never faster; slower by at most the wait for a late state, a quarter of a period.
    assert 0.95 <= seconds / ((ticks + misses) * PERIOD_S) <= 1.3
    ros.wait(lambda: len(commands) - count >= 50, what='a command for each tick')
    status = ros.status(STATUS, lambda status: status.message == 'running')
    told = values(status)
    assert status.level == DiagnosticStatus.OK
    assert status.hardware_id == 'test_arm'
    assert float(told['control_rate_hz']) == pytest.approx(50.0)
    assert float(told['achieved_rate_hz']) < 1.5 * 50.0  # in 0.2 s, some 10 ticks
    for name in ('tick_us', 'state_to_command_us'):
        p50, p99, largest = (float(told[f'{name}.{key}']) for key in ('p50', 'p99', 'max'))
        assert 0.0 < p50 <= p99 <= largest
    assert float(told['state_to_command_us.p50']) < 1e6 * MAX_AGE_S
    assert int(told['ticks']) > int(told['safe_ticks'])
    assert told['lifecycle'] == 'active'
    inputs = values(ros.status('policy_node: inputs', lambda status: 0.0 <= float(
        values(status)['age_s.position']) < MAX_AGE_S))
    assert int(inputs['received.joint_states']) > 50
    assert inputs['publishers.joint_states'] == '/test_harness'
    told = values(ros.status('policy_node: model'))
    assert (told['task'], told['mode'], len(told['content_hash'])) == ('hold', 'deterministic', 64)


def test_its_status_is_kept_for_whoever_comes_later(ros, running):
    statuses = ros.listen(DiagnosticStatus, 'policy_node/status', transient=True)
    ros.wait(lambda: statuses)
    told = values(statuses[0][1])
    assert {'state', 'lifecycle', 'tick_us.p99', 'age_s.velocity', 'content_hash', 'mode',
            'clipped.torque.elbow', 'estop'} <= told.keys()
    assert (statuses[0][1].name, told['estop']) == (STATUS, 'not latched')


def test_a_pause_of_the_process_is_counted_not_made_up_for(ros, running, arm):
    _, commands = running
    before = int(values(ros.status(STATUS))['deadline_misses'])
    arm[2].send_signal(signal.SIGSTOP)
    time.sleep(20 * PERIOD_S)
    arm[2].send_signal(signal.SIGCONT)
    first = len(commands)
    ros.status(STATUS, lambda s: int(values(s)['deadline_misses']) >= before + 15)
    time.sleep(10 * PERIOD_S)
    # Besides one in each period: that of the tick that was interrupted, the watchdog's, that for
    # a state just behind the first command, and what the listener's own delays add. Not twenty.
    times = [when for when, _ in commands[first:]]
    assert len(times) <= 1 + (times[-1] - times[0]) / PERIOD_S + 6


def test_joints_are_mapped_by_name(ros, running):
    feeder, commands = running
    feeder.content = {'name': ['elbow', 'wheel', 'shoulder'], 'position': [7.0, 9.0, 0.25],
                      'velocity': [0.05, 9.0, 0.0]}
    ros.wait(lambda: newest(commands) == pytest.approx([0.25, 0.5]))


def test_commands_stay_within_limits_and_rates(ros, running):
    feeder, commands = running
    first = len(commands)
    feeder.content = {**GOOD, 'position': [50.0, 0.0], 'velocity': [0.0, -4.0]}
    ros.wait(lambda: newest(commands) == [2.0, -2.0])
    sent = np.array([list(message.data) for _, message in commands[first:]])
    assert np.abs(sent).max() <= 2.0
    assert np.abs(np.diff(sent[:, 0])).max() <= 50.0 * PERIOD_S + 1e-9
    told = values(ros.status(STATUS))
    assert int(told['clipped.torque.shoulder']) > 0
    assert int(told['clipped.torque.elbow']) > 0
    assert int(told['rate_limited.torque.shoulder']) > 0


def test_a_flickering_sensor_does_not_alternate_the_commands(ros, arm, running):
    feeder, commands = running
    first, told = len(ros.diagnostics), arm[2].log.read_text().count('safe command')
    feeder.flickers = True
    time.sleep(0.2)
    begin = len(commands)
    time.sleep(1.0)
    sent = [list(message.data) for _, message in commands[begin:]]
    feeder.flickers = False
    assert len(sent) > 30
    # A tick may miss the bad message of a pair; three such in a row are rare.
    assert sum(command != [0.0, 0.0] for command in sent) < 0.1 * len(sent)
    ros.wait(lambda: newest(commands) == EXPECTED, what='the policy in command')
    assert any(status.message == 'recovering' and status.level == DiagnosticStatus.WARN
               for status in ros.diagnostics[first:])
    # Told once for each report of 0.2 s, not for each of some thirty bad messages.
    assert 1 <= arm[2].log.read_text().count('safe command') - told <= 10
    ros.wait(lambda: 'all observations are fresh' in arm[2].log.read_text().splitlines()[-1],
             what='a log that ends with how it is')


def test_what_was_held_back_is_told_if_it_is_still_so():
    told, lines = [], SimpleNamespace(info=lambda line: None, error=lambda line: None)
    node = SimpleNamespace(_told=None, _told_lately=set(), get_logger=lambda: lines,
                           report=lambda: told.append(state))
    bad = SimpleNamespace(term='position', kind='size')
    for state, ticks in (('running', 2), ('safe', 1), ('running', 2), ('safe', 1), ('running', 2)):
        for _ in range(ticks):
            PolicyNode._tell_changes(node, SimpleNamespace(
                state=state, faults=(bad,) * (state == 'safe')))
    assert told == ['running', 'safe']
    node._told_lately.clear()  # as at each report
    PolicyNode._tell_changes(node, SimpleNamespace(state=state, faults=()))
    assert told == ['running', 'safe', 'running']


@pytest.mark.parametrize('silence_s, told', [
    (0.4, []), (0.6, [('WARN', 'waiting: no ticks'), *[('waiting', 'no ticks')] * 2])])
def test_a_slow_policy_is_not_called_silent(silence_s, told):
    found = []
    node = SimpleNamespace(
        control_loop=SimpleNamespace(period_s=0.25, is_stalled=False), clock=None, _silent=None,
        _log=lambda level, line: found.append((level, line)),
        estop=SimpleNamespace(why=''),
        settings={'diagnostics_period_s': 0.1}, _silence_s=lambda: silence_s,
        _status=SimpleNamespace(publish=lambda *status: found.append(status)))
    for _ in range(2):  # logged once
        PolicyNode._look_for_silence(node)
    assert found == told


def test_no_timer_wakes_its_executor():
    """Each look keeps the interpreter from a tick, and a timer's from ticks of one phase."""
    rclpy.init(args=['--ros-args', '-p', 'autostart:=false'])
    try:
        node = PolicyNode(threading.Event())
        assert list(node.timers) == []
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_where_nothing_ticks_it_reports_once_a_period(ros, model):
    name = 'cell8/policy_node: control'
    process = ros.start('policy_node', ['-r', '__ns:=/cell8'], model=model, autostart=False,
                        diagnostics_period_s=0.2)
    ros.status(name)
    first, began_s = len(ros.diagnostics), time.monotonic()
    ros.wait(lambda: [status.name for status in ros.diagnostics[first:]].count(name) >= 10)
    assert time.monotonic() - began_s > 1.8
    assert ros.stop(process) == 0


@pytest.mark.parametrize('change, term, kind', [
    ({'name': ['shoulder', 'wrist']}, 'position', 'missing'),
    ({'position': [0.5]}, 'position', 'size'),
    ({'velocity': []}, 'velocity', 'size'),
    ({'position': [float('nan'), 0.0]}, 'position', 'not finite'),
    ({'velocity': [0.0, float('inf')]}, 'velocity', 'not finite'),
    ({'velocity': [0.0, -5.1]}, 'velocity', 'range')])
def test_a_bad_message_gives_the_safe_command_and_names_the_term(
        ros, running, change, term, kind):
    feeder, commands = running
    first = len(ros.diagnostics)
    feeder.content = {**GOOD, **change}
    ros.wait(lambda: newest(commands) == [0.0, 0.0], what='the safe command')
    status = ros.wait(lambda: next((
        status for status in ros.diagnostics[first:]
        if status.name == STATUS and status.level == DiagnosticStatus.ERROR), None))
    assert status.message.startswith('safe: ')
    assert f'{term}: {kind}' in status.message
    assert values(status)[f'fault.{term}'].startswith(kind)


def test_an_old_stamp_is_stale_though_it_just_arrived(ros, running):
    feeder, commands = running
    feeder.stamp_offset_s = -1.0
    ros.wait(lambda: newest(commands) == [0.0, 0.0])
    status = ros.status(STATUS)
    assert 'position: stale' in status.message and 'velocity: stale' in status.message


def test_silence_gives_the_safe_command_in_time(ros, running):
    feeder, commands = running
    misses, first = int(values(ros.status(STATUS))['deadline_misses']), len(ros.diagnostics)
    feeder.silent = True
    ros.wait(lambda: newest(commands) == [0.0, 0.0])
    words = 'joint_states must be at most 0.1 s old, got '
    status = ros.wait(lambda: next((status for status in ros.diagnostics[first:]
                                    if status.name == STATUS and words in status.message), None))
    assert status.level == DiagnosticStatus.ERROR
    # The tick that found it: one period late, another for a late state and a late waking.
    age_s = float(status.message.partition(words)[2].split()[0])
    misses = int(values(ros.status(STATUS))['deadline_misses']) - misses
    assert MAX_AGE_S <= age_s < MAX_AGE_S + (2 + misses) * PERIOD_S
    count = len(commands)
    ros.wait(lambda: len(commands) > count + 5, what='safe commands that go on')
    assert words in ros.status(STATUS).message


def test_state_changes_are_logged_once(ros, running, arm):
    feeder, commands = running
    before = arm[2].log.read_text().count('safe command')
    feeder.content = {**GOOD, 'velocity': []}
    ros.wait(lambda: newest(commands) == [0.0, 0.0])
    time.sleep(0.3)
    assert arm[2].log.read_text().count('safe command') == before + 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_it_with_the_safe_command(ros, model, number):
    commands = ros.listen(Float64MultiArray, '/cell/effort/commands')
    feeder = Feeder(ros, '/cell/joint_states')
    process = ros.start('policy_node', ['-r', '__ns:=/cell'], model=model)
    ros.status(f'cell/{STATUS}', lambda status: status.message == 'running')
    ros.wait(lambda: commands and newest(commands) == EXPECTED)
    assert ros.stop(process, number) == 0
    feeder.close()
    ros.wait(lambda: [list(message.data) for _, message in commands[-3:]] == 3 * [[0.0, 0.0]],
             what='three last safe commands')
    assert 'Traceback' not in process.log.read_text()


def test_signals_back_to_back_end_it_as_one_does(ros, model):
    commands = ros.listen(Float64MultiArray, '/cell3/effort/commands')
    feeder = Feeder(ros, '/cell3/joint_states')
    for _ in range(10):
        first = len(commands)
        process = ros.start('policy_node', ['-r', '__ns:=/cell3'], model=model)
        ros.wait(lambda: len(commands) > first and newest(commands) == EXPECTED)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert ros.stop(process, signal.SIGTERM) == 0
        assert time.monotonic() - begin < 3.0
        ros.wait(lambda: newest(commands) == [0.0, 0.0], what='a last safe command')
    feeder.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs two cores')
def test_only_the_control_thread_has_the_core(ros, model):
    """The watchdog above all must not wait for a core that a stuck policy has."""
    core = max(os.sched_getaffinity(0))
    process = ros.start('policy_node', ['-r', '__ns:=/cell6'], model=model, cpu=core)
    ros.status('cell6/policy_node: control')

    def pinned():
        threads = [(task / 'status').read_text()
                   for task in Path(f'/proc/{process.pid}/task').iterdir()]
        return sum(f'Cpus_allowed_list:\t{core}\n' in text for text in threads)
    ros.wait(pinned, what='a thread on its core')  # its loop begins behind the first status
    time.sleep(0.2)
    assert pinned() == 1
    assert ros.stop(process) == 0


def test_a_parameter_of_another_type_ends_it_with_one_line(ros, model):
    process = ros.start('policy_node', ['-r', '__ns:=/cell7'], model=model, use_sim_time=1)
    assert process.wait(timeout=20) == 2
    assert len(process.log.read_text().strip().splitlines()) == 1


STICKY = """
import pathlib, sys, time
from dpg_robot.nodes import policy_node

class Sticky(policy_node.OnnxPolicy):
    def __call__(self, observation, eps=None):
        if observation[0] == 1.0:
            pathlib.Path('stuck').touch()
            while not pathlib.Path('released').exists():
                time.sleep(0.01)
        return super().__call__(observation, eps)

policy_node.OnnxPolicy = Sticky
sys.exit(policy_node.main())
"""


@pytest.fixture
def sticky(ros, model):
    """Return a feeder, commands, a process whose policy will be stuck, and its two files."""
    stuck, released = ros.folder / 'stuck', ros.folder / 'released'
    for path in (stuck, released):
        path.unlink(missing_ok=True)
    commands = ros.listen(Float64MultiArray, '/cell5/effort/commands')
    feeder = Feeder(ros, '/cell5/joint_states')
    process = ros.start('policy_node', ['-r', '__ns:=/cell5'], code=STICKY, model=model)
    ros.wait(lambda: commands and newest(commands) == EXPECTED)
    yield feeder, commands, process, stuck, released
    released.touch()
    feeder.close()


def test_a_stuck_policy_gives_the_safe_command(ros, sticky):
    feeder, commands, process, stuck, released = sticky
    first = len(ros.diagnostics)
    feeder.content = {**GOOD, 'position': [1.0, 7.0]}
    ros.wait(lambda: newest(commands) == [0.0, 0.0], what='the safe command')
    assert stuck.exists()
    count = len(commands)
    ros.wait(lambda: len(commands) > count + 3, what='safe commands that go on')
    assert all(list(message.data) == [0.0, 0.0] for _, message in commands[count:])
    feeder.content = dict(GOOD)
    released.touch()
    ros.wait(lambda: newest(commands) == EXPECTED, what='the policy in command')
    assert [1.0, 1.0] not in [list(message.data) for _, message in commands]
    stalled = [status for status in ros.diagnostics[first:]
               if status.name == f'cell5/{STATUS}' and status.message.startswith('stalled')]
    assert stalled and {status.level for status in stalled} == {DiagnosticStatus.ERROR}
    # Each stall is told once; a busy machine may have more of them.
    numbers = [int(values(status)['stalls']) for status in stalled]
    assert len(set(numbers)) == len(numbers)
    assert ros.stop(process) == 0


def test_a_stuck_policy_gives_the_safe_command_at_the_end_too(ros, sticky):
    feeder, commands, process, stuck, released = sticky
    feeder.content = {**GOOD, 'position': [1.0, 7.0]}
    ros.wait(stuck.exists)
    process.send_signal(signal.SIGTERM)
    ros.wait(lambda: newest(commands) == [0.0, 0.0], what='the safe command')
    released.touch()
    assert process.wait(timeout=10) == 0
    assert newest(commands) == [0.0, 0.0]
    assert [1.0, 1.0] not in [list(message.data) for _, message in commands]


@pytest.mark.parametrize('control, topics', [(None, object()), (object(), None)])
def test_the_end_in_the_middle_of_a_cleanup_does_no_harm(control, topics):
    PolicyNode._end_commands(SimpleNamespace(control=control, topics=topics))


@pytest.mark.parametrize('is_open, sent', [
    (None, 'not configured: nothing sent'), (True, 'safe command'),
    (False, 'inactive: safe command, except on topics with elements that hold')])
def test_a_stop_that_is_repeated_is_told_once(is_open, sent):
    lines, reports, stops = [], [], []
    control = None if is_open is None else SimpleNamespace(is_open=is_open, stop=stops.append)
    node = SimpleNamespace(
        control=control, estop=SimpleNamespace(num_stops=1), _num_stops_told=0,
        _estop_fault=lambda: 'fault', _log=lambda level, line: lines.append(line),
        report=lambda: reports.append(None))
    for node.estop.num_stops in (1, 1, 2, 2):
        PolicyNode._on_estop(node, 'by topic estop')
    assert lines == [f'emergency stop by topic estop: {sent}'] * 2
    assert len(reports) == 2
    assert stops == ['fault'] * 4 * (is_open is not None)  # each of them stops


def test_what_was_held_back_is_told_and_garbage_collected_each_second(monkeypatch):
    now_s, lately, collected = [100.0], [], []
    monkeypatch.setattr('time.monotonic', lambda: now_s[0])
    monkeypatch.setattr(policy_node, 'collect_garbage', lambda: collected.append(now_s[0]))

    def wait():
        now_s[0] += 0.25
        return now_s[0] < 103.0
    loop = SimpleNamespace(wait=wait, tick=lambda: None,
                           control=SimpleNamespace(policy='policy'))
    node = SimpleNamespace(
        control_loop=loop, recorder=None, _told_lately={'running'}, _told_s=100.0,
        _collected_s=100.0, settings={'diagnostics_period_s': 60.0}, report=lambda: None,
        _status=SimpleNamespace(published_s=100.0))

    def tell(loop):
        lately.append(len(node._told_lately))
        node._told_lately.add('running')
    node._tell_changes = tell
    PolicyNode._drive(node, loop)
    assert lately == [1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    assert collected == [101.0, 102.0]


def test_every_tick_is_recorded_if_asked(ros, model):
    commands = ros.listen(Float64MultiArray, '/cell6/effort/commands')
    feeder = Feeder(ros, '/cell6/joint_states')
    folder = ros.folder / 'flight'
    process = ros.start('policy_node', ['-r', '__ns:=/cell6'], model=model, record_folder=folder,
                        diagnostics_period_s=0.2)
    status = ros.status('cell6/policy_node: recorder', lambda s: int(
        values(s)['recorder.ticks']) > 20)
    assert (status.level, values(status)['recorder.dropped']) == (DiagnosticStatus.OK, '0')
    ros.wait(lambda: newest(commands) == EXPECTED, what='the policy in command')
    first = len(ros.diagnostics)
    assert ros.stop(process) == 0
    feeder.close()
    last = ros.wait(lambda: next((
        status for status in ros.diagnostics[first:]
        if status.name == f'cell6/{STATUS}' and status.message.startswith('stopped')), None))
    flight = read_flight(folder)
    assert len(flight.times_ns) == int(values(last)['ticks']) > 20
    assert (flight.num_missing, flight.damaged) == (0, [])
    assert flight.events[-1][2] == 'no policy commands any more: the safe command is out'
    driven = flight.numbers['driven'] == 1
    assert flight.command[driven][-1] == pytest.approx(EXPECTED)
    assert flight.observation[driven][-1] == pytest.approx([0.5, 7.0, 0.0, 0.1])


def blended(ros, model, name):
    """Return the second command element from the last safe command to the policy's own."""
    commands = ros.listen(Float64MultiArray, f'{name}/effort/commands')
    feeder = Feeder(ros, f'{name}/joint_states')
    process = ros.start('policy_node', ['-r', f'__ns:={name}'], model=model, blend_s=0.5)
    ros.wait(lambda: commands and newest(commands) == EXPECTED)
    feeder.close()
    assert ros.stop(process) == 0
    sent = np.array([list(message.data) for _, message in commands])
    end = next(i for i, command in enumerate(sent) if (command == EXPECTED).all())
    safe = (i for i, command in enumerate(sent[:end]) if not command.any())
    return sent[max(safe, default=-1) + 1:end, 1]


def test_commands_blend_in(ros, model):
    for attempt in range(3):  # on a busy machine a command may get lost on its way to the test
        rise = blended(ros, model, f'/cell7{attempt}')
        if len(rise) > 20 and rise[0] == pytest.approx(PERIOD_S / 0.5):
            break
    assert rise[0] == pytest.approx(PERIOD_S / 0.5)
    assert len(rise) > 5 and (np.diff(rise) > 0).all(), rise.tolist()


def test_hangup_is_ignored_where_nohup_says_so(ros, model):
    commands = ros.listen(Float64MultiArray, '/cell4/effort/commands')
    process = ros.start(
        'policy_node', ['-r', '__ns:=/cell4'], ignored=[signal.SIGHUP], model=model)
    ros.wait(lambda: commands)
    process.send_signal(signal.SIGHUP)
    count = len(commands)
    ros.wait(lambda: len(commands) > count + 20, what='commands that go on')
    assert ros.stop(process) == 0


def test_it_waits_in_safety_and_takes_a_parameter_file(ros, tmp_path):
    model = write_model(tmp_path / 'reach.onnx', pose_spec(), reach_weights())
    parameters = tmp_path / 'robot.yaml'
    parameters.write_text('/**:\n  policy_node:\n    ros__parameters:\n      mode: sampled\n'
                          '      diagnostics_period_s: 0.3\n')
    commands = ros.listen(TwistStamped, '/cell2/hand/command')
    process = ros.start('policy_node', ['-r', '__ns:=/cell2', '--params-file', str(parameters)],
                        model=model, seed=3)
    # On a busy machine the first report may come before the first tick, or of a stall.
    status = ros.status(f'cell2/{STATUS}', lambda status: 'hand: never' in status.message)
    assert status.level == DiagnosticStatus.WARN
    assert 'hand: never received' in status.message
    assert 'goal: never received' in status.message
    ros.wait(lambda: re.search('waiting: .*hand: never received', process.log.read_text()))
    ros.wait(lambda: len(commands) > 3)
    twist = commands[-1][1]
    assert (twist.twist.linear.x, twist.header.frame_id) == (0.0, 'world')
    assert abs(twist.header.stamp.sec - time.time()) < 5
    publishers = [ros.node.create_publisher(PoseStamped, f'/cell2/{name}/pose', 1)
                  for name in ('hand', 'goal')]

    def is_driven():
        for publisher in publishers:
            publisher.publish(PoseStamped())
        time.sleep(0.02)
        # The same pose twice would give zero, if the noise were not sampled.
        return commands[-1][1].twist.linear.x != 0.0
    ros.wait(is_driven)
    told = values(ros.status('cell2/policy_node: model'))
    assert (told['task'], told['mode']) == ('reach', 'sampled')
    assert ros.stop(process) == 0


@pytest.mark.parametrize('parameters, words', [
    ({'model': '/none/here.onnx'}, 'model file /none/here.onnx cannot be read'),
    ({'mode': 'random'}, "parameter mode must be one of deterministic, sampled; got 'random'"),
    ({'blend_s': 11.0}, 'parameter blend_s must be from 0.0 to 10.0, got 11.0'),
    ({'seed': 'x'}, 'parameter seed must be an integer, got x'),
    ({'model': 'tampered.onnx'}, 'changed after export')])
def test_a_startup_error_is_one_line(ros, model, parameters, words):
    if parameters.get('model') == 'tampered.onnx':
        text = model.read_bytes().replace(b'"safe":[0.0', b'"safe":[1.0')
        (ros.folder / 'tampered.onnx').write_bytes(text)
    process = ros.start('policy_node', **{'model': model, **parameters})
    assert process.wait(timeout=20) == 2
    lines = process.log.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('policy_node: ')
    assert words in lines[0]


def test_all_is_forgotten_when_the_clock_is_set():
    did = []
    node = SimpleNamespace(
        topics=SimpleNamespace(forget=lambda: did.append('stamps')),
        control=SimpleNamespace(observation=SimpleNamespace(forget=lambda: did.append('state')),
                                interrupt=lambda: did.append('safe')),
        _log=lambda *line: None)
    PolicyNode._on_clock_set(node)
    assert did == ['stamps', 'state', 'safe']
