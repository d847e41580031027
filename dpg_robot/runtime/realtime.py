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

"""What the operating system can do for the control thread: a core, and a priority."""

from __future__ import annotations

import os


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


def _reason(error):
    return getattr(error, 'strerror', None) or 'not on this system'


def _cores():
    if not hasattr(os, 'sched_getaffinity'):
        return 'unknown'
    return ', '.join(map(str, sorted(os.sched_getaffinity(0))))
