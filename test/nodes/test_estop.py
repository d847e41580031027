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

"""Tests of the emergency stop on its topic, in this process."""

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool

from dpg_robot.nodes.estop import EmergencyStop


@pytest.fixture
def make_stop(ros):
    """Return a function that returns a stop in a node of its own, its executor and its calls."""
    nodes = []

    def make():
        nodes.append(rclpy.create_node('stopped', namespace='/early', context=ros.context))
        executor, calls = SingleThreadedExecutor(context=ros.context), []
        executor.add_node(nodes[-1])
        return EmergencyStop(nodes[-1], calls.append, lambda: 'lifted'), executor, calls
    yield make
    for node in nodes:
        node.destroy_node()


def test_a_stop_pressed_before_the_node_was_there_is_heard(ros, make_stop):
    button = ros.node.create_publisher(Bool, '/early/estop', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    button.publish(Bool(data=True))
    stop, executor, calls = make_stop()
    ros.wait(lambda: executor.spin_once(timeout_sec=0.05) or stop.why, what='the stop')
    assert (stop.num_stops, set(calls)) == (1, {'by topic estop'})
    ros.node.destroy_publisher(button)


def test_each_press_is_passed_on_and_one_stop_counted(make_stop):
    stop, _, calls = make_stop()
    for _ in range(2):
        stop._on_topic(Bool(data=True))
    stop._on_topic(Bool(data=False))
    assert (stop.num_stops, len(calls)) == (1, 2)
