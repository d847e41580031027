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

"""Simulated time, as the control loop's clock."""

from __future__ import annotations

from typing import Callable

from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node

from dpg_robot.runtime.timing import SteadyClock

# A simulated clock wakes nobody, so it is looked at so often [s].
_LOOK_S = 0.0005


class SimulatedClock(SteadyClock):
    """The time of ``/clock``: it runs at any speed, stands still, or is set back."""

    def __init__(self, node: Node, on_jump: Callable[[], None]):
        """Follow the clock of a node.

        :param on_jump: called when it was set back, or simulated time began or ended.
        """
        self._clock, self._on_jump = node.get_clock(), on_jump
        # Keeps the callback alive.
        self._handle = self._clock.create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self._jump)

    def _jump(self, jump):
        self._on_jump()  # before it ends a wait, and so leads to a tick
        self.num_jumps += 1

    def close(self) -> None:
        """Follow it no more."""
        self._handle.unregister()

    def now(self) -> float:
        """Return the simulated time [s]; 0 before there is one."""
        return self._clock.now().nanoseconds * 1e-9

    def patience_s(self, until_s: float) -> float:
        """Return how long to wait for a time before looking at the clock again [real s]."""
        return _LOOK_S
