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

"""Processes that end with the one that started them."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import ctypes
import signal
import subprocess

GRACE_S = 5.0


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen]:
    """Run a process; stop it on leaving, gently first. It dies with this one."""
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent():
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
