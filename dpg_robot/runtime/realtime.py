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

"""What the operating system can do for the control thread: a core, a priority, light sleep."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import sys

# Linux: what is written is asked for as long as the file is open.
_WAKE_LATENCY = Path('/dev/cpu_dma_latency')


def prepare_thread(cpu: int, priority: int) -> str:
    """Pin the calling thread to a core and schedule it first in, first out, where permitted.

    :param cpu: number of the core; negative to leave it to the scheduler.
    :param priority: of SCHED_FIFO, from 1 to 99; 0 for the ordinary scheduler.
    :return: what was not possible and how to permit it, in one line; empty if all was.
    """
    problems = []
    if cpu >= 0:
        try:
            os.sched_setaffinity(0, {cpu})
        except (OSError, AttributeError) as error:
            problems.append(f'cannot pin the control thread to core {cpu} ({_reason(error)}); '
                            f'available: {_cores()}')
    if priority > 0:
        try:
            # The threads that libraries start from here on need no such priority.
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(priority))
        except (OSError, AttributeError) as error:
            problems.append(
                f'cannot use SCHED_FIFO priority {priority} ({_reason(error)}); permit it with '
                "'rtprio 99' for this user in /etc/security/limits.conf, or with CAP_SYS_NICE")
    return '; '.join(problems)


@contextlib.contextmanager
def wake_latency(longest_us: int) -> Iterator[str]:
    """Keep the computer's idle cores, all of them, from sleeping deeper than that.

    :param longest_us: how long a core may take to wake [us]; 0: none sleeps, and each takes the
        power of a busy one; negative: whatever the system wants.
    :return: as of :func:`prepare_thread`.
    """
    problem = ''
    with contextlib.ExitStack() as asked:
        if longest_us >= 0:
            try:
                file = asked.enter_context(open(_WAKE_LATENCY, 'wb', buffering=0))
                file.write(longest_us.to_bytes(4, sys.byteorder))
            except OSError as error:
                problem = (f'cannot have cores that wake within {longest_us} us '
                           f'({_reason(error)}); permit this user to write {_WAKE_LATENCY}')
        yield problem


def _reason(error):
    return getattr(error, 'strerror', None) or 'not on this system'


def _cores():
    if not hasattr(os, 'sched_getaffinity'):
        return 'unknown'
    return ', '.join(map(str, sorted(os.sched_getaffinity(0))))
