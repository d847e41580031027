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

"""One latched emergency stop of a node: a topic and a service stop, only a service lifts."""

from __future__ import annotations

from typing import Callable

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool
from std_srvs.srv import Trigger


class EmergencyStop:
    """Listen to ``estop``, ``~/estop`` and ``~/reset_estop`` from the first moment to the last.

    It is no safety device: whatever ends this process or its network ends it too.
    ``why`` tells who stopped; it is empty while nobody did.
    """

    def __init__(self, node: Node, on_stop: Callable[[str], None], on_lift: Callable[[], str]):
        """Begin to listen.

        :param on_stop: called with ``why`` at each stop, the first or a repeated one.
        :param on_lift: called when a stop is lifted; returns one line for who asked.
        """
        self.why, self.num_stops = '', 0
        self._is_pressed = False
        self._on_stop, self._on_lift = on_stop, on_lift
        # The second one hears a stop from before this node was there, if its publisher keeps it.
        # It warns of publishers that do not, which the first one hears: so it must not.
        self._subscription, _ = (node.create_subscription(
            Bool, 'estop', self._on_topic, QoSProfile(depth=10, durability=durability),
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=warns))
            for durability, warns in ((DurabilityPolicy.VOLATILE, True),
                                      (DurabilityPolicy.TRANSIENT_LOCAL, False)))
        node.create_service(Trigger, '~/estop', self._on_service)
        node.create_service(Trigger, '~/reset_estop', self._on_reset)

    @property
    def num_publishers(self) -> int:
        """Return how many publishers of the topic are heard."""
        return self._subscription.get_publisher_count()

    def _on_topic(self, message):
        self._is_pressed = message.data
        if message.data:
            self._stop('by topic estop')

    def _on_service(self, request, response):
        self._stop('by service ~/estop')
        response.success, response.message = True, f'stopped {self.why}'
        return response

    def _stop(self, why):
        if not self.why:
            self.why = why
            self.num_stops += 1
        self._on_stop(self.why)

    def _on_reset(self, request, response):
        # A publisher that has gone can release nothing any more.
        is_pressed = self._is_pressed and self.num_publishers > 0
        response.success = bool(self.why) and not is_pressed
        if not self.why:
            response.message = 'nothing to lift: not stopped'
        elif is_pressed:
            response.message = 'still pressed: the last word on topic estop must be false, or ' \
                               'its publisher gone, got true'
        else:
            self.why = ''
            response.message = self._on_lift()
        return response
