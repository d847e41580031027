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

"""Output that nobody waits for: what cannot be written at once is lost."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Iterator

_NUMBERS = (1, 2)  # of standard output and standard error
# How long the end waits for the last lines to be written [s].
_LAST_LINES_S = 1.0


@contextlib.contextmanager
def output_without_waiting() -> Iterator[None]:
    """Let lines be lost rather than wait for whoever reads standard output and error.

    rclpy writes a line of the log with the interpreter's lock held. A terminal that stands still
    (Ctrl-S, a frozen connection, a stopped ``tee``) would so stop every thread of a node: the
    control thread, its watchdog and the emergency stop, with the policy's last command standing.
    So both go into pipes that never block, and a thread each, which holds no lock while it
    writes, passes on what arrives. At the end all is as before; if the last lines still cannot
    be written, what comes later goes nowhere.
    """
    if os.isatty(2):  # rclpy would find a pipe
        os.environ.setdefault('RCUTILS_COLORIZED_OUTPUT', '1')
    streams = [stream for number in _NUMBERS if (stream := _divert(number)) is not None]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        for number, real, thread in streams:
            _restore(number, real, thread)


def _divert(number):
    try:
        real = os.dup(number)
    except OSError:  # closed: nothing to divert
        return None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.dup2(writer, number)
    os.close(writer)
    thread = threading.Thread(target=_pass_on, args=(reader, real), name='output', daemon=True)
    thread.start()
    return number, real, thread


def _pass_on(reader, real):
    while data := os.read(reader, 2**16):
        with contextlib.suppress(OSError):  # nobody is there any more
            while data:
                data = data[os.write(real, data):]
    os.close(reader)


def _restore(number, real, thread):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)  # ends the pipe
    os.close(nowhere)
    thread.join(_LAST_LINES_S)
    if not thread.is_alive():
        os.dup2(real, number)
        os.close(real)
