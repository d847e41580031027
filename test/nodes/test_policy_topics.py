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

"""Tests of what a policy's topics make of messages, with a node that is spun by hand."""

from array import array
import time
from types import SimpleNamespace

import numpy as np
from policy_files import joint_spec
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from dpg_robot.contract.observation import ObservationAssembler
from dpg_robot.nodes.policy_topics import PolicyTopics
from dpg_robot.runtime.inputs import InputGuard
from dpg_robot.runtime.timing import SteadyClock


@pytest.fixture
def bench(ros):
    """Return a node's topics, and the executor that serves the rest of the node."""
    node = rclpy.create_node('topics', namespace='/bench', context=ros.context)
    executor = SingleThreadedExecutor(context=ros.context)
    executor.add_node(node)
    topics = PolicyTopics(node, joint_spec(), lambda: InputGuard(0.05, 'arrival'))
    yield topics, executor
    topics.close()
    executor.shutdown()
    node.destroy_node()


def publish(ros):
    """Publish a joint state without a stamp; return once it is there."""
    publisher = ros.node.create_publisher(JointState, '/bench/joint_states', 1)
    ros.wait(lambda: publisher.get_subscription_count() == 1)
    publisher.publish(JointState(name=['shoulder', 'elbow'], position=array('d', (0.0, 0.0)),
                                 velocity=array('d', (0.0, 0.0))))
    assert publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=10))
    ros.node.destroy_publisher(publisher)


def test_a_message_without_a_stamp_is_as_old_as_its_arrival_here(ros, bench):
    topics, _ = bench
    observation = ObservationAssembler(joint_spec())
    topics.listen(observation, SteadyClock())
    publish(ros)
    time.sleep(0.5)  # a policy that takes its time
    ros.wait(lambda: topics.receive(0.1) or observation.arrival_s()[0] > 0.0)
    now_s = time.monotonic()
    assert observation.ages_s(now_s)['position'] > 0.4
    assert [fault.kind for fault in observation.assemble(now_s)[1]] == ['stale', 'stale']


def test_an_executor_neither_takes_a_state_nor_wakes_for_it(ros, bench):
    topics, executor = bench
    observation = ObservationAssembler(joint_spec())
    topics.listen(observation, SteadyClock())
    publish(ros)
    began_s = time.thread_time()
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)
    assert observation.arrival_s()[0] < 0.0
    assert time.thread_time() - began_s < 0.25
    topics.receive(0.0)
    assert observation.arrival_s()[0] > 0.0


def test_a_rehearsed_command_goes_to_a_hidden_topic_only(ros, bench):
    topics, _ = bench
    heard = {name: [] for name in ('/bench/effort/commands', '/bench/topics/_rehearsal_0')}
    for name, messages in heard.items():
        ros.node.create_subscription(Float64MultiArray, name, messages.append, 1)
    ros.wait(lambda: all(ros.node.count_publishers(name) == 1 for name in heard))
    for publisher in (*topics._publishers.values(), *topics._hidden_publishers.values()):
        ros.wait(lambda: publisher.get_subscription_count() == 1)
    topics.rehearse_sending(np.array([1.0, 2.0]))
    ros.wait(lambda: heard['/bench/topics/_rehearsal_0'])
    topics.send(np.array([3.0, 4.0]))
    ros.wait(lambda: heard['/bench/effort/commands'])
    assert [[list(message.data) for message in messages] for messages in heard.values()] == [
        [[3.0, 4.0]], [[1.0, 2.0]]]


def test_who_listens_to_commands_is_counted_until_the_topics_are_left(ros, bench):
    topics, _ = bench
    listener = ros.node.create_subscription(
        Float64MultiArray, '/bench/effort/commands', lambda message: None, 1)
    ros.wait(lambda: topics.num_listeners()['effort/commands'] > 0, what='the listener')
    num = topics.num_listeners()['effort/commands']
    ros.node.destroy_subscription(listener)
    ros.wait(lambda: topics.num_listeners() == {'effort/commands': num - 1}, what='its end')
    topics.close()  # by another thread, while one counts
    assert topics.num_listeners() == {}


def test_a_publisher_that_cannot_be_heard_is_named(ros, bench):
    topics, _ = bench
    topics.listen(ObservationAssembler(joint_spec()), SteadyClock())
    fits, other = ('/test_harness', '/test_harness (not heard: ')
    publisher = ros.node.create_publisher(JointState, '/bench/joint_states', 1)
    assert ros.wait(lambda: topics.publishers()['joint_states']) == [fits]
    topics._subscriptions[0].qos_profile.reliability = ReliabilityPolicy.RELIABLE
    ros.node.destroy_publisher(publisher)
    publisher = ros.node.create_publisher(JointState, '/bench/joint_states', QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    ros.wait(lambda: [name[:len(other)] for name in topics.publishers()['joint_states']]
             == [other])
    ros.node.destroy_publisher(publisher)


def test_closed_topics_deliver_nothing(bench):
    topics, _ = bench
    topics.listen(ObservationAssembler(joint_spec()), SteadyClock())
    began_s = time.monotonic()
    topics.close()
    topics.receive(0.02)
    assert time.monotonic() - began_s >= 0.02


@pytest.mark.parametrize('info, queued_s', [
    ({'received_timestamp': 10**18 - 5 * 10**8}, 0.5),
    ({'received_timestamp': 0}, 0.0), ({}, 0.0),  # not every middleware tells
    ({'received_timestamp': 10**18 + 10**9}, 0.0),  # the clock was set meanwhile
    ({'received_timestamp': 10**9}, 0.0)])  # time since the machine was started
def test_how_long_a_message_waited(bench, info, queued_s):
    assert bench[0]._queued_s(info, 10**18) == pytest.approx(queued_s)


def test_a_topic_that_fails_keeps_no_command_from_another(bench):
    topics, _ = bench
    sent = []

    def fail(message):
        raise TypeError('no number')
    topics._writer = SimpleNamespace(write=lambda command, stamp: [('bad', 0), ('good', 1)])
    topics._publishers, kept = {'bad': SimpleNamespace(publish=fail),
                                'good': SimpleNamespace(publish=sent.append)}, topics._publishers
    with pytest.raises(TypeError, match='no number'):
        topics.send(np.zeros(2))
    topics._publishers = kept
    assert sent == [1]
