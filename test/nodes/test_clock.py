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

"""Tests of simulated time, set by hand."""

import threading
import time
from types import SimpleNamespace

import pytest
from rclpy.clock import ROSClock
from rclpy.time import Time

from dpg_robot.nodes.clock import SimulatedClock
from dpg_robot.runtime.timing import Deadlines, PhaseLock


@pytest.fixture
def bench():
    """Return a simulated clock, what sets it, and its ``num_jumps`` at each of its jumps."""
    ros_clock, jumps = ROSClock(), []

    def set_time(seconds):
        ros_clock.set_ros_time_override(Time(
            seconds=seconds, clock_type=ros_clock.clock_type))
    set_time(1000)
    ros_clock._set_ros_time_is_active(True)
    clock = SimulatedClock(SimpleNamespace(get_clock=lambda: ros_clock),
                           lambda: jumps.append(clock.num_jumps))
    yield clock, set_time, jumps
    clock.close()


def lock_on(clock):
    """Return what waits for ticks, and the event that ends it."""
    ended = threading.Event()
    return PhaseLock(Deadlines(1.0, clock), ended.wait, lambda: (0.0, 0.0), ended.is_set), ended


def test_it_is_told_of_a_clock_that_was_set_back_before_it_wakes(bench):
    clock, set_time, jumps = bench
    lock, _ = lock_on(clock)
    thread = threading.Thread(target=lock.wait, daemon=True)
    thread.start()
    set_time(1000)
    set_time(5)
    thread.join(timeout=20)
    assert not thread.is_alive() and clock.now() == 5.0
    # What was received is forgotten while the wait still goes on.
    assert (jumps, clock.num_jumps) == ([0], 1)


def test_it_is_waited_for_at_its_own_speed(bench):
    clock, set_time, _ = bench
    lock, ended = lock_on(clock)
    thread = threading.Thread(target=lock.wait, daemon=True)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    set_time(1001)
    thread.join(timeout=20)
    assert not thread.is_alive() and not ended.is_set()


def test_closing_it_ends_what_it_tells_of(bench):
    clock, set_time, jumps = bench
    clock.close()
    set_time(5)  # the simulation begins again, for somebody else
    assert (jumps, clock.num_jumps) == ([], 0)
