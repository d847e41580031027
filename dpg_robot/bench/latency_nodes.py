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

"""The processes beside policy_node in the latency benchmark: the robot, and a bare echo.

Run as ``python -m dpg_robot.bench.latency_nodes robot NAMESPACE SETTINGS`` or ``... echo
NAMESPACE``. What they import from ROS they import when they run: this room of the package does not
(docs/architecture.md).
"""

from __future__ import annotations

from array import array
import gc
import json
import signal
import sys
import threading
import time

import numpy as np

STATE_TOPIC, COMMAND_TOPIC = 'joint_states', 'commands'
# So many states in turn, all different: a command tells which one it answers.
NUM_STATES = 4096
_START_TIMEOUT_S, _WARM_UP_S = 60.0, 1.0


def states(num_joints: int) -> np.ndarray:
    """Return the states that the robot is in, in turn: positions, then velocities of a row."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (NUM_STATES, 2 * num_joints))


class _Robot:
    """Publish states on absolute deadlines, and note when which command comes."""

    def __init__(self, node, settings):
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Float64MultiArray
        self._node, self._settings = node, settings
        self._publisher = node.create_publisher(JointState, STATE_TOPIC, QoSProfile(
            depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        node.create_subscription(Float64MultiArray, COMMAND_TOPIC, self._on_command, QoSProfile(
            depth=10, reliability=ReliabilityPolicy.RELIABLE))
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        num_joints = settings['joints']
        self._message = JointState(name=[f'joint_{i}' for i in range(num_joints)])
        self._rows = [(array('d', row[:num_joints]), array('d', row[num_joints:]))
                      for row in states(num_joints)]
        self.sent_s, self.received_s, self.commands = [], [], []
        self.diagnostics, self._num_diagnostics = {}, 0

    def _on_command(self, message):
        self.received_s.append(time.monotonic())
        self.commands.append(message.data)

    def _on_diagnostics(self, array):
        for status in array.status:
            if status.name == f'{self._node.get_namespace()[1:]}/policy_node: control':
                self.diagnostics = {item.key: item.value for item in status.values}
                self._num_diagnostics += 1

    def run(self):
        """Return when measuring began and ended, once it did."""
        is_policy = self._settings['is_policy']
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        self._publish(lambda: time.monotonic() < give_up_s and not (
            self.commands and (not is_policy or self.diagnostics.get('state') == 'running')))
        if time.monotonic() >= give_up_s:
            raise SystemExit('the other node did not answer')
        self._publish_for(_WARM_UP_S)
        began_s = time.monotonic()
        self._publish_for(self._settings['seconds'])
        ended_s = time.monotonic()
        # The last commands, and the diagnostics of the last ticks.
        last, give_up_s = self._num_diagnostics, ended_s + 3.0
        self._publish_for(0.1)
        self._publish(lambda: is_policy and self._num_diagnostics == last
                      and time.monotonic() < give_up_s)
        return began_s, ended_s

    def _publish_for(self, seconds):
        end_s = time.monotonic() + seconds
        self._publish(lambda: time.monotonic() < end_s)

    def _publish(self, wanted):
        message, period_s = self._message, 1.0 / self._settings['rate']
        deadline_s = time.monotonic()
        while wanted():
            message.position, message.velocity = self._rows[len(self.sent_s) % NUM_STATES]
            message.header.stamp = self._node.get_clock().now().to_msg()
            self.sent_s.append(time.monotonic())
            self._publisher.publish(message)
            deadline_s += period_s
            time.sleep(max(0.0, deadline_s - time.monotonic()))


def _run_robot(node, executor, settings):
    gc.disable()  # what measures must not have pauses of its own
    robot, stop = _Robot(node, settings), threading.Event()

    def spin():
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        began_s, ended_s = robot.run()
    finally:
        stop.set()
        thread.join()
    np.savez(settings['output'], sent_s=robot.sent_s, received_s=robot.received_s,
             commands=np.array(robot.commands), measured_s=(began_s, ended_s),
             diagnostics=json.dumps(robot.diagnostics))


def _run_echo(node, executor):
    """Answer each state with a command of the same numbers, as a node without a policy does."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray
    publisher = node.create_publisher(Float64MultiArray, COMMAND_TOPIC, QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE))
    command = Float64MultiArray()

    def answer(message):
        command.data = message.position
        publisher.publish(command)
    node.create_subscription(JointState, STATE_TOPIC, answer, QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    ended = []  # a handler must take no lock
    signal.signal(signal.SIGINT, lambda *_: ended.append(True))
    while not ended:
        executor.spin_once(timeout_sec=0.1)


def main(kind: str, namespace: str, settings: str = '{}') -> None:
    """Run the 'robot', with settings in JSON, or the 'echo'."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(kind, namespace=namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if kind == 'robot':
            _run_robot(node, executor, json.loads(settings))
        else:
            _run_echo(node, executor)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main(*sys.argv[1:])
