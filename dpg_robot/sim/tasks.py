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

"""Every task by its name: the one place where a new one is entered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import gymnasium

from dpg_robot.sim.fetch import FetchReach
from dpg_robot.sim.hand import HandReach
from dpg_robot.sim.mujoco_tasks import Reacher, Runner, RUNNERS


class TaskEntry(NamedTuple):
    """How to build a task.

    :param make: takes ``render_mode``, and ``reward`` if it ``has_sparse`` rewards too.
    """

    make: Callable[..., gymnasium.Env]
    has_sparse: bool = False


TASKS = {
    'fetch_reach': TaskEntry(FetchReach, has_sparse=True),
    'hand_reach': TaskEntry(HandReach, has_sparse=True),
    'reacher': TaskEntry(Reacher),
    **{name: TaskEntry(partial(Runner, name)) for name in RUNNERS},
}
