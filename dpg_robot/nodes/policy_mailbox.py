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

"""Subscriptions that a thread takes for itself, as soon as something arrives."""

from __future__ import annotations

from contextlib import ExitStack
import time
from typing import Any, Sequence

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.subscription import Subscription


class Mailbox(ReentrantCallbackGroup):
    """A callback group whose subscriptions no executor serves: :meth:`wait` does.

    For each message an executor makes a new wait set, of all parts of a node, and whoever waits
    for the message must then be woken in another thread, with the interpreter's lock in between.
    At the control rate that takes longer than everything that a policy does.
    """

    def __init__(self, node: Node):
        """Make an empty one."""
        super().__init__()
        self._context, self._subscriptions, self._wait_set = node.context, (), None

    def can_execute(self, entity: Any) -> bool:
        """Return False: no executor may take any of these."""
        return False

    def open(self, subscriptions: Sequence[Subscription]) -> None:
        """Take these, which were made with this group."""
        self._wait_set = _rclpy.WaitSet(len(subscriptions), 0, 0, 0, 0, 0, self._context.handle)
        self._subscriptions = tuple(subscriptions)

    def close(self) -> None:
        """Take nothing any more; before the subscriptions are destroyed."""
        self._subscriptions = ()

    def wait(self, timeout_s: float) -> None:
        """Call back what has arrived, or arrives first; for one thread.

        :param timeout_s: how long to wait for it.
        """
        subscriptions = self._subscriptions
        if not subscriptions:
            time.sleep(timeout_s)
            return
        with ExitStack() as used:
            try:
                for subscription in subscriptions:
                    used.enter_context(subscription.handle)
            except InvalidHandle:  # destroyed just now
                return
            self._wait(subscriptions, timeout_s)
            for subscription in subscriptions:
                taken = subscription.handle.take_message(subscription.msg_type, False)
                if taken is not None:
                    subscription.callback(*taken)

    def _wait(self, subscriptions, timeout_s):
        self._wait_set.clear_entities()
        for subscription in subscriptions:
            self._wait_set.add_subscription(subscription.handle)
        self._wait_set.wait(int(timeout_s * 1e9))
