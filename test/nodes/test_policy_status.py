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

"""Tests of the statuses of a policy node, with parts that are plain objects."""

from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.clock import ROSClock
from ros_harness import values

from dpg_robot.nodes.clock import SimulatedClock
from dpg_robot.nodes.policy_status import PolicyStatus
from dpg_robot.runtime.timing import SteadyClock


@pytest.fixture
def bench():
    """Return a node without parts, its status, and all that was published on /diagnostics."""
    sent = []

    def create_publisher(kind, topic, qos):
        return SimpleNamespace(publish=sent.append if topic == '/diagnostics' else lambda _: None)
    node = SimpleNamespace(
        create_publisher=create_publisher, get_clock=lambda clock=ROSClock(): clock,
        get_fully_qualified_name=lambda: '/policy_node', lifecycle='inactive', control=None,
        control_loop=None, topics=None, loader=None, recorder=None, clock=SteadyClock(),
        settings={'diagnostics_period_s': 1.0},
        estop=SimpleNamespace(why='', num_stops=0, num_publishers=1))
    return node, PolicyStatus(node), sent


@pytest.mark.parametrize('missing', ['control', 'topics', 'loader'])
def test_a_part_that_is_just_leaving_does_no_harm(bench, missing):
    node, status, sent = bench
    spec = SimpleNamespace(robot='arm')
    node.control = SimpleNamespace(policy=SimpleNamespace(spec=spec), num_ticks=0)
    node.topics = node.loader = object()
    setattr(node, missing, None)
    status.publish('inactive')
    assert [part.name for part in sent[0].status] == ['policy_node: control',
                                                      'policy_node: estop']


def test_several_stop_buttons_are_a_warning(bench):
    node, status, sent = bench
    told = []
    for node.estop.num_publishers in (1, 2):
        status.publish('inactive')
        part = sent[-1].status[-1]
        told.append((part.level, part.message, values(part)['estop_publishers']))
    assert told == [(b'\0', 'not latched', '1'), (
        b'\1', 'not latched; 2 publishers, of whom only the last word of any is known', '2')]


def test_new_dropped_ticks_are_a_warning(bench):
    node, status, sent = bench
    told = {'problem': '', 'state': 'recording', 'dropped': 0}
    node.recorder = SimpleNamespace(status=lambda: dict(told))
    levels = []
    for dropped in (0, 3, 3, 5):
        told['dropped'] = dropped
        status.publish('running')
        part = sent[-1].status[1]
        levels.append((part.level, part.message))
    assert levels == [(b'\0', 'recording'), (b'\1', '3 ticks dropped'), (b'\0', 'recording'),
                      (b'\1', '2 ticks dropped')]


def test_it_knows_when_it_last_told_something(bench, monkeypatch):
    """Whoever reports where nobody else does looks at it."""
    node, status, _ = bench
    monkeypatch.setattr('time.monotonic', lambda: 1234.5)
    status.publish('inactive')
    assert status.published_s == 1234.5


@pytest.fixture
def running(bench, monkeypatch):
    """Return a function that lets time pass and ticks be done, and gives the report; the node."""
    node, status, sent = bench
    now_s, clock_s = [100.0], [5.0]
    monkeypatch.setattr('time.monotonic', lambda: now_s[0])
    node.realtime = ''
    node.clock = SimpleNamespace(now=lambda: clock_s[0], num_jumps=0)
    limiter = SimpleNamespace(element_names=(), num_clipped=np.zeros(0),
                              num_rate_limited=np.zeros(0), num_not_finite=0)
    node.control = SimpleNamespace(policy=SimpleNamespace(spec=SimpleNamespace(robot='arm')),
                                   num_ticks=90, num_safe=0, limiter=limiter)
    status.publish('inactive')
    statistics = SimpleNamespace(summary_us=dict)
    node.control_loop = SimpleNamespace(
        control=node.control, period_s=0.02, num_missed=0, num_stalls=0, num_repeated=0,
        tick_time=statistics, latency=statistics, faults=())

    def run(step_s, num_ticks, clock_step_s=None):
        now_s[0] += step_s
        clock_s[0] += step_s if clock_step_s is None else clock_step_s
        node.control.num_ticks += num_ticks
        status.publish('running')
        return sent[-1].status[0]
    return run, node


def test_ticks_before_a_pause_are_none_of_the_rate_behind_it(running):
    run, _ = running
    rates = [float(values(run(step_s, num))['achieved_rate_hz'])
             for step_s, num in ((1.0, 20), (1.0, 50), (0.005, 1), (0.005, 0), (0.99, 49))]
    # Nor is the time before the loop; and reports that follow at once tell no rate of their own.
    assert rates == pytest.approx([0.0] + [50.0] * 4)


def test_too_few_ticks_are_a_warning_but_where_the_loop_began_in_between(running):
    run, _ = running
    told = [(part.level, part.message) for part in (
        run(1.0, 20), run(1.0, 45), run(1.0, 43), run(0.1, 5), run(0.9, 45))]
    slow = (b'\1', 'running; 43.0 ticks a second, not 50')
    assert told == [(b'\0', 'running'), (b'\0', 'running'), slow, slow, (b'\0', 'running')]


def test_a_clock_that_is_set_tells_no_rate(running):
    run, node = running
    run(1.0, 50)
    assert float(values(run(1.0, 50, clock_step_s=0.5))['achieved_rate_hz']) == 100.0
    node.clock.num_jumps = 1
    part = run(1.0, 3)
    assert (part.message, float(values(part)['achieved_rate_hz'])) == ('running', 0.0)


def test_simulated_time_may_jump_ahead_without_a_warning(running):
    run, node = running
    clock = SimulatedClock.__new__(SimulatedClock)  # without a node of its own
    clock.now = node.clock.now
    node.clock = clock
    run(1.0, 50)
    assert run(1.0, 50, clock_step_s=10.0).message == 'running'


def test_commands_without_a_subscriber_are_a_warning(bench):
    node, status, sent = bench
    names = {'joint_states': ['robot']}
    node.topics = SimpleNamespace(
        publishers=lambda: names, guards={}, num_listeners=lambda: {'commands': num})
    told = []
    for num in (0, 1):
        status._statuses = []
        status._inputs(node.topics, SimpleNamespace(ages_s=lambda now_s: {}))
        part, = status._statuses
        told.append((part.level, part.message, values(part)['subscribers.commands']))
    assert told == [(b'\1', 'commands has no subscriber', '0'), (b'\0', 'no conflict', '1')]
