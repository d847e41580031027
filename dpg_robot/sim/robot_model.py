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

"""From a robot's MJCF or URDF file to a MuJoCo model with the servos of one control mode."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple
from xml.etree import ElementTree

import mujoco
import numpy as np

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.robot_config import (
    find_model,
    hash_of,
    MAX_FREE_HOME,
    MAX_SPEED,
    RobotConfig,
)

# What is added to the user's model; a slash keeps it apart from names of the user's own.
TOOL, GOAL = 'dpg_robot/tool', 'dpg_robot/goal'
IK_STARTS, IK_STEPS, IK_DAMPING = 20, 60, 1e-3


class RobotModel(NamedTuple):
    """A compiled robot and where its joints are; one value for each joint, in their order.

    :param name: of the robot, from its file.
    :param qpos: places of the joints in MuJoCo's positions; likewise ``qvel`` and ``ctrl``.
    :param lower: least joint angles [rad]; minus infinity for a joint without limit.
    :param velocity: largest velocities [rad/s], infinity where none is known.
    :param torque: largest torques [N m], infinity where none is known.
    :param sim_steps: physics steps in a control period.
    """

    model: mujoco.MjModel
    name: str
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    torque: np.ndarray
    home: np.ndarray
    sim_steps: int

    @property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all angles that differ [rad]: the limits, or half a turn either way."""
        limited = np.isfinite(self.lower)
        return np.where(limited, self.lower, -np.pi), np.where(limited, self.upper, np.pi)


def build_robot(config: RobotConfig) -> RobotModel:
    """Build a robot's model.

    :raises SpecError: naming the key of the task file, the rule and the value.
    """
    path = find_model(config.model)
    return _build(config, path, _check_hash(config, path))


# Worlds of one configuration and one content of the file share the work; each takes a copy of the
# model.
@functools.lru_cache(maxsize=8)
def _build(config, path, content_hash):
    spec = _parse(path)
    # What is wrong with the file itself is told before anything is changed.
    given = _compile(spec, path)
    joints = [_joint(spec, name, i) for i, name in enumerate(config.joints)]
    _mark_tool(spec, config, given)
    if config.gravity_compensation:
        for body in _moved_bodies(joints):
            body.gravcomp = 1.0
    _remove_actuators(spec, config.joints)
    if config.sim_dt:
        spec.option.timestep = config.sim_dt
    # Servos are stiff: their damping belongs on the implicit side.
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    bare = _compile(spec, path)
    robot = _measure(spec, bare, config, path)
    _add_servos(spec, config, robot)
    model = _compile(spec, path)
    ctrl = np.array([model.actuator(f'dpg_robot/{joint}').id for joint in config.joints])
    robot = robot._replace(model=model, ctrl=ctrl)
    if config.goal and config.end_effector:
        _check_reach(robot, config.goal)
    return robot


def _check_hash(config, path):
    found = hash_of(path)
    if config.model_hash and config.model_hash != found:
        raise SpecError(
            f'world.robot.model must be the file that was read at first, SHA-256 '
            f'{config.model_hash[:12]}..., but {path} has {found[:12]}...; it was changed since '
            '(--set world.robot.model_hash= takes it nevertheless)')
    return found


def _parse(path):
    try:
        kind = ElementTree.parse(path).getroot().tag
        if kind not in ('mujoco', 'robot'):
            raise ValueError(f'it begins with <{kind}>, not with <mujoco> or <robot>')
        spec = mujoco.MjSpec.from_file(str(path))
    except (ValueError, ElementTree.ParseError) as error:
        raise _refused(path, error) from error
    # Frames on fixed joints, such as a tool's, would be merged into the links before them.
    spec.compiler.fusestatic = False
    if kind == 'robot':
        _tidy_urdf(spec)
    return spec


def _tidy_urdf(spec):
    # What touches nothing would be left out, as the ball that shows the goal.
    spec.compiler.discardvisual = False
    # MuJoCo reads few of the formats of meshes, and masses should come from <inertial>.
    for geom in list(spec.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            spec.delete(geom)
    for mesh in list(spec.meshes):
        spec.delete(mesh)


def _compile(spec, path):
    try:
        return spec.compile()
    except ValueError as error:
        raise _refused(path, error) from error


def _refused(path, error):
    return SpecError('world.robot.model must be an MJCF or URDF file that MuJoCo takes, got '
                     f'{path}: {" ".join(str(error).split())}')


def _joint(spec, name, index):
    joint = spec.joint(name)
    if joint is None:
        known = ', '.join(joint.name for joint in spec.joints)
        raise SpecError(f'world.robot.joints[{index}] must be a joint of the model ({known}), '
                        f'got {name}')
    if joint.type != mujoco.mjtJoint.mjJNT_HINGE:
        raise SpecError(f'world.robot.joints[{index}] must be a hinge, got {name}, a '
                        f'{joint.type.name.removeprefix("mjJNT_").lower()}')
    return joint


def _mark_tool(spec, config, given):
    """Put a site of our own at the end effector, and a ball to show the goal with."""
    name = config.end_effector
    if name:
        site, body = spec.site(name), spec.body(name)
        if site is not None:
            # As compiled: in the file it may be told in a frame, or by its two ends.
            site.parent.add_site(name=TOOL, pos=given.site(name).pos, group=4)
        elif body is not None:
            body.add_site(name=TOOL, group=4)
        else:
            known = ', '.join(each.name for each in [*spec.sites, *spec.bodies] if each.name)
            raise SpecError(f'world.robot.end_effector must be a site or body of the model '
                            f'({known}), got {name}')
    if config.goal:
        ball = spec.worldbody.add_body(name=GOAL, mocap=True)
        ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[config.goal.tolerance, 0, 0],
                      mass=0, contype=0, conaffinity=0, group=0, rgba=[0.1, 0.7, 0.2, 0.6])


def _moved_bodies(joints):
    bodies = [joint.parent for joint in joints]
    for body in bodies:  # the list grows while it is read
        bodies += [child for child in body.bodies if child not in bodies]
    return bodies


def _remove_actuators(spec, joints):
    """Delete the joints' actuators, and what refers to them or counts them."""
    kinds = mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT
    old = [actuator for actuator in spec.actuators
           if actuator.trntype in kinds and actuator.target in joints]
    names = {actuator.name for actuator in old}
    sensors = [sensor for sensor in spec.sensors
               if sensor.objtype == mujoco.mjtObj.mjOBJ_ACTUATOR and sensor.objname in names]
    for each in [*sensors, *old, *spec.keys]:
        spec.delete(each)


def _measure(spec, model, config, path):
    """Return places and limits, from the task file or else from the model."""
    num = len(config.joints)
    if not (config.position_lower and config.position_upper):
        _check_urdf_range(path, config)
    ids = np.array([model.joint(name).id for name in config.joints])
    limited, motor = model.jnt_limited[ids] == 1, model.jnt_actfrclimited[ids] == 1
    lower = np.where(limited, model.jnt_range[ids, 0], -np.inf)
    upper = np.where(limited, model.jnt_range[ids, 1], np.inf)
    lower, upper = (_narrowed('position_lower', config, lower, upper, lower),
                    _narrowed('position_upper', config, lower, upper, upper))
    for i in np.flatnonzero((lower >= upper) | (np.isfinite(lower) != np.isfinite(upper))):
        raise SpecError(f'world.robot.position_lower[{i}] must be below position_upper[{i}] '
                        f'({upper[i]:g}), or both left out, got {lower[i]:g}')
    velocity = np.array(_urdf_velocities(path, config))
    if config.control != 'torque':
        velocity = _lowered('velocity_limit', config, velocity, 'rad/s')
    torque = np.where(motor, model.jnt_actfrcrange[ids, 1], np.inf)
    torque = _lowered('torque_limit', config, torque, 'N m')
    needed = {'position': ('velocity_limit', velocity), 'velocity': ('velocity_limit', velocity),
              'torque': ('torque_limit', torque)}[config.control]
    _require(config, *needed, 'none')
    if config.control == 'position':
        _require(config, 'position_lower', lower, 'no lower limit')
        _require(config, 'position_upper', upper, 'no upper limit')
    middle = np.clip(0.0, lower, upper)
    home = per_joint(config.home, num, middle)
    _check_within('home', home, lower, upper, config.joints)
    for i in np.flatnonzero(np.isinf(lower) & (np.abs(home) > MAX_FREE_HOME)):
        raise SpecError(f'world.robot.home[{i}] must be in rad and within +-{MAX_FREE_HOME:g} for '
                        f'{config.joints[i]}, which has no limits, got {home[i]:g}')
    return RobotModel(
        model, spec.modelname, model.jnt_qposadr[ids], model.jnt_dofadr[ids], ids, lower, upper,
        velocity, torque, home, _sim_steps(config, model))


def per_joint(values: tuple[float, ...], num: int, default: np.ndarray) -> np.ndarray:
    """Return one value for each joint, from one for all, one for each, or none."""
    return np.broadcast_to(np.array(values, float), num).copy() if values else default


def _narrowed(key, config, lower, upper, default):
    values = per_joint(getattr(config, key), len(default), default)
    _check_within(key, values, lower, upper, config.joints)
    return values


def _lowered(key, config, limits, unit):
    values = per_joint(getattr(config, key), len(limits), limits)
    for i in np.flatnonzero(values > limits * (1.0 + 1e-9)):
        raise SpecError(f'world.robot.{key}[{i}] must be at most the limit of {config.joints[i]} '
                        f'in the model ({limits[i]:g} {unit}), got {values[i]:g}')
    return values


def _check_within(key, values, lower, upper, joints):
    for i in np.flatnonzero((values < lower - 1e-9) | (values > upper + 1e-9)):
        raise SpecError(f'world.robot.{key}[{i}] must be in rad and within the limits of '
                        f'{joints[i]} ({lower[i]:g} to {upper[i]:g}), got {values[i]:g}')


def _require(config, key, values, got):
    for i in np.flatnonzero(~np.isfinite(values)):
        raise SpecError(f'world.robot.{key} is required with {config.control} control: the model '
                        f'has {got} for joint {config.joints[i]}')


def _urdf_limits(path, config):
    """Yield name, type and attributes of the limit of each joint in a URDF that is driven."""
    for joint in ElementTree.parse(path).getroot().findall('joint'):
        if joint.get('name') in config.joints:
            limit = joint.find('limit')
            yield joint.get('name'), joint.get('type'), {} if limit is None else limit.attrib


def _urdf_velocities(path, config):
    """Return the limits of velocity in a URDF, which MuJoCo passes over; infinity for none."""
    found = dict.fromkeys(config.joints, np.inf)
    for name, _, limit in _urdf_limits(path, config):
        text = limit.get('velocity')
        if not text:
            continue
        try:
            found[name] = float(text) or np.inf  # 0 stands for one that nobody knows
        except ValueError:
            found[name] = np.nan
        if not (0 < found[name] <= MAX_SPEED or found[name] == np.inf):
            if config.velocity_limit:
                found[name] = np.inf
                continue
            raise SpecError(f'world.robot.model must give the velocity limit of {name} in rad/s, '
                            f'at most {MAX_SPEED:g}, or world.robot.velocity_limit must, got '
                            f'{text}')
    return tuple(found.values())


def _check_urdf_range(path, config):
    """Check the range of revolute joints, of which MuJoCo takes a reversed one for none."""
    for name, kind, limit in _urdf_limits(path, config):
        lower, upper = limit.get('lower', '0'), limit.get('upper', '0')  # as URDF has it
        if kind == 'revolute' and not float(lower) < float(upper):
            raise SpecError(
                f'world.robot.model must give the revolute joint {name} a lower '
                'limit below the upper one, or world.robot.position_lower and position_upper '
                f'must, got {lower} and {upper}')


def _sim_steps(config, model):
    period, sim_dt = 1.0 / config.control_rate_hz, model.opt.timestep
    steps = round(period / sim_dt)
    if steps < 1 or abs(steps * sim_dt - period) > 1e-6 * period:
        raise SpecError(
            f'world.robot.control_rate_hz must give a control period of whole physics steps '
            f'({sim_dt:g} s each: world.robot.sim_dt), got {config.control_rate_hz:g}, '
            f'{period / sim_dt:.6g} steps')
    return steps


def _add_servos(spec, config, robot):
    num, data = len(config.joints), mujoco.MjData(robot.model)
    data.qpos[robot.qpos] = robot.home
    mujoco.mj_forward(robot.model, data)
    full = np.zeros((robot.model.nv, robot.model.nv))
    mujoco.mj_fullM(robot.model, data, full)
    inertia, damping = np.diag(full)[robot.qvel], robot.model.dof_damping[robot.qvel]
    omega = 2.0 * np.pi * config.bandwidth_hz
    kp = per_joint(config.kp, num, inertia * omega**2)
    # Critical damping, part of which the joint has by itself.
    critical = np.maximum(2.0 * np.sqrt(kp * inertia) - damping, 0.0)
    kv = per_joint(config.kv, num, critical if config.control == 'position' else inertia * omega)
    plain = mujoco.MjSpec()  # whose defaults are MuJoCo's; the model's may filter and delay
    for i, joint in enumerate(config.joints):
        _limit_joint(spec.joint(joint), robot, i)
        servo = spec.add_actuator(plain.default, name=f'dpg_robot/{joint}', target=joint,
                                  trntype=mujoco.mjtTrn.mjTRN_JOINT)
        if config.control == 'position':
            servo.set_to_position(kp[i], kv=kv[i])
            limits = robot.lower[i], robot.upper[i]
        elif config.control == 'velocity':
            servo.set_to_velocity(kv[i])
            # The drive makes up for the joint's own friction, as one with an integrator would.
            servo.gainprm[0] = kv[i] + damping[i]
            limits = -robot.velocity[i], robot.velocity[i]
        else:
            servo.set_to_motor()
            limits = -robot.torque[i], robot.torque[i]
        servo.ctrllimited, servo.ctrlrange = True, limits
        if np.isfinite(robot.torque[i]):
            servo.forcelimited, servo.forcerange = True, (-robot.torque[i], robot.torque[i])


def _limit_joint(joint, robot, i):
    if np.isfinite([robot.lower[i], robot.upper[i]]).all():
        joint.limited = True
        # The compiler still turns degrees to radians where the file is in degrees.
        unit = np.rad2deg if joint.compiler.degree else np.asarray
        joint.range = unit([robot.lower[i], robot.upper[i]])


def _check_reach(robot, region):
    """Check that the end effector can be brought to each corner of the goal region."""
    for corner in itertools.product(*zip(region.lower, region.upper)):
        miss = _distance(robot, np.array(corner), region.tolerance)
        if miss > region.tolerance:
            raise SpecError(
                'world.robot.goal must be in m and within reach of the end effector, got a '
                f'corner {list(corner)} that it misses by {miss:.3g} m (tolerance '
                f'{region.tolerance:g} m)')


def _distance(robot, point, near):
    """Return the least distance to a point found by damped least squares, from many starts."""
    model, data, rng = robot.model, mujoco.MjData(robot.model), np.random.default_rng(0)
    jacobian, least = np.zeros((3, model.nv)), np.inf
    for start in (robot.home, *rng.uniform(*robot.span, (IK_STARTS, len(robot.lower)))):
        data.qpos[robot.qpos] = start
        for _ in range(IK_STEPS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            error = point - data.site(TOOL).xpos
            least = min(least, np.linalg.norm(error))
            if least <= near:
                return least
            mujoco.mj_jacSite(model, data, jacobian, None, data.site(TOOL).id)
            part = jacobian[:, robot.qvel]
            step = part.T @ np.linalg.solve(part @ part.T + IK_DAMPING * np.eye(3), error)
            data.qpos[robot.qpos] = np.clip(data.qpos[robot.qpos] + np.clip(step, -0.3, 0.3),
                                            robot.lower, robot.upper)
    return least
