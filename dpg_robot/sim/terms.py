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

"""The terms that contracts of simulated robots are made of, each in one line."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from dpg_robot.contract.spec import ActionTerm, ObservationTerm

JOINT_STATE = 'sensor_msgs/msg/JointState'
IMU = 'sensor_msgs/msg/Imu'
POSE = 'geometry_msgs/msg/PoseStamped'
TWIST = 'geometry_msgs/msg/TwistStamped'
ARRAY = 'std_msgs/msg/Float64MultiArray'

# A goal need not be told more often than once a second.
GOAL_AGE_S = 1.0
# What the positions of an arm and of what it handles are believed to be, either way [m].
WORKSPACE_M = 3.0


def joints(name: str, what: str, names: Sequence[str], unit: str, age: float,
           topic: str = 'joint_states') -> ObservationTerm:
    """Return a term of joints, found by name.

    :param what: ``position`` or ``velocity``.
    """
    return ObservationTerm(name, topic, JOINT_STATE,
                           tuple(f'{what}[{joint}]' for joint in names), unit, age)


def point(name: str, topic: str, age: float, axes: str = 'xyz',
          within: float | None = None) -> ObservationTerm:
    """Return a term of the position in a pose [m], valid up to ``within`` either way."""
    return _vector(name, topic, POSE, 'pose.position', axes, 'm', age, within)


def orientation(name: str, topic: str, age: float) -> ObservationTerm:
    """Return a term of the orientation in a pose, a quaternion from its real part on."""
    return _vector(name, topic, POSE, 'pose.orientation', 'wxyz', '1', age)


def velocity(name: str, topic: str, age: float, axes: str = 'xyz',
             within: float | None = None) -> ObservationTerm:
    """Return a term of the linear part of a twist [m/s]."""
    return _vector(name, topic, TWIST, 'twist.linear', axes, 'm/s', age, within)


def angular_velocity(name: str, topic: str, age: float) -> ObservationTerm:
    """Return a term of the angular part of a twist [rad/s]."""
    return _vector(name, topic, TWIST, 'twist.angular', 'xyz', 'rad/s', age)


def imu_orientation(name: str, topic: str, age: float) -> ObservationTerm:
    """Return a term of an IMU's orientation, a quaternion from its real part on."""
    return _vector(name, topic, IMU, 'orientation', 'wxyz', '1', age)


def imu_angular_velocity(name: str, topic: str, age: float) -> ObservationTerm:
    """Return a term of an IMU's angular velocity, about its own axes [rad/s]."""
    return _vector(name, topic, IMU, 'angular_velocity', 'xyz', 'rad/s', age)


def _vector(name, topic, kind, path, axes, unit, age, within=None):
    bounds = () if within is None else (within,) * len(axes)
    return ObservationTerm(name, topic, kind, tuple(f'{path}.{axis}' for axis in axes), unit, age,
                           tuple(-bound for bound in bounds), bounds)


def points(name: str, topic: str, count: int, age: float) -> ObservationTerm:
    """Return a term of x, y and z of several points, one after the other [m]."""
    return ObservationTerm(name, topic, ARRAY, _data(0, 3 * count), 'm', age)


def commands(name: str, topic: str, unit: str, scale: Sequence[float], names: Sequence[str],
             safe: float | None = 0.0, first: int = 0,
             offset: Sequence[float] = ()) -> ActionTerm:
    """Return a term of commands to joints, elements of an array from number ``first`` on.

    :param scale: what a normalised action of 1 adds to the offset; that far commands go.
    :param safe: of each joint; None to hold the last command.
    """
    middle = np.array(offset) if len(offset) else np.zeros(len(scale))
    size, scale = len(scale), np.array(scale)
    return ActionTerm(
        name, topic, ARRAY, _data(first, size), unit, scale=_floats(scale),
        lower=_floats(middle - scale), upper=_floats(middle + scale), safe=(safe,) * size,
        rate_limit=(None,) * size, joints=tuple(names), offset=_floats(offset))


def servos(model: mujoco.MjModel, name: str, unit: str, which: Sequence[int]) -> ActionTerm:
    """Return a term of position commands over the whole range of these actuators.

    A servo without news stays where it was told to be.
    """
    lower, upper = model.actuator_ctrlrange[which].T
    return commands(
        name, 'position/commands', unit, (upper - lower) / 2, driven_joints(model, which),
        safe=None, first=which[0], offset=(upper + lower) / 2)


def driven_joints(model: mujoco.MjModel, which: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the joints that these actuators move."""
    return tuple(model.joint(model.actuator_trnid[i, 0]).name for i in which)


def _data(first, size):
    return tuple(f'data[{i}]' for i in range(first, first + size))


def _floats(values):
    return tuple(round(float(value), 9) for value in values)
