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

"""The goal environments of gymnasium-robotics, without the notice that it prints when imported."""

from __future__ import annotations

from farama_notifications import notifications

# It tells about other environments at each import, in every process.
notifications.pop('gymnasium_robotics', None)
from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.pick_and_place import MujocoFetchPickAndPlaceEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.push import MujocoFetchPushEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.reach import MujocoFetchReachEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.slide import MujocoFetchSlideEnv  # noqa: E402
from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv  # noqa: E402
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv  # noqa: E402
from gymnasium_robotics.envs.shadow_dexterous_hand.manipulate_block import (  # noqa: E402
    MujocoHandBlockEnv,
)
from gymnasium_robotics.envs.shadow_dexterous_hand.reach import MujocoHandReachEnv  # noqa: E402

__all__ = [
    'AdroitHandDoorEnv', 'KitchenEnv', 'MujocoFetchPickAndPlaceEnv', 'MujocoFetchPushEnv',
    'MujocoFetchReachEnv', 'MujocoFetchSlideEnv', 'MujocoHandBlockEnv', 'MujocoHandReachEnv',
    'PointMazeEnv']
