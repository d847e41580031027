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

"""What a task file says of a robot: its model file, joints, control mode, limits and goals."""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
from pathlib import Path

from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.resources import find_file, PACKAGE_URI

CONTROLS = ('position', 'velocity', 'torque')
# No arm is meant to turn faster: 90 is a speed in degrees.
MAX_SPEED = 30.0
# A turn [rad], of a joint without limits: 90 is an angle in degrees.
MAX_FREE_HOME = 6.2832


@dataclass(frozen=True)
class GoalRegion:
    """The box that goals of ``reach`` are drawn from, uniformly.

    :param lower: its least x, y and z in the frame of the model's world [m].
    :param upper: its greatest x, y and z [m].
    :param tolerance: a success is an end effector within this distance of its goal [m].
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    tolerance: float = bounded(0.03, above=0, maximum=1.0)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        for key in ('lower', 'upper'):
            if len(getattr(self, key)) != 3:
                raise SpecError(f'{name}.{key} must be x, y and z, got '
                                f'{len(getattr(self, key))} values')
        for i, (low, high) in enumerate(zip(self.lower, self.upper)):
            if low > high:
                raise SpecError(f'{name}.lower[{i}] must be at most upper[{i}] ({high}), or the '
                                f'region is empty; got {low}')


@dataclass(frozen=True)
class Reference:
    """The trajectories that ``track`` follows: for each joint a sum of random sines.

    :param amplitude: greatest distance from ``home`` [rad], one for all joints or one for each.
    :param max_frequency_hz: of the fastest sine [Hz].
    :param num_sines: in each joint's sum.
    """

    amplitude: tuple[float, ...] = bounded((0.5,), above=0)
    max_frequency_hz: float = bounded(0.25, above=0)
    num_sines: int = bounded(3, minimum=1, maximum=20)


@dataclass(frozen=True)
class RobotConfig:
    """A robot in one section of YAML; lists of limits have one value for all joints or for each.

    What is left out comes from the model file, where it has it.

    :param model: MJCF or URDF file; relative to the task file, or
        ``package://some_ros_package/path``.
    :param joints: the joints that are observed and commanded, in this order.
    :param control: what a command is: ``position`` [rad], ``velocity`` [rad/s], ``torque`` [N m].
    :param control_rate_hz: commands in a second [Hz]; a control period must be a whole number of
        physics steps.
    :param end_effector: a site, or else a body (a link in a URDF), for ``reach``.
    :param sim_dt: physics time step [s].
    :param home: where episodes of ``reach`` begin, and the middle of what ``track`` follows [rad];
        where it is left out, 0 or the nearest limit.
    :param home_spread: episodes begin up to this far from their start, in each joint [rad].
    :param position_lower: least joint angles [rad], within the model's own limits.
    :param position_upper: greatest joint angles [rad], likewise.
    :param velocity_limit: largest velocity [rad/s]: of the command with velocity control; with
        position control the command moves no faster; with torque control unused.
    :param acceleration_limit: with velocity control, the command changes no faster [rad/s^2].
    :param torque_limit: largest torque of a drive [N m].
    :param bandwidth_hz: of the servos of position and velocity control [Hz], where no gain is
        given.
    :param kp: gain of position control [N m/rad].
    :param kv: damping of position control, or gain of velocity control [N m s/rad].
    :param gravity_compensation: the drives carry the arm's weight, as those of most arms do.
    :param episode_steps: control periods in an episode.
    :param goal: for the task ``reach``.
    :param reference: for the task ``track``.
    :param model_hash: SHA-256 of the model file; filled in when a task file is read, so that a
        policy is not evaluated on another robot than it was trained on; empty takes any file.
    """

    model: str
    joints: tuple[str, ...]
    control: str = bounded(choices=CONTROLS)
    control_rate_hz: float = bounded(above=0, maximum=1000)
    end_effector: str = ''
    sim_dt: float | None = bounded(None, above=0, maximum=0.1)
    home: tuple[float, ...] = ()
    home_spread: float = bounded(0.1, minimum=0, maximum=3.1416)
    position_lower: tuple[float, ...] = ()
    position_upper: tuple[float, ...] = ()
    velocity_limit: tuple[float, ...] = bounded((), above=0)
    acceleration_limit: tuple[float, ...] = bounded((), above=0)
    torque_limit: tuple[float, ...] = bounded((), above=0)
    bandwidth_hz: float = bounded(5.0, above=0)
    kp: tuple[float, ...] = bounded((), above=0)
    kv: tuple[float, ...] = bounded((), above=0)
    gravity_compensation: bool = True
    episode_steps: int = bounded(50, minimum=1)
    goal: GoalRegion | None = None
    reference: Reference | None = None
    model_hash: str | None = None

    def check(self, name: str) -> None:
        """Check the rules that need no model file.

        :raises SpecError: naming the key, the rule and the value.
        """
        if not self.joints:
            raise SpecError(f'{name}.joints must name at least one joint, got none')
        for i, joint in enumerate(self.joints):
            if joint.isdigit() or not joint or set('[]') & set(joint):
                raise SpecError(f'{name}.joints[{i}] must be a name without brackets, and no '
                                f'number, to be found by in a JointState, got {joint!r}')
            if self.joints.count(joint) > 1:
                raise SpecError(f'{name}.joints must differ, got {joint} twice')
        for key in ('home', 'position_lower', 'position_upper', 'velocity_limit',
                    'acceleration_limit', 'torque_limit', 'kp', 'kv'):
            self._check_length(getattr(self, key), f'{name}.{key}')
        if self.reference:
            self._check_length(self.reference.amplitude, f'{name}.reference.amplitude')
            if not self.reference.amplitude:
                raise SpecError(f'{name}.reference.amplitude must have one value, or one for each '
                                'joint, got none')
        for i, speed in enumerate(self.velocity_limit):
            if speed > MAX_SPEED:
                raise SpecError(f'{name}.velocity_limit[{i}] must be in rad/s and at most '
                                f'{MAX_SPEED:g}, got {speed}')
        for key, modes in (('kp', ('position',)), ('kv', ('position', 'velocity')),
                           ('acceleration_limit', ('velocity',))):
            if getattr(self, key) and self.control not in modes:
                raise SpecError(f'{name}.{key} means nothing with {self.control} control, got '
                                f'{list(getattr(self, key))}')

    def _check_length(self, values, name):
        if len(values) not in (0, 1, len(self.joints)):
            raise SpecError(f'{name} must have one value, or one for each joint '
                            f'({len(self.joints)}), got {len(values)}')


def locate(world: dict, folder: Path) -> None:
    """Make the model file in a task file's ``world`` section findable from anywhere.

    :param world: the section as read; ``robot.model`` becomes absolute, unless it is a package://
        address, and ``robot.model_hash`` is filled in.
    :param folder: where the task file lies.
    :raises SpecError: if there is no such model file.
    """
    robot = world.get('robot') if isinstance(world, dict) else None
    if not isinstance(robot, dict) or not isinstance(robot.get('model'), str):
        return  # the loader says what is wrong
    if not robot['model'].startswith(PACKAGE_URI):
        robot['model'] = str((Path(folder) / robot['model']).resolve())
    if 'model_hash' not in robot:
        robot['model_hash'] = hash_of(find_model(robot['model']))


def find_model(address: str) -> Path:
    """Return the path of a model file.

    :raises SpecError: if there is none.
    """
    path = find_file(address, 'world.robot.model')
    if not path.is_file():
        raise SpecError(f'world.robot.model must be an MJCF or URDF file, found none at {path}')
    return path


def hash_of(path: Path) -> str:
    """Return a file's SHA-256; meshes and included files are not part of it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
