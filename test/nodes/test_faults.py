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

"""A campaign of faults against policy_node, as processes over real topics.

Each test says which command the robot must get and what diagnostics must say. Whatever happens,
no command may lie outside its limits, and none of the policy's may rest on a stale state.
"""

from array import array
import contextlib
import dataclasses
import os
import re
import signal
import threading
import time

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PointStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from policy_files import joint_spec, pose_spec, reach_weights, write_model
import pytest
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_harness import values
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger

from dpg_robot.contract.spec import ObservationTerm

MAX_AGE_S, GOAL_AGE_S = 0.4, 0.8
LIMIT = 2.0
JOINTS = ('shoulder', 'elbow')
GOOD = {'name': list(JOINTS), 'position': [0.5, 0.25], 'goal': 0.1, 'stamp_s': 0.0}
# torque = (position of the shoulder + the goal, position of the elbow + 1)
WEIGHTS, BIAS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0.0, 1.0])
DRIVEN, OTHER, SAFE = [0.6, 1.25], [0.6, -0.75], [0.0, 0.0]


def arm_spec():
    spec = joint_spec(control_rate_hz=10.0)
    return dataclasses.replace(spec, observation=(
        ObservationTerm('position', 'joint_states', 'sensor_msgs/msg/JointState',
                        tuple(f'position[{joint}]' for joint in JOINTS), 'rad', MAX_AGE_S,
                        (-30.0,) * 2, (30.0,) * 2),
        ObservationTerm('goal', 'goal', 'geometry_msgs/msg/PointStamped', ('point.x',), 'rad',
                        GOAL_AGE_S)))


class Robot:
    """Publish joint states and a goal at 25 Hz, as told, and keep all commands."""

    def __init__(self, ros, namespace='', now_ns=time.time_ns):
        self.ros, self.prefix, self.now_ns = ros, namespace, now_ns
        self.commands = ros.listen(Float64MultiArray, f'{namespace}/effort/commands')
        self.joints = ros.node.create_publisher(JointState, f'{namespace}/joint_states', 1)
        self._goals = ros.node.create_publisher(PointStamped, f'{namespace}/goal', 1)
        self._stop = threading.Event()
        self.heal()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def heal(self):
        self.content, self.mute, self.frozen_ns, self.stutters = dict(GOOD), (), None, False

    def joint_state(self, offset_s=0.0):
        message = JointState(name=self.content['name'])
        message.position = array('d', self.content['position'])
        stamp_ns = self.frozen_ns
        if stamp_ns is None:
            stamp_ns = self.now_ns() + int((self.content['stamp_s'] + offset_s) * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        return message

    def _run(self):
        while not self._stop.wait(0.04):
            if 'joint_states' not in self.mute:
                self.joints.publish(self.joint_state())
                if self.stutters:
                    self.joints.publish(self.joint_state(-0.05))
            if 'goal' not in self.mute:
                goal = PointStamped()
                goal.point.x = self.content['goal']
                goal.header.stamp.sec, goal.header.stamp.nanosec = divmod(self.now_ns(), 10**9)
                self._goals.publish(goal)

    def newest(self):
        return list(self.commands[-1][1].data) if self.commands else None

    def wait(self, command, timeout=30.0):
        """Wait for a command, from now on."""
        count = len(self.commands)
        self.ros.wait(lambda: len(self.commands) > count
                      and self.newest() == pytest.approx(command), timeout, f'command {command}')

    def stays(self, command, seconds=0.3):
        count = len(self.commands)
        time.sleep(seconds)
        self.ros.wait(lambda: len(self.commands) > count, 30.0, 'any command')
        sent = [list(message.data) for _, message in self.commands[count:]]
        assert all(values == pytest.approx(command) for values in sent), sent

    def close(self):
        self._stop.set()
        self._thread.join()

    def check(self):
        sent = np.array([list(message.data) for _, message in self.commands])
        assert np.isfinite(sent).all() and np.abs(sent).max() <= LIMIT


@pytest.fixture(scope='module')
def make_robot(ros):
    """Return a function that makes a robot; at the end, all that any was told is checked."""
    robots = []

    def make(*arguments):
        robots.append(Robot(ros, *arguments))
        return robots[-1]
    yield make
    for robot in robots:
        robot.close()
    for robot in robots:
        robot.check()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return files by name: good ones, and each kind of bad one."""
    folder = tmp_path_factory.mktemp('models')
    files = {'good': write_model(folder / 'good.onnx', arm_spec(), WEIGHTS, bias=BIAS),
             'other': write_model(folder / 'other.onnx', arm_spec(), WEIGHTS, bias=-BIAS),
             'another robot': write_model(folder / 'robot.onnx', pose_spec(), reach_weights())}
    data = files['other'].read_bytes()
    wide = dataclasses.replace(arm_spec().action[0], upper=(3.0, 3.0))
    files['other limits'] = write_model(
        folder / 'wide.onnx', dataclasses.replace(arm_spec(), action=(wide,)), WEIGHTS)
    for name, content in (('corrupt', b'\0' * 500), ('truncated', data[:-200]),
                          ('tampered', data.replace(b'"safe":[0.0', b'"safe":[1.0'))):
        files[name] = folder / f'{name}.onnx'
        files[name].write_bytes(content)
    return files


@pytest.fixture(scope='module')
def arm(ros, models, make_robot):
    """Return a robot whose policy runs, one process for all faults of its inputs and models."""
    robot = make_robot()
    process = ros.start('policy_node', model=models['good'], diagnostics_period_s=0.2,
                        blend_s=0.0, model_topic='announced')
    yield robot
    robot.heal()
    robot.wait(DRIVEN)
    assert ros.stop(process, signal.SIGTERM) == 0
    ros.wait(lambda: robot.newest() == SAFE, what='a last safe command')
    assert 'Traceback' not in process.log.read_text()


@pytest.fixture
def driven(arm):
    arm.heal()
    arm.wait(DRIVEN)
    yield arm
    arm.heal()


def status_of(ros, part, matches=lambda status: True, namespace=''):
    return ros.status(f'{namespace}policy_node: {part}', matches, timeout=30.0)


UNSAFE = [
    ('the state is silent', {'mute': ('joint_states',)}, 'position: stale'),
    ('the goal is silent', {'mute': ('goal',)}, 'goal: stale'),
    ('an old stamp', {'stamp_s': -1.0}, 'position: stale'),
    ('a stamp from the future', {'stamp_s': 1.0}, 'refused: future'),
    ('a missing joint', {'name': ['shoulder', 'wrist']}, 'position: missing, joint_states: joint '
                                                         'elbow must appear once'),
    ('a joint twice', {'name': ['elbow', 'elbow']}, 'position: missing'),
    ('wrong size', {'position': [0.5]}, 'position: size'),
    ('nothing', {'name': [], 'position': []}, 'position: missing'),
    ('not a number', {'position': [0.5, float('nan')]}, 'position: not finite'),
    ('infinity', {'position': [float('-inf'), 0.0]}, 'position: not finite'),
    ('out of range', {'position': [30.1, 0.0]}, 'position: range'),
    ('a frozen stamp', {'frozen_ns': 'now'}, 'refused: duplicate'),
]


@pytest.mark.parametrize('change, words', [row[1:] for row in UNSAFE],
                         ids=[row[0] for row in UNSAFE])
def test_a_fault_gives_the_safe_command_and_its_name(ros, driven, change, words):
    if 'frozen_ns' in change:
        driven.frozen_ns = time.time_ns()
    elif 'mute' in change:
        driven.mute = change['mute']
    else:
        driven.content.update(change)
    status = status_of(ros, 'control', lambda status: words in status.message)
    assert (status.level, values(status)['state']) == (b'\2', 'safe')
    driven.wait(SAFE)
    driven.stays(SAFE)


HARMLESS = [
    ('reordered joints', {'name': ['elbow', 'shoulder'], 'position': [0.25, 0.5]}),
    ('extra joints', {'name': ['wheel', 'elbow', 'shoulder'], 'position': [9.0, 0.25, 0.5]})]


@pytest.mark.parametrize('change', [row[1] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_what_is_no_fault_changes_nothing(ros, driven, change):
    driven.content.update(change)
    driven.stays(DRIVEN, 2.0 * MAX_AGE_S)  # or it is driven by the last good one
    assert values(status_of(ros, 'control'))['state'] == 'running'


def test_backward_stamps_are_left_out(ros, driven):
    driven.stutters = True
    status = status_of(ros, 'inputs', lambda status: int(values(status).get(
        'refused.joint_states.backward', 0)) > 5)
    driven.stays(DRIVEN, 0.2)
    assert values(status_of(ros, 'control'))['state'] == 'running'
    assert float(values(status)['age_s.position']) < MAX_AGE_S


def test_another_node_that_commands_the_same_robot_is_told(ros, driven):
    second = ros.node.create_publisher(Float64MultiArray, 'effort/commands', 1)
    words = 'effort/commands has 2 publishers: '
    status = status_of(ros, 'inputs', lambda status: words in status.message)
    assert status.level == b'\1' and '/test_harness' in status.message
    ros.node.destroy_publisher(second)
    status_of(ros, 'inputs', lambda status: status.message == 'no conflict')


def test_a_wild_state_gives_commands_within_limits(driven):
    driven.content['position'] = [20.0, -20.0]
    driven.wait([LIMIT, -LIMIT])


def test_two_publishers_on_one_topic_are_refused(ros, driven):
    second = ros.node.create_publisher(JointState, 'joint_states', 1)
    stop = threading.Event()

    def intrude():
        while not stop.wait(0.03):
            second.publish(driven.joint_state())
    thread = threading.Thread(target=intrude, daemon=True)
    thread.start()
    status = status_of(ros, 'control', lambda status: 'several publishers' in status.message)
    assert status.level == b'\2'
    driven.wait(SAFE)
    inputs = status_of(ros, 'inputs', lambda s: 'joint_states has 2 publishers' in s.message)
    assert inputs.level == b'\1'
    stop.set()
    thread.join()
    ros.node.destroy_publisher(second)
    driven.wait(DRIVEN)


def test_a_burst_of_messages_changes_nothing_but_the_load(ros, driven):
    begin = time.monotonic()
    for _ in range(10000):
        driven.joints.publish(driven.joint_state())
    assert time.monotonic() - begin < 20.0
    driven.wait(DRIVEN)
    assert values(status_of(ros, 'control', lambda s: values(s)['state'] == 'running'))


PUBLISHER = """
import sys, time, rclpy
from array import array
from sensor_msgs.msg import JointState
rclpy.init(args=sys.argv)
node = rclpy.create_node('victim')
publisher = node.create_publisher(JointState, 'joint_states', 1)
while True:
    message = JointState(name=['shoulder', 'elbow'], position=array('d', [0.5, 0.25]))
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
    time.sleep(0.02)
"""


def test_a_killed_publisher_makes_it_stale(ros, driven):
    driven.mute = ('joint_states',)
    driven.wait(SAFE)
    victim = ros.start('victim', code=PUBLISHER)
    driven.wait(DRIVEN)
    begin = time.monotonic()
    victim.kill()
    victim.wait()
    driven.wait(SAFE)
    assert time.monotonic() - begin < MAX_AGE_S + 2.0  # of which most for a busy machine
    assert 'position: stale' in status_of(ros, 'control').message
    driven.stays(SAFE)


def set_model(ros, path, name='/policy_node'):
    request = SetParameters.Request(parameters=[Parameter(name='model', value=ParameterValue(
        type=ParameterType.PARAMETER_STRING, string_value=str(path)))])
    answer, _ = ros.call(SetParameters, f'{name}/set_parameters', request)
    return answer.results[0].successful


@pytest.mark.parametrize('name, words', [
    ('corrupt', 'must hold exactly one dpg_robot.content_hash'),
    ('truncated', 'content_hash'),
    ('tampered', 'changed after export'),
    ('another robot', 'control_rate_hz must be 10.0'),
    ('other limits', 'action torque.upper must be (2.0, 2.0)')])
def test_a_bad_model_is_refused_and_the_old_one_goes_on(ros, driven, models, name, words):
    assert set_model(ros, models[name])
    status = status_of(ros, 'model', lambda status: words in status.message)
    assert status.level == b'\1'
    assert values(status)['model'] == str(models['good'])
    driven.stays(DRIVEN, 0.2)


def test_models_are_exchanged_under_load(ros, driven, models):
    announce = ros.node.create_publisher(String, 'announced', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    count = len(driven.commands)
    for i in range(300):
        driven.joints.publish(driven.joint_state())
        if i == 100:
            announce.publish(String(data=str(models['other'])))
    driven.wait(OTHER)
    status = status_of(ros, 'model', lambda status: values(status)['exchanges'] == '1')
    assert (status.level, values(status)['model']) == (b'\0', str(models['other']))
    assert set_model(ros, models['good'])
    driven.wait(DRIVEN)
    sent = np.array([list(message.data) for _, message in driven.commands[count:]])
    known = np.array([DRIVEN, OTHER, SAFE])
    assert (np.abs(sent[:, None] - known).max(axis=2).min(axis=1) < 1e-6).all()


class Managed:
    """Client of a node's lifecycle and emergency stop."""

    def __init__(self, ros, name):
        self.ros, self.name = ros, name

    def call(self, kind, service, **request):
        return self.ros.call(kind, f'{self.name}/{service}', kind.Request(**request))[0]

    def go(self, transition):
        """Ask for a transition; return whether it succeeded, and the state."""
        number = getattr(Transition, f'TRANSITION_{transition.upper()}')
        answer = self.call(ChangeState, 'change_state', transition=Transition(id=number))
        return answer.success, self.call(GetState, 'get_state').current_state.label

    def stop(self):
        return self.call(Trigger, 'estop')

    def reset(self):
        return self.call(Trigger, 'reset_estop')


def test_lifecycle_emergency_stop_and_bad_models(ros, models, make_robot):
    """One process goes through all states; what may move, and what may not, in each."""
    robot = make_robot('/managed')
    process = ros.start('policy_node', ['-r', '__ns:=/managed', '-r', 'estop:=safety/stop'],
                        autostart=False,
                        model=models['tampered'], diagnostics_period_s=0.2, blend_s=0.0,
                        model_topic='announced')
    node = Managed(ros, '/managed/policy_node')

    # Unconfigured: a bad model is a failure with its reason, and a wrong request ends nothing.
    assert node.go('activate') == (False, 'unconfigured')
    assert node.go('configure') == (False, 'unconfigured')
    status = status_of(ros, 'control', lambda s: 'changed after export' in s.message, 'managed/')
    assert (status.level, values(status)['state']) == (b'\2', 'failed')
    assert set_model(ros, models['good'], '/managed/policy_node')
    assert node.stop().success
    assert node.go('configure') == (True, 'inactive')

    # Stopped before it was configured: no policy, whatever its state; a reset alone moves nothing.
    assert node.go('activate') == (True, 'active')
    status = status_of(ros, 'control', lambda s: 'estop: latched' in s.message, 'managed/')
    assert (status.level, values(status)['state']) == (b'\2', 'estop')
    robot.stays(SAFE)
    assert 'inactive' in node.reset().message
    count = len(robot.commands)
    time.sleep(0.2)
    assert len(robot.commands) <= count + 1
    assert not node.reset().success
    assert node.go('activate') == (True, 'active')
    robot.wait(DRIVEN)

    # Active: the topic latches, and false does not lift, but a reset while it says true neither.
    button = ros.node.create_publisher(Bool, '/managed/safety/stop', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    ros.wait(lambda: button.get_subscription_count() == 2)
    button.publish(Bool(data=True))
    robot.wait(SAFE)
    answer = node.reset()
    assert not answer.success and answer.message.startswith('still pressed: the last word on')
    button.publish(Bool(data=False))
    robot.stays(SAFE)
    assert node.reset().success
    assert node.go('activate') == (True, 'active')
    robot.wait(DRIVEN)
    ros.node.destroy_publisher(button)

    # Who said true and went away holds nothing up.
    once = ros.node.create_publisher(Bool, '/managed/safety/stop', 10)
    ros.wait(lambda: once.get_subscription_count() == 1)
    once.publish(Bool(data=True))
    robot.wait(SAFE)
    assert not node.reset().success
    ros.node.destroy_publisher(once)
    ros.wait(lambda: node.reset().success, what='the reset')
    assert node.go('activate') == (True, 'active')
    robot.wait(DRIVEN)

    # A stray announcement is refused, and not what is configured next.
    announcement = ros.node.create_publisher(String, '/managed/announced', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    announcement.publish(String(data=str(models['another robot'])))
    status_of(ros, 'model', lambda s: 'control_rate_hz must be' in s.message, 'managed/')

    # Inactive: the safe command last, then silence; a stop sends it all the same.
    assert node.go('deactivate') == (True, 'inactive')
    ros.wait(lambda: robot.newest() == SAFE)
    count = len(robot.commands)
    time.sleep(0.2)
    assert len(robot.commands) == count
    assert node.stop().success
    ros.wait(lambda: len(robot.commands) > count)
    assert robot.newest() == SAFE
    assert node.reset().success

    # And all the way back; what is announced meanwhile and is no policy holds up one configure.
    assert node.go('cleanup') == (True, 'unconfigured')
    announcement.publish(String(data=str(models['tampered'])))
    ros.wait(lambda: not (node.go('configure')[0] and node.go('cleanup')), what='the refusal')
    assert node.go('configure') == (True, 'inactive')
    assert node.go('activate') == (True, 'active')
    robot.wait(DRIVEN)
    assert node.go('active_shutdown') == (True, 'finalized')
    ros.wait(lambda: robot.newest() == SAFE)
    volatile = ros.node.create_publisher(Bool, '/managed/safety/stop', 10)
    ros.wait(lambda: volatile.get_subscription_count() == 1, what='the subscription')
    assert ros.stop(process) == 0
    log = process.log.read_text()
    assert 'Traceback' not in log and 'incompatible QoS' not in log
    assert log.count('emergency stop lifted') == 4
    for sent in ('not configured: nothing sent', 'safe command', 'inactive: safe command, except'):
        assert re.search(f'emergency stop by .*: {sent}', log)


FAIL_TO_END = """
import sys

from dpg_robot.nodes import policy_node, policy_topics


def flush(topics):
    raise RuntimeError('no more messages')
policy_topics.PolicyTopics.flush = flush
sys.exit(policy_node.main())
"""


def test_a_deactivate_that_fails_leaves_nothing_half_open(ros, models, make_robot, tmp_path):
    robot = make_robot('/failing')
    process = ros.start('policy_node', ['-r', '__ns:=/failing'], code=FAIL_TO_END, blend_s=0.0,
                        model=models['good'], record_folder=tmp_path / 'flights')
    node = Managed(ros, '/failing/policy_node')
    robot.wait(DRIVEN)
    node.go('deactivate')
    assert node.call(GetState, 'get_state').current_state.label == 'unconfigured'
    status = status_of(ros, 'control', lambda s: 'deactivate failed' in s.message, 'failing/')
    assert (status.level, values(status)['state']) == (b'\2', 'failed')
    ros.wait(lambda: robot.newest() == SAFE)
    count = len(robot.commands)
    time.sleep(0.3)
    assert len(robot.commands) == count
    assert node.go('configure') == (True, 'inactive')  # its recorder and topics are free again
    assert node.go('activate') == (True, 'active')
    robot.wait(DRIVEN)
    assert node.go('active_shutdown')[1] == 'finalized'
    status = status_of(ros, 'control', lambda s: 'shutdown failed' in s.message, 'failing/')
    assert values(status)['lifecycle'] == 'finalized'
    ros.stop(process)


def test_simulated_time_goes_on_stands_still_and_is_set_back(ros, models, make_robot):
    clock = {'s': 100.0, 'rate': 1.0}
    robot = make_robot('/simulated', lambda: int(clock['s'] * 1e9))
    publisher = ros.node.create_publisher(Clock, '/clock', 1)
    stop = threading.Event()

    def run():
        while not stop.wait(0.02):
            clock['s'] += 0.02 * clock['rate']
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(int(clock['s'] * 1e9), 10**9)
            publisher.publish(message)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    process = ros.start('policy_node', ['-r', '__ns:=/simulated'], model=models['good'],
                        use_sim_time=True, diagnostics_period_s=0.2, blend_s=0.0,
                        future_tolerance_s=0.2)
    robot.wait(DRIVEN)
    status = status_of(ros, 'inputs', namespace='simulated/')
    assert abs(float(values(status)['age_s.position'])) < 1.0

    clock['rate'] = 0.0  # a pause: nothing gets older, and nothing moves
    time.sleep(0.3)
    count = len(robot.commands)
    status_of(ros, 'control', lambda s: 'does /clock stand still?' in s.message, 'simulated/')
    assert len(robot.commands) <= count + 2
    node = Managed(ros, '/simulated/policy_node')
    assert node.stop().success  # said at once, though there is no tick
    status = status_of(ros, 'control', lambda s: s.message.startswith('estop: '), 'simulated/')
    assert (status.level, values(status)['state']) == (b'\2', 'estop')
    assert node.reset().success
    assert node.go('activate') == (True, 'active')
    clock['rate'] = 1.0
    robot.wait(DRIVEN)

    clock['rate'] = 0.0  # so that no command of the old time is under way
    status_of(ros, 'control', lambda s: 'does /clock stand still?' in s.message, 'simulated/')
    count = len(robot.commands)
    clock['s'] = 5.0
    ros.wait(lambda: 'simulated time was set' in process.log.read_text(), what='the jump')
    ros.wait(lambda: len(robot.commands) > count, what='the safe command')
    time.sleep(0.2)
    assert all(list(message.data) == SAFE for _, message in robot.commands[count:])
    clock['rate'] = 1.0
    robot.wait(DRIVEN)

    robot.mute = ('joint_states', 'goal')
    clock['s'] += 50.0
    status_of(ros, 'control', lambda s: 'position: stale' in s.message, 'simulated/')
    robot.wait(SAFE)
    robot.heal()
    robot.wait(DRIVEN)
    assert ros.stop(process) == 0
    stop.set()
    thread.join()


def fill(pipe):
    """Write until nothing more fits."""
    os.set_blocking(pipe, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b'x' * size)
    os.set_blocking(pipe, True)


def test_output_that_nobody_reads_stops_no_command_and_no_stop(ros, models, make_robot):
    """A terminal that stands still must not freeze the node while it drives a robot."""
    reader, writer = os.pipe()
    robot = make_robot('/mute')
    process = ros.start('policy_node', ['-r', '__ns:=/mute'], output=writer, blend_s=0.0,
                        model=models['good'], model_topic='announced')
    robot.wait(DRIVEN)
    announcement = ros.node.create_publisher(String, '/mute/announced', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    button = ros.node.create_publisher(Bool, '/mute/estop', 10)
    fill(writer)
    announcement.publish(String(data='/nowhere/model.onnx'))
    status_of(ros, 'model', lambda status: 'nowhere' in status.message, 'mute/')
    robot.stays(DRIVEN)
    robot.mute = ('joint_states',)
    robot.wait(SAFE)
    robot.heal()
    robot.wait(DRIVEN)
    button.publish(Bool(data=True))
    robot.wait(SAFE)
    robot.stays(SAFE)
    assert ros.stop(process) == 0
    os.close(reader)
    os.close(writer)


def test_no_policy_commands_before_a_pressed_stop_can_be_heard(ros, models, make_robot):
    """The state may be there before the stop is: discovery takes its time for each."""
    button = ros.node.create_publisher(Bool, '/pressed/estop', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    robot = make_robot('/pressed')
    process = ros.start('policy_node', ['-r', '__ns:=/pressed'], model=models['good'],
                        blend_s=0.0, diagnostics_period_s=0.1, estop_listen_s=30.0)
    waiting = status_of(ros, 'control', lambda status: 'estop: listening' in status.message,
                        'pressed/')
    assert waiting.message.startswith('waiting') and waiting.level == DiagnosticStatus.WARN
    robot.wait(SAFE)
    button.publish(Bool(data=True))
    status_of(ros, 'control', lambda status: 'estop: latched' in status.message, 'pressed/')
    assert {tuple(message.data) for _, message in robot.commands} == {tuple(SAFE)}
    assert ros.stop(process) == 0


def test_two_robots_share_a_machine_and_nothing_else(ros, models, make_robot):
    robots = [make_robot(f'/robot{i}') for i in (1, 2)]
    processes = [ros.start('policy_node', ['-r', f'__ns:=/robot{i}'], model=models[name],
                           diagnostics_period_s=0.2)
                 for i, name in ((1, 'good'), (2, 'other'))]
    for robot, command in zip(robots, (DRIVEN, OTHER)):
        robot.wait(command)
    robots[0].mute = ('joint_states',)
    robots[0].wait(SAFE)
    robots[1].wait(OTHER)
    assert 'position: stale' in status_of(ros, 'control', namespace='robot1/').message
    for process in processes:
        assert ros.stop(process) == 0
