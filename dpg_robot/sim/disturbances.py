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

"""What the world does to the body of a robot: pushes, and a model that differs each episode."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import mujoco
import numpy as np

from dpg_robot.contract.strict import bounded, SpecError

Range = tuple[float, ...]


@dataclass(frozen=True)
class PushConfig:
    """Pushes on one body, at random times (a Poisson process) and in random directions.

    :param rate_hz: mean number of pushes in a second; one that begins ends the one before.
    :param force_n: lower and upper end of the force [N]; each push draws its own, uniformly.
    :param duration_s: how long each push lasts [s].
    :param axes: of the world; directions are uniform among all that these span.
    """

    rate_hz: float = bounded(above=0, maximum=100)
    force_n: Range = bounded(minimum=0)
    duration_s: float = bounded(above=0, maximum=10)
    axes: tuple[str, ...] = bounded(('x', 'y', 'z'), choices=('x', 'y', 'z'))

    def check(self, name: str) -> None:
        """Check the rules that span values.

        :raises SpecError: naming the key, the rule and the value.
        """
        _check_range(self.force_n, f'{name}.force_n')
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise SpecError(f'{name}.axes must be at least one of x, y, z, each once, '
                            f'got {list(self.axes)}')


@dataclass(frozen=True)
class ScaleConfig:
    """Ranges of factors; everything of a kind gets its own, uniform, but what has its own range.

    :param mass: of bodies, inertia included.
    :param friction: of geoms, sliding.
    :param damping: of joints.
    :param actuator_gain: of actuators; the bias of a servo goes with it, so its target stays.
    """

    mass: Range = bounded((), above=0)
    friction: Range = bounded((), minimum=0)
    damping: Range = bounded((), minimum=0)
    actuator_gain: Range = bounded((), minimum=0)

    def check(self, name: str) -> None:
        """Check the ranges.

        :raises SpecError: naming the key, the rule and the value.
        """
        for item in fields(self):
            _check_range(getattr(self, item.name), f'{name}.{item.name}', optional=True)


@dataclass(frozen=True)
class RandomizeConfig:
    """What differs from episode to episode: ``[lower, upper]``, drawn uniformly.

    :param mass_kg: of bodies, by name; their inertia goes with it [kg].
    :param friction: sliding friction coefficient of geoms, by name.
    :param damping: of joints, by name [N m s/rad, or N s/m where it slides].
    :param actuator_gain: of actuators, by name, or by that of their joint [as in the model].
    :param gravity_m_s2: its size; the direction stays [m/s^2].
    :param scale: factors for everything that is not named.
    """

    mass_kg: dict[str, Range] = field(default_factory=dict, metadata={'above': 0})
    friction: dict[str, Range] = field(default_factory=dict, metadata={'minimum': 0})
    damping: dict[str, Range] = field(default_factory=dict, metadata={'minimum': 0})
    actuator_gain: dict[str, Range] = field(default_factory=dict, metadata={'minimum': 0})
    gravity_m_s2: Range = bounded((), minimum=0)
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    def check(self, name: str) -> None:
        """Check the ranges.

        :raises SpecError: naming the key, the rule and the value.
        """
        _check_range(self.gravity_m_s2, f'{name}.gravity_m_s2', optional=True)
        for key in ('mass_kg', 'friction', 'damping', 'actuator_gain'):
            for part, limits in getattr(self, key).items():
                _check_range(limits, f'{name}.{key}.{part}')


def _check_range(limits, name, optional=False):
    if optional and not limits:
        return
    if len(limits) != 2 or limits[0] > limits[1]:
        raise SpecError(f'{name} must be [lower, upper], lower at most upper, '
                        f'got {list(limits)}')


class Pushes:
    """The random forces on some bodies of one simulated robot.

    ``memory`` holds, for each body, the time to its next push and what is left of the present
    one [s], and the present force [N]; shape (bodies, 5).
    """

    def __init__(self, sim: Any, task: str, config: dict[str, PushConfig], control_dt: float):
        """Find the bodies.

        :param sim: has MuJoCo's ``model`` and ``data``.
        :raises SpecError: if there is no such body, or it cannot move.
        """
        bodies = [sim.model.body(i) for i in range(sim.model.nbody)]
        names = [body.name for body in bodies if body.weldid[0]]  # the others are fixed
        fixed = {body.name for body in bodies}.difference(names)
        for name in config:
            kind = 'a movable body' if name in fixed else 'a body'
            _check_name(name, names, 'noise.pushes', kind, task)
        self._dt, self._config = control_dt, tuple(config.values())
        self._forces = [sim.data.body(name).xfrc_applied[:3] for name in config]
        self.memory = np.zeros((len(config), 5))

    def begin(self, rng: np.random.Generator) -> None:
        """Forget the old episode's pushes."""
        self.memory[:] = 0.0
        self.memory[:, 0] = [rng.exponential(1 / push.rate_hz) for push in self._config]

    def step(self, rng: np.random.Generator) -> None:
        """Apply the forces of the coming control period, each averaged over it."""
        for force, push, memory in zip(self._forces, self._config, self.memory):
            wait, left = memory[:2].tolist()
            if wait >= self._dt and not left:  # nearly always; so it has to be quick
                memory[0], force[:] = wait - self._dt, 0.0
            else:
                force[:] = self._mean_force(push, memory, rng)

    def _mean_force(self, push, memory, rng):
        rest, impulse = self._dt, np.zeros(3)
        while memory[0] < rest:  # a push begins in this period
            wait, left = memory[:2]
            impulse += min(wait, left) * memory[2:]
            rest -= wait
            memory[:] = rng.exponential(1 / push.rate_hz), push.duration_s, *_draw_force(push, rng)
        impulse += min(rest, memory[1]) * memory[2:]
        memory[:2] -= rest, min(rest, memory[1])
        return impulse / self._dt


def _draw_force(push, rng):
    direction = rng.standard_normal(3) * [axis in push.axes for axis in 'xyz']
    return rng.uniform(*push.force_n) * direction / np.linalg.norm(direction)


class _Quantity:
    """One number in the compiled model, of every part that has it."""

    def __init__(self, kind: str, names: list[str], values: np.ndarray,
                 follower: np.ndarray | None = None, can_change: np.ndarray | bool = True):
        """Remember what is nominal.

        :param names: of the parts, '' where there is none.
        :param values: the model's own memory, shape (parts,).
        :param follower: more of the model's memory, which keeps its ratio to the values, shape
            (parts, k).
        :param can_change: which parts may be changed, shape (parts,).
        """
        self.kind, self.names, self.values, self.follower = kind, names, values, follower
        self.nominal = values.copy()
        self.nominal_follower = None if follower is None else follower.copy()
        self.can_change = np.broadcast_to(can_change, values.shape)

    def set(self, parts: np.ndarray, values: np.ndarray) -> None:
        """Put numbers in the place of the nominal ones."""
        self.values[parts] = values
        if self.follower is not None:
            ratio = values / self.nominal[parts]
            self.follower[parts] = self.nominal_follower[parts] * ratio[:, None]

    def named_ranges(self, ranges: dict[str, Range], key: str, task: str) -> dict[int, Range]:
        """Return the ranges that parts are given by name, by the part's place."""
        names = [name for name, can in zip(self.names, self.can_change) if name and can]
        for name in ranges:
            _check_name(name, names, f'noise.randomize.{key}', self.kind, task)
        return {i: ranges[name] for i, name in enumerate(self.names) if name in ranges}

    def scaled_ranges(self, factors: Range, key: str, task: str) -> dict[int, Range]:
        """Return the ranges of all parts, by the part's place."""
        if not factors:
            return {}
        places = np.flatnonzero(self.can_change & (self.nominal != 0))
        if not len(places):
            raise SpecError(f'noise.randomize.scale.{key} must be left out for {task}, which '
                            f'lacks {self.kind} to change; got {list(factors)}')
        return {i: tuple(sorted(self.nominal[i] * np.array(factors))) for i in places.tolist()}


def _quantities(model):
    """Return what can be randomised, by the keys of named parts and of factors for all."""
    def names(part, count):
        return [part(i).name for i in range(count)]

    joints = names(model.joint, model.njnt)
    actuators = [name or joints[joint] for name, joint in zip(
        names(model.actuator, model.nu), model.actuator_trnid[:, 0])]
    mass, gain = model.body_mass, model.actuator_gainprm[:, 0]
    is_gain = (model.actuator_gaintype == mujoco.mjtGain.mjGAIN_FIXED) & (gain != 0)
    return {
        ('mass_kg', 'mass'): _Quantity(
            'a body with a mass', names(model.body, model.nbody), mass, model.body_inertia,
            mass > 0),
        ('friction', 'friction'): _Quantity(
            'a geom', names(model.geom, model.ngeom), model.geom_friction[:, 0]),
        ('damping', 'damping'): _Quantity(
            'a joint', [joints[i] for i in model.dof_jntid], model.dof_damping),
        # The second and third of the bias are those of a servo's position and velocity.
        ('actuator_gain', 'actuator_gain'): _Quantity(
            'an actuator with a gain', actuators, gain, model.actuator_biasprm[:, 1:3], is_gain)}


class RandomModel:
    """A compiled model whose numbers are drawn anew for each episode.

    ``memory`` holds the numbers drawn, shape (parts,). They replace the nominal ones, so nothing
    adds up over episodes: equal numbers make equal models, to the bit.
    """

    def __init__(self, sim: Any, task: str, config: RandomizeConfig):
        """Find the parts.

        :param sim: has MuJoCo's ``model``.
        :raises SpecError: if there is no such part.
        """
        self._model, self._scratch = sim.model, mujoco.MjData(sim.model)
        self._places = sim.model.body_pos.copy()
        self._parts, limits, nominal = [], [], []
        for (key, scale_key), quantity in _quantities(sim.model).items():
            ranges = quantity.scaled_ranges(getattr(config.scale, scale_key), scale_key, task)
            ranges |= quantity.named_ranges(getattr(config, key), key, task)
            if ranges:
                parts = np.array(list(ranges))
                self._parts.append((quantity, parts))
                limits += ranges.values()
                nominal += quantity.nominal[parts].tolist()
        self._mass, self._carried = sim.model.body_mass.copy(), sim.model.body_gravcomp.copy()
        self._gravity = None
        if config.gravity_m_s2:
            size = self._size = np.linalg.norm(sim.model.opt.gravity)
            self._gravity = sim.model.opt.gravity / size if size else np.array([0.0, 0.0, -1.0])
            limits.append(config.gravity_m_s2)
            nominal.append(size)
        self._limits, self.memory = np.array(limits), np.array(nominal)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the numbers of an episode, and put them into the model."""
        self.memory[:] = rng.uniform(*self._limits.T)
        self.apply()

    def apply(self) -> None:
        """Put the numbers into the model, and compute what MuJoCo derives from them."""
        first = 0
        for quantity, parts in self._parts:
            quantity.set(parts, self.memory[first:first + len(parts)])
            first += len(parts)
        if self._gravity is not None:
            self._model.opt.gravity[:] = self._gravity * self.memory[-1]
        self._carry()
        # In a data of its own, and with all bodies where the file has them, not where a task put
        # a door in the episode before: the constants are those of the reference pose.
        places = self._model.body_pos.copy()
        self._model.body_pos[:] = self._places
        mujoco.mj_setConst(self._model, self._scratch)
        self._model.body_pos[:] = places

    def _carry(self):
        """Let drives that carry the arm carry the weight that they know of, the nominal one."""
        # To MuJoCo it is a part of the present weight.
        mass = self._model.body_mass
        part = np.divide(self._mass, mass, out=np.ones_like(mass), where=mass > 0)
        if self._gravity is not None and self.memory[-1] > 0:
            part *= self._size / self.memory[-1]
        self._model.body_gravcomp[:] = self._carried * part


def _check_name(name, names, key, kind, task):
    if name not in names:
        known = ', '.join(dict.fromkeys(filter(None, names))) or 'there is none'
        raise SpecError(f'{key} must name {kind} of {task} ({known}), got {name}')
