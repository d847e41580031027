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

"""Orientations of bodies: MuJoCo's quaternions (w, x, y, z) and what ROS expects of them."""

from __future__ import annotations

import mujoco
import numpy as np


def quaternion_of(matrix: np.ndarray) -> np.ndarray:
    """Return a rotation matrix, shape (9,), as a quaternion, shape (4,), with w at least 0."""
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix)
    return -quaternion if quaternion[0] < 0 else quaternion


def rotate(vector: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Return a body's vector, shape (3,), in the world's frame."""
    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, vector, quaternion)
    return turned
