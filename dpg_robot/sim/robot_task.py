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

"""The tasks ``reach`` and ``track`` for any robot that a task file describes, without Python."""

from __future__ import annotations

import copy

import gymnasium
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
import mujoco
import numpy as np

from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec, SPEC_VERSION
from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.robot_config import RobotConfig
from dpg_robot.sim.robot_model import build_robot, GOAL, per_joint, TOOL
from dpg_robot.sim.task import control_rate, GoalTask, IMAGE_SIZE, max_age, Task

_POSE, _JOINTS = 'geometry_msgs/msg/PoseStamped', 'sensor_msgs/msg/JointState'
_XYZ = tuple(f'pose.position.{axis}' for axis in 'xyz')
# Further outside than this [m, and part of a joint's range], a measurement is wrong, or the
# policy is asked for what it was never trained on.
GOAL_MARGIN, JOINT_MARGIN, SPEED_MARGIN, UNLIMITED = 0.1, 0.1, 5.0, 1e9
# The end effector's range is found from so many random positions of the joints, and widened by
# this part of itself.
NUM_POSITIONS, REACH_MARGIN = 2000, 0.1
CAMERA = {'azimuth': 140.0, 'elevation': -20.0}


class RobotSim(gymnasium.Env):
    """A robot in MuJoCo: joints and their servos, without a purpose.

    Actions are commands in physical units, shape (num_joints,).
    """

    def __init__(self, config: RobotConfig, render_mode: str | None = None):
        """Build the simulation.

        :raises SpecError: naming the key of the task file, the rule and the value.
        """
        self.config, self.robot, self.render_mode = config, build_robot(config), render_mode
        # Whoever owns a world may change its physics.
        self.model = copy.copy(self.robot.model)
        self.data = mujoco.MjData(self.model)
        self.dt = self.robot.sim_steps * self.model.opt.timestep
        self._renderer = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode at rest, near where :meth:`_begin` says."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        robot, spread = self.robot, self.config.home_spread
        start = self._begin() + self.np_random.uniform(-spread, spread, len(robot.home))
        self.data.qpos[robot.qpos] = np.clip(start, robot.lower, robot.upper)
        if self.config.control == 'position':
            self.data.ctrl[robot.ctrl] = self.joint_position
        mujoco.mj_forward(self.model, self.data)
        return None, {}

    def step(self, command: np.ndarray):
        """Advance one control period."""
        self.data.ctrl[self.robot.ctrl] = command
        mujoco.mj_step(self.model, self.data, nstep=self.robot.sim_steps)
        # A step leaves the positions of bodies and sites one physics step behind.
        mujoco.mj_kinematics(self.model, self.data)
        reward, info = self._judge()
        return None, reward, False, False, info

    def _begin(self):
        """Draw what the episode is about; return the joint angles to start near."""
        return self.robot.home

    def _judge(self):
        """Return the reward, and more."""
        return 0.0, {}

    @property
    def joint_position(self) -> np.ndarray:
        """Return the joint angles [rad]."""
        return self.data.qpos[self.robot.qpos]

    @property
    def joint_velocity(self) -> np.ndarray:
        """Return the joint velocities [rad/s]."""
        return self.data.qvel[self.robot.qvel]

    def render(self) -> np.ndarray:
        """Return an image, shape (height, width, 3)."""
        if self._renderer is None:
            self._renderer = MujocoRenderer(self.model, self.data, CAMERA, IMAGE_SIZE, IMAGE_SIZE)
        return self._renderer.render(self.render_mode)

    def close(self) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            self._renderer.close()


class ReachSim(RobotSim):
    """Goals drawn uniformly from a box; the goal is a ball in the picture, which nothing feels."""

    def __init__(self, config: RobotConfig, reward: str, render_mode: str | None = None):
        """Build the simulation."""
        _require(config, 'reach', 'end_effector', 'goal')
        super().__init__(config, render_mode)
        self.is_sparse = reward == 'sparse'
        self._ball = self.model.body(GOAL).mocapid[0]

    @property
    def goal(self) -> np.ndarray:
        """Return where the end effector shall be [m], shape (3,)."""
        return self.data.mocap_pos[self._ball]

    @goal.setter
    def goal(self, value: np.ndarray) -> None:
        self.data.mocap_pos[self._ball] = value

    @property
    def end_effector(self) -> np.ndarray:
        """Return where the end effector is [m], shape (3,)."""
        return self.data.site(TOOL).xpos

    def _begin(self):
        self.goal = self.np_random.uniform(self.config.goal.lower, self.config.goal.upper)
        return self.robot.home

    def _judge(self):
        reward = self.compute_reward(self.end_effector, self.goal, {})
        return float(reward), {'is_success': self._is_success(self.end_effector, self.goal)}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: dict) -> np.ndarray:
        """Return minus the distance [m], or if sparse 0 at the goal and -1 elsewhere."""
        if self.is_sparse:
            return self._is_success(achieved, desired) - 1.0
        return -np.linalg.norm(achieved - desired, axis=-1)

    def _is_success(self, achieved, desired):
        return np.linalg.norm(achieved - desired, axis=-1) < self.config.goal.tolerance


class TrackSim(RobotSim):
    """A moving reference for every joint: ``home`` plus a sum of random sines.

    ``goal`` is amplitudes [rad], angular frequencies [rad/s] and phases [rad] of the sines, shape
    (3, num_sines, num_joints).
    """

    def __init__(self, config: RobotConfig, render_mode: str | None = None):
        """Build the simulation."""
        _require(config, 'track', 'reference')
        super().__init__(config, render_mode)
        self.amplitude = per_joint(config.reference.amplitude, len(config.joints), None)
        _check_reference(config, self.robot, self.amplitude)

    def _begin(self):
        reference, shape = self.config.reference, (self.config.reference.num_sines,
                                                   len(self.amplitude))
        parts = self.np_random.uniform(0.2, 1.0, shape)
        self.goal = np.stack([
            self.amplitude * parts / parts.sum(0),
            2 * np.pi * reference.max_frequency_hz * self.np_random.uniform(0.2, 1.0, shape),
            self.np_random.uniform(-np.pi, np.pi, shape)])
        return self.reference()[0]

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the joints shall be now [rad], and how fast they shall move [rad/s]."""
        amplitude, omega, phase = self.goal
        angle = omega * self.data.time + phase
        return (self.robot.home + (amplitude * np.sin(angle)).sum(0),
                (amplitude * omega * np.cos(angle)).sum(0))

    def _judge(self):
        error = self.joint_position - self.reference()[0]
        return -float(np.sqrt(np.mean(error**2))), {}


def _require(config, task, *keys):
    for key in keys:
        if not getattr(config, key):
            raise SpecError(f'world.robot.{key} is required for the task {task}, and missing')


def _check_reference(config, robot, amplitude):
    room = np.minimum(robot.upper - robot.home, robot.home - robot.lower)
    fastest = 2 * np.pi * config.reference.max_frequency_hz
    for most, what in ((room, 'the room between home and the limits'),
                       (robot.velocity / fastest, 'velocity_limit / (2 pi max_frequency_hz)')):
        for i in np.flatnonzero(amplitude > most + 1e-9):
            raise SpecError(
                f'world.robot.reference.amplitude must be at most {most[i]:.4g} rad for joint '
                f'{config.joints[i]}, {what}, got {amplitude[i]:g}')


class _RobotTask:
    """What both tasks share; ``held_position`` is where the joints are told to be at first."""

    def _command(self, action):
        return self.policy_spec.physical(action)

    @property
    def held_position(self):
        return self.sim.joint_position

    @property
    def held_action(self):
        is_position = self.sim.config.control == 'position'
        return self.policy_spec.normalised(self.held_position) if is_position else ()


class Reach(_RobotTask, GoalTask):
    """Bring the end effector to a random point of a region.

    The observation is joint angles [rad] and velocities [rad/s], end-effector position and goal
    [m]; the action is the command of ``robot.control``, -1 and 1 the ends of its range. An
    episode is a success if the end effector is within ``goal.tolerance`` of the goal when it ends.
    """

    achieved_goal_terms = ('end_effector_position',)

    def __init__(self, robot: RobotConfig, reward: str = 'dense', render_mode: str | None = None):
        """Build the simulation.

        :param reward: 'dense' (minus the distance [m]) or 'sparse' (0 at the goal, else -1).
        :raises SpecError: naming the key of the task file, the rule and the value.
        """
        sim = ReachSim(robot, reward, render_mode)
        margin = max(GOAL_MARGIN, robot.goal.tolerance)
        spec = _robot_spec('reach', sim, (
            ObservationTerm('end_effector_position', 'end_effector/pose', _POSE, _XYZ, 'm',
                            max_age(sim), *_end_effector_range(sim.robot)),
            ObservationTerm('goal_position', 'goal/pose', _POSE, _XYZ, 'm',
                            max(1.0, max_age(sim)),
                            _floats(np.array(robot.goal.lower) - margin),
                            _floats(np.array(robot.goal.upper) + margin))))
        super().__init__(sim, spec, robot.episode_steps)

    def _observe(self, obs):
        sim = self.sim
        return np.concatenate([sim.joint_position, sim.joint_velocity, sim.end_effector, sim.goal])


class Track(_RobotTask, Task):
    """Follow smooth random trajectories of the joints.

    The observation is joint angles [rad] and velocities [rad/s], and those that the reference has
    now; a preview would add little, since the reference bends slowly. The reward is minus the
    root mean square of the joints' errors [rad].
    """

    def __init__(self, robot: RobotConfig, render_mode: str | None = None):
        """Build the simulation.

        :raises SpecError: naming the key of the task file, the rule and the value.
        """
        sim = TrackSim(robot, render_mode)
        spec = _robot_spec('track', sim, _joint_terms(sim, 'reference', 'reference/joint_states'))
        super().__init__(sim, spec, robot.episode_steps)

    def _observe(self, obs):
        return np.concatenate([self.sim.joint_position, self.sim.joint_velocity,
                               *self.sim.reference()])


def _robot_spec(task, sim, purpose):
    return PolicySpec(
        spec_version=SPEC_VERSION, task=task, robot=sim.robot.name,
        control_rate_hz=control_rate(sim), eps_dim=len(sim.config.joints),
        observation=(*_joint_terms(sim, 'joint', 'joint_states'), *purpose),
        action=(_action_term(sim.config, sim.robot),))


def _joint_terms(sim, name, topic):
    robot, joints = sim.robot, sim.config.joints
    width = JOINT_MARGIN * (robot.upper - robot.lower)
    return tuple(
        ObservationTerm(f'{name}_{kind}', topic, _JOINTS,
                        tuple(f'{kind}[{joint}]' for joint in joints), unit, max_age(sim),
                        *_valid_range(low, high))
        for kind, unit, low, high in (
            ('position', 'rad', robot.lower - width, robot.upper + width),
            ('velocity', 'rad/s', -SPEED_MARGIN * robot.velocity, SPEED_MARGIN * robot.velocity)))


def _valid_range(low, high):
    if not np.isfinite(high - low).any():
        return ()
    # Of a joint without limits, everything is valid.
    return _floats(np.maximum(low, -UNLIMITED)), _floats(np.minimum(high, UNLIMITED))


def _end_effector_range(robot):
    """Return the corners of a box that the end effector never leaves [m]."""
    model, data, rng = robot.model, mujoco.MjData(robot.model), np.random.default_rng(0)
    points = []
    for angles in rng.uniform(*robot.span, (NUM_POSITIONS, len(robot.lower))):
        data.qpos[robot.qpos] = angles
        mujoco.mj_kinematics(model, data)
        points.append(data.site(TOOL).xpos.copy())
    low, high = np.min(points, 0), np.max(points, 0)
    margin = REACH_MARGIN * np.max(high - low)
    # Whole decimetres: no contract may differ in the last digit of another machine's sine.
    return _floats(np.floor(10 * (low - margin)) / 10), _floats(np.ceil(10 * (high + margin)) / 10)


def _action_term(config, robot):
    """Return what is commanded.

    A position is an absolute one, and no step from where the joint is: a target relative to a
    noisy, late measurement would drift, and a lost command would leave the arm where nobody told
    it to be. It moves no faster than the velocity limit, in training as on the robot.
    """
    num = len(config.joints)
    unit, topic, lower, upper, safe, rate = {
        'position': ('rad', 'position', robot.lower, robot.upper, None, robot.velocity),
        'velocity': ('rad/s', 'velocity', -robot.velocity, robot.velocity, 0.0,
                     per_joint(config.acceleration_limit, num, np.full(num, np.inf))),
        'torque': ('N m', 'effort', -robot.torque, robot.torque, 0.0, np.full(num, np.inf)),
    }[config.control]
    return ActionTerm(
        f'joint_{config.control}', f'{topic}/commands', 'std_msgs/msg/Float64MultiArray',
        tuple(f'data[{i}]' for i in range(num)), unit, scale=_floats((upper - lower) / 2),
        offset=_floats((upper + lower) / 2), lower=_floats(lower), upper=_floats(upper),
        safe=(safe,) * num, joints=config.joints,
        rate_limit=tuple(value if np.isfinite(value) else None for value in _floats(rate)))


def _floats(values):
    return tuple(round(float(value), 9) for value in values)
