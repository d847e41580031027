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
from types import SimpleNamespace

import pytest
from rclpy.clock import ROSClock
from rclpy.time import Time

from dpg_robot.nodes.clock import SimulatedClock


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


def sleeper(clock, sleep):
    """Return a thread that sleeps, and what its sleep returned."""
    begun, told = threading.Event(), []

    def run():
        begun.set()
        told.append(sleep(1001.0))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait(20)
    return thread, told


def test_it_is_told_of_a_clock_that_was_set_back_before_it_wakes(bench):
    clock, set_time, jumps = bench
    thread, told = sleeper(clock, lambda until_s: clock.sleep_until(until_s, threading.Event()))
    set_time(1000)
    set_time(5)
    thread.join(timeout=20)
    assert told == [True] and clock.now() == 5.0
    # What was received is forgotten while the sleep still goes on.
    assert (jumps, clock.num_jumps) == ([0], 1)


@pytest.mark.parametrize('kind', ['sleep_until', 'wait'])
def test_closing_it_ends_a_sleep(bench, kind):
    clock, set_time, _ = bench
    event = threading.Event()
    sleep = {'sleep_until': lambda until_s: clock.sleep_until(until_s, event),
             'wait': lambda until_s: clock.wait(event, until_s)}[kind]
    thread, told = sleeper(clock, sleep)
    clock.close()
    set_time(5)  # the simulation begins again, for somebody else
    thread.join(timeout=20)
    assert told == [kind == 'sleep_until']
    assert sleep(1001.0) == told[0]  # at once
