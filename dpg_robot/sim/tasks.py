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

from dpg_robot.sim.adroit import AdroitDoor
from dpg_robot.sim.fetch import FetchObject, FetchReach, OBJECT_TASKS
from dpg_robot.sim.franka import FrankaReach
from dpg_robot.sim.hand import HandBlock, HandReach
from dpg_robot.sim.mujoco_tasks import Ant, Reacher, Runner, RUNNERS
from dpg_robot.sim.point_maze import PointMaze
from dpg_robot.sim.robot_task import Reach, Track


class TaskEntry(NamedTuple):
    """How to build a task.

    :param make: takes ``render_mode``, ``reward`` if it ``has_sparse`` rewards too, and
        ``robot`` if it ``needs_robot``, which the task file then describes.
    """

    make: Callable[..., gymnasium.Env]
    has_sparse: bool = False
    needs_robot: bool = False


TASKS = {
    'fetch_reach': TaskEntry(FetchReach, has_sparse=True),
    **{name: TaskEntry(partial(FetchObject, name), has_sparse=True) for name in OBJECT_TASKS},
    'hand_reach': TaskEntry(HandReach, has_sparse=True),
    'hand_manipulate_block': TaskEntry(HandBlock, has_sparse=True),
    'adroit_door': TaskEntry(AdroitDoor, has_sparse=True),
    'franka_reach': TaskEntry(FrankaReach, has_sparse=True),
    'point_maze': TaskEntry(PointMaze, has_sparse=True),
    'reacher': TaskEntry(Reacher),
    **{name: TaskEntry(partial(Runner, name)) for name in RUNNERS},
    'ant': TaskEntry(Ant),
    'reach': TaskEntry(Reach, has_sparse=True, needs_robot=True),
    'track': TaskEntry(Track, needs_robot=True),
}
