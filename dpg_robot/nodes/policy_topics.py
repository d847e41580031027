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

"""The topics of a policy's spec: state in, through the guards, and commands out."""

from __future__ import annotations

from functools import partial
import time
from typing import Callable

from builtin_interfaces.msg import Time
import numpy as np
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.qos import (
    qos_check_compatible,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions, QoSPolicyKind

from dpg_robot.contract.fields import check_fields
from dpg_robot.contract.messages import message_class, MessageWriter
from dpg_robot.contract.observation import ObservationAssembler
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.nodes.common import flush
from dpg_robot.nodes.policy_mailbox import Mailbox
from dpg_robot.runtime.inputs import InputGuard
from dpg_robot.runtime.timing import SteadyClock

# How long a topic is not trusted after two publishers were heard in turn [s].
_DOUBT_S = 5.0
# A message that seems to have waited longer is stamped by a clock of another epoch [s].
_LONGEST_QUEUE_S = 86400.0
_QOS_OVERRIDES = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
                  QoSPolicyKind.DURABILITY)


class PolicyTopics:
    """Publishers and subscriptions of one spec, from configure to cleanup.

    Their QoS can be overridden with ROS's own parameters, such as
    ``qos_overrides./joint_states.subscription.reliability``.
    """

    def __init__(self, node: Node, spec: PolicySpec, make_guard: Callable[[], InputGuard]):
        """Make the publishers.

        :raises SpecError: if a message type is not installed or lacks a field.
        """
        for term in spec.observation:
            check_fields(term.fields, message_class(term.type)(),
                         f'observation term {term.name}')
        self._node, self._subscriptions, self._mailbox = node, [], Mailbox(node)
        self._types = {term.topic: term.type for term in spec.observation}
        self._resolved = {topic: node.resolve_topic_name(topic) for topic in (
            *self._types, *(term.topic for term in spec.action))}
        self.guards = {topic: make_guard() for topic in self._types}
        # Of two threads, one may send while the other rehearses.
        self._writer, self._hidden_writer = (
            MessageWriter(spec.action, lambda name: message_class(name)()) for _ in range(2))
        self._stamp = Time()
        # Without simulated time the node's clock is the system's, which is faster to ask.
        self._is_simulated = node.get_parameter('use_sim_time').value
        self._now_ns = _node_clock_ns(node) if self._is_simulated else time.time_ns
        self._publishers, self._hidden_publishers = {}, {}
        for term in spec.action:
            if term.topic not in self._publishers:
                of_type = message_class(term.type)
                self._publishers[term.topic] = node.create_publisher(
                    of_type, term.topic, _newest(ReliabilityPolicy.RELIABLE),
                    qos_overriding_options=QoSOverridingOptions(_QOS_OVERRIDES))
                self._hidden_publishers[term.topic] = node.create_publisher(
                    of_type, f'~/_rehearsal_{len(self._hidden_publishers)}',
                    _newest(ReliabilityPolicy.RELIABLE))

    def listen(self, observation: ObservationAssembler, clock: SteadyClock) -> None:
        """Subscribe.

        :param observation: gets every message that counts, from whoever calls :meth:`receive`.
        :param clock: of the observation.
        """
        for topic, type_name in self._types.items():
            receive = partial(self._receive, topic, self.guards[topic], observation, clock)
            self._subscriptions.append(self._node.create_subscription(
                message_class(type_name), topic, lambda message, info, f=receive: f(message, info),
                _newest(ReliabilityPolicy.BEST_EFFORT), callback_group=self._mailbox,
                # An executor that waits for events of a subscription wakes at its messages too.
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
                qos_overriding_options=QoSOverridingOptions(_QOS_OVERRIDES)))
        self._mailbox.open(self._subscriptions)

    def receive(self, timeout_s: float) -> None:
        """Take what has arrived, or arrives first in so long; for one thread."""
        self._mailbox.wait(timeout_s)

    def _receive(self, topic, guard, observation, clock, message, info):
        received_s, now_ns = clock.now(), self._now_ns()
        header = getattr(message, 'header', None)
        stamp_ns = None if header is None else header.stamp.sec * 10**9 + header.stamp.nanosec
        if guard.has_conflict(info.get('publication_sequence_number'), received_s):
            observation.doubt(topic, 'several publishers send in turn', received_s + _DOUBT_S)
        refusal = guard.judge(stamp_ns, now_ns)
        if refusal:
            observation.refuse(topic, refusal)
            return
        # Stamps are in the node's clock; carry the age over to the loop's.
        age_s = (now_ns - stamp_ns) * 1e-9 if stamp_ns else self._queued_s(info, now_ns)
        observation.update(topic, message, received_s, received_s - age_s)

    def _queued_s(self, info, now_ns):
        """Return how long a message waited here for this thread, as far as that is known."""
        arrived_ns = info.get('received_timestamp')  # of the system's clock; 0 if not known
        if not arrived_ns or self._is_simulated:
            return 0.0
        queued_s = (now_ns - arrived_ns) * 1e-9
        return queued_s if 0.0 < queued_s < _LONGEST_QUEUE_S else 0.0

    def send(self, command: np.ndarray) -> None:
        """Publish a command, shape (action_dim,); topics with NaN in them are left out.

        What fails for one topic is raised when the others have theirs.
        """
        self._stamp.sec, self._stamp.nanosec = divmod(self._now_ns(), 10**9)
        failure = None
        for topic, message in self._writer.write(command, self._stamp):
            try:
                self._publishers[topic].publish(message)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def rehearse_sending(self, command: np.ndarray) -> None:
        """Publish a command on hidden topics, which nobody is meant to hear."""
        for topic, message in self._hidden_writer.write(command, self._stamp):
            self._hidden_publishers[topic].publish(message)

    def flush(self) -> None:
        """Wait for a moment until the last commands have arrived."""
        flush(self._publishers.values())

    def publishers(self) -> dict[str, list[str]]:
        """Return the names of the nodes that publish each topic of states or commands."""
        return {topic: sorted(
            f'{end.node_namespace.rstrip("/")}/{end.node_name}' + self._unheard(topic, end)
            for end in self._node.get_publishers_info_by_topic(resolved))
            for topic, resolved in self._resolved.items()}

    def num_listeners(self) -> dict[str, int]:
        """Return how many subscribers each topic of commands has; none once it is closed."""
        try:
            return {topic: publisher.get_subscription_count()
                    for topic, publisher in self._publishers.items()}
        except InvalidHandle:  # the other thread has just left them
            return {}

    def _unheard(self, topic, end):
        wanted = next((each.qos_profile for each in self._subscriptions if each.topic == topic),
                      end.qos_profile)
        fit, why = qos_check_compatible(end.qos_profile, wanted)
        return f' (not heard: {why.strip("; ")})' if fit == QoSCompatibility.ERROR else ''

    def forget(self) -> None:
        """Begin anew, because the clock was set."""
        for guard in self.guards.values():
            guard.forget()

    def close(self) -> None:
        """Leave the topics."""
        self._mailbox.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for publisher in (*self._publishers.values(), *self._hidden_publishers.values()):
            self._node.destroy_publisher(publisher)


def _node_clock_ns(node):
    clock = node.get_clock()
    return lambda: clock.now().nanoseconds


def _newest(reliability):
    # A profile of its own for each: an override changes it in place.
    return QoSProfile(depth=1, reliability=reliability)
