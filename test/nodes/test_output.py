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

"""Tests of output that nobody waits for, in processes of their own."""

import subprocess
import sys
import time

import pytest

WRITE = """
import os, sys
from dpg_robot.nodes.output import output_without_waiting
print('before')
with output_without_waiting():
    for stream in (sys.stdout, sys.stderr):
        print('within', file=stream)
    {}
print('after', file=sys.stderr)
"""
# More than the pipe in between and that of the process hold together.
FLOOD = """
    for _ in range(100):
        try:
            os.write(1, 4096 * b'x')
        except BlockingIOError:
            pass
"""


def start(body, **options):
    return subprocess.Popen([sys.executable, '-c', WRITE.format(body)], text=True, **options)


def test_the_last_lines_arrive_and_all_is_as_before():
    process = start('os.write(2, b"y" * 50000)', stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate(timeout=20)
    assert (out, error) == ('before\nwithin\n', 'within\n' + 50000 * 'y' + 'after\n')


def test_a_reader_that_stands_still_is_not_waited_for():
    process = start(FLOOD, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    began = time.monotonic()
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - began < 10.0
    out, error = process.communicate()
    assert error == 'within\nafter\n'
    assert 2 * 4096 < len(out) < 100 * 4096


@pytest.mark.parametrize('closing', ['1>&-', '2>&-', '1>&- 2>&-'])
def test_a_closed_stream_is_left_closed(closing):
    done = subprocess.run(f'exec "{sys.executable}" -c "$CODE" {closing}', shell=True,
                          env={'CODE': WRITE.format('pass'), 'PYTHONPATH': ':'.join(sys.path)},
                          capture_output=True, timeout=20)
    assert done.returncode == 0


def test_a_reader_that_is_gone_does_no_harm():
    done = subprocess.run(
        f'"{sys.executable}" -c "$CODE" | true; exit ${{PIPESTATUS[0]}}', shell=True,
        executable='/bin/bash', capture_output=True, text=True, timeout=20,
        env={'CODE': WRITE.format('import time; time.sleep(1); os.write(1, b"z" * 5000)'),
             'PYTHONPATH': ':'.join(sys.path)})
    assert done.stderr.splitlines()[:2] == ['within', 'after']
