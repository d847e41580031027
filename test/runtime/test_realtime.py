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

"""Tests of what the operating system is asked for."""

import os
from pathlib import Path
import sys
import threading

import pytest

from dpg_robot.runtime import realtime


def in_thread(*arguments):
    """Run it in a thread that ends at once; return what it said, and the thread's cores."""
    told = []

    def run():
        told.extend((realtime.prepare_thread(*arguments), os.sched_getaffinity(0)))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return told


def test_nothing_asked_is_nothing_changed():
    before = os.sched_getaffinity(0)
    assert in_thread(-1, 0) == ['', before]


def test_a_core_is_the_threads_alone():
    before = os.sched_getaffinity(0)
    core = min(before)
    assert in_thread(core, 0) == ['', {core}]
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there_is_named():
    told, _ = in_thread(1000, 0)
    assert told.startswith('cannot pin the control thread to core 1000 (Invalid argument); avail')


@pytest.mark.parametrize('is_permitted', [True, False])
def test_a_priority_is_asked_for_or_how_to_permit_it_is_told(monkeypatch, is_permitted):
    asked = []

    def set_scheduler(pid, policy, parameters):
        asked.append((pid, policy, parameters.sched_priority))
        if not is_permitted:
            raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'sched_setscheduler', set_scheduler)
    told = realtime.prepare_thread(-1, 42)
    # The control thread alone: what it starts has no priority.
    assert asked == [(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 42)]
    assert (told == '') is is_permitted
    if not is_permitted:
        assert 'SCHED_FIFO priority 42 (Operation not permitted)' in told
        assert 'rtprio' in told


def test_cores_are_asked_to_sleep_lightly_as_long_as_it_lasts(monkeypatch, tmp_path):
    device = tmp_path / 'cpu_dma_latency'
    device.touch()
    monkeypatch.setattr(realtime, '_WAKE_LATENCY', device)

    def is_open():
        files = (os.path.realpath(file) for file in Path('/proc/self/fd').iterdir())
        return str(device.resolve()) in files
    with realtime.wake_latency(-1) as problem:
        assert (problem, is_open(), device.read_bytes()) == ('', False, b'')
    with realtime.wake_latency(20) as problem:
        # A request ends when its file is closed.
        assert (problem, is_open()) == ('', True)
        assert int.from_bytes(device.read_bytes(), sys.byteorder) == 20
    assert not is_open()


def test_cores_that_may_not_be_asked_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(realtime, '_WAKE_LATENCY', tmp_path / 'nothing' / 'cpu_dma_latency')
    with realtime.wake_latency(0) as problem:
        assert problem.startswith(
            'cannot have cores that wake within 0 us (No such file or directory); permit')
