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

"""The arithmetic of noise on commands and observations, for many worlds at once.

Arrays have a first axis for the worlds. Each world draws from a generator of its own, so its
noise depends on its own seed alone, never on how many others there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any, TYPE_CHECKING

import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

if TYPE_CHECKING:
    from dpg_robot.sim.noise import NoiseConfig

ALL = slice(None)
QUATERNION = [f'orientation.{axis}' for axis in 'wxyz']


class Gaussian:
    """Noise with a standard deviation: white, or an Ornstein-Uhlenbeck process.

    That process is discretised exactly: ``x' = keep x + std sqrt(1 - keep^2) xi`` with
    ``keep = exp(-dt / time_constant)`` has the same law as the continuous one at times ``k dt``
    (Gillespie 1996), so its standard deviation is ``std`` for any control period.
    """

    def __init__(self, std: float, time_constant_s: float, dt: float):
        """Discretise for a control period ``dt`` [s]; a time constant of 0 means white."""
        self.std = std
        self.keep = math.exp(-dt / time_constant_s) if std and time_constant_s else 0.0
        self.add = std * math.sqrt(1.0 - self.keep ** 2)

    def step(self, last: np.ndarray | None, xi: np.ndarray) -> np.ndarray:
        """Return the next values, from standard normal draws; ``last``, if any, becomes them."""
        value = self.add * xi
        if last is not None:
            value += self.keep * last
            last[:] = value
        return value


def delayed(history: np.ndarray, newest: np.ndarray, latency: np.ndarray | float,
            is_angle: np.ndarray | None = None, quaternions: Sequence[slice] = ()) -> np.ndarray:
    """Put the newest values into a delay line and return those of ``latency`` periods ago.

    Fractions of a period blend two neighbours. For a zero-order hold that is its mean over the
    coming period; for samples of a signal it is their linear interpolation.

    :param history: newest first, shape (worlds, periods, dim).
    :param newest: shape (worlds, dim).
    :param latency: 0 to periods - 2, broadcast to (worlds, dim).
    :param is_angle: which elements are angles [rad], shape (dim,): between two of them lies the
        shorter arc.
    :param quaternions: places of those, either sign of which is the same orientation.
    """
    history[:, 1:] = history[:, :-1]
    history[:, 0] = newest
    latency = np.asarray(latency)
    whole = latency.astype(int)
    fraction = latency - whole
    world, element = np.arange(len(newest))[:, None], np.arange(newest.shape[1])
    newer, older = history[world, whole, element], history[world, whole + 1, element]
    if is_angle is not None:
        nearest = newer + (older - newer + math.pi) % (2 * math.pi) - math.pi
        older = np.where(is_angle, nearest, older)
    for places in quaternions:
        across = (newer[:, places] * older[:, places]).sum(1) < 0
        older[across, places] *= -1
    blend = (1 - fraction) * newer + fraction * older
    for places in quaternions:
        blend[:, places] /= np.linalg.norm(blend[:, places], axis=1, keepdims=True)
    return blend


def clip(value: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float) -> np.ndarray:
    """Return values between two ends; for small arrays, several times as fast as numpy's."""
    return np.minimum(np.maximum(value, lower), upper)


def dead_zone(command: np.ndarray, width: float) -> np.ndarray:
    """Return commands that do nothing up to a size of ``width``, and lose as much beyond."""
    return np.sign(command) * np.maximum(np.abs(command) - width, 0.0)


class Memory:
    """What the noise of each world remembers, by name; everything begins anew with an episode."""

    def __init__(self, num_worlds: int):
        """Remember nothing of so many worlds."""
        self.num_worlds = num_worlds
        self.arrays: dict[str, np.ndarray] = {}
        self._draws: dict[str, Callable[[np.random.Generator], Any]] = {}

    def add(self, name: str, *shape: int,
            draw: Callable[[np.random.Generator], Any] | None = None) -> None:
        """Remember an array of each world; it begins with what ``draw`` gives, or with zeros."""
        self.arrays[name] = np.zeros((self.num_worlds, *shape))
        self._draws[name] = draw or (lambda rng: 0.0)

    def begin(self, row: int, rng: np.random.Generator) -> None:
        """Begin an episode of one world."""
        for name, draw in self._draws.items():
            self.arrays[name][row] = draw(rng)


class CommandNoise:
    """From commands to what the actuators carry out."""

    def __init__(self, config: NoiseConfig, rate_hz: float, dim: int, memory: Memory):
        """Prepare for commands of size ``dim`` at a control rate [Hz]."""
        self.config, self.arrays = config, memory.arrays
        self.additive = Gaussian(config.actuator, config.actuator_time_constant_s, 1 / rate_hz)
        self.relative = Gaussian(
            config.actuator_relative, config.actuator_relative_time_constant_s, 1 / rate_hz)
        gaussians = {'additive': self.additive, 'relative': self.relative}
        self.normals = np.zeros(
            (memory.num_worlds, sum(noise.std > 0 for noise in gaussians.values()), dim))
        self.uniforms = np.zeros((memory.num_worlds, 2))
        self.has_uniforms = config.command_loss > 0 or config.command_jitter_s > 0
        self.latency, self.spread, self.jitter = (rate_hz * value for value in (
            config.command_latency_s, config.command_latency_spread_s, config.command_jitter_s))
        for name, noise in gaussians.items():
            if noise.keep:
                memory.add(name, dim, draw=lambda rng, std=noise.std: rng.normal(0.0, std, dim))
        if config.actuator_bias:
            memory.add('bias', dim, draw=lambda rng: rng.normal(0.0, config.actuator_bias, dim))
        if config.backlash:
            memory.add('play', dim)
        if config.command_loss:
            memory.add('held', dim)
        if self.spread:
            memory.add('spread', 1, draw=lambda rng: rng.uniform(0.0, self.spread))
        if longest := self.latency + self.spread + self.jitter:
            memory.add('history', int(longest) + 2, dim)

    def hold(self, row: int, command: np.ndarray) -> None:
        """Begin an episode of one world as if this had been commanded for long, (dim,)."""
        command = clip(command, -1.0, 1.0)
        begins = {'held': command, 'history': command,
                  'play': dead_zone(command, self.config.dead_zone)}
        for name in begins.keys() & self.arrays.keys():
            self.arrays[name][row] = begins[name]

    def __call__(self, command: np.ndarray, rngs: list[np.random.Generator],
                 rows: slice) -> np.ndarray:
        """Return what is carried out, within -1 and 1; shapes (rows, dim)."""
        config = self.config
        past = {name: array[rows] for name, array in self.arrays.items()}
        normals, uniforms = self._draw(rngs, rows)
        command = clip(command.astype(float), -1.0, 1.0)
        if config.command_loss:
            arrived = uniforms[:, :1] >= config.command_loss
            np.copyto(past['held'], command, where=arrived)
            command = past['held']
        if 'history' in past:
            latency = self.latency + past.get('spread', 0.0) + self.jitter * uniforms[:, 1:]
            command = delayed(past['history'], command, latency)
        if config.dead_zone:
            command = dead_zone(command, config.dead_zone)
        if config.backlash:
            play, half = past['play'], config.backlash / 2
            play[:] = command = clip(play, command - half, command + half)
        return clip(self._disturbed(command, past, normals), -1.0, 1.0)

    def _disturbed(self, command, past, normals):
        result = command
        if self.relative.std:
            result = result + command * self.relative.step(past.get('relative'), normals[:, -1])
        if 'bias' in past:
            result = result + past['bias']
        if self.additive.std:
            result = result + self.additive.step(past.get('additive'), normals[:, 0])
        return result

    def _draw(self, rngs, rows):
        normals, uniforms = self.normals[rows], self.uniforms[rows]
        for i, rng in enumerate(rngs):
            if normals.size:
                rng.standard_normal(out=normals[i])
            if self.has_uniforms:
                rng.random(out=uniforms[i])
        return normals, uniforms


class ObservationNoise:
    """From the true state to what is observed of it."""

    def __init__(self, config: NoiseConfig, spec: PolicySpec, memory: Memory):
        """Prepare for the terms of a contract.

        :raises SpecError: if the noise names a term that the spec lacks.
        """
        self.arrays = memory.arrays
        self.std = per_element(spec, config.observation, 'observation')
        bias = per_element(spec, config.observation_bias, 'observation_bias')
        loss = per_element(spec, config.observation_loss, 'observation_loss')
        latency = per_element(spec, config.observation_latency_s, 'observation_latency_s')
        self.latency, dim = latency * spec.control_rate_hz, len(latency)
        sizes = [term.size for term in spec.observation]
        self.term = np.repeat(np.arange(len(sizes)), sizes)
        self.loss, self.num_terms = loss, len(sizes)
        if bias.any():
            memory.add('observation_bias', dim, draw=lambda rng: rng.normal(0.0, bias))
        if latency.any():
            is_angle = np.repeat([term.unit == 'rad' for term in spec.observation], sizes)
            self.is_angle = is_angle if (is_angle & (latency > 0)).any() else None
            self.quaternions = [
                slice(first, first + 4) for first, term in zip(np.cumsum([0, *sizes]),
                                                               spec.observation)
                if latency[first] and [field[-13:] for field in term.fields] == QUATERNION]
            memory.add('observation_history', int(self.latency.max()) + 2, dim)
        if loss.any():
            memory.add('shown', dim)
        self.has_white = bool(self.std.any())
        self.is_on = bool(self.has_white or bias.any() or latency.any() or loss.any())

    def __call__(self, obs: np.ndarray, rngs: list[np.random.Generator], rows: slice,
                 first: bool) -> np.ndarray:
        """Return observations, shape (rows, obs_dim).

        :param first: whether these are the first ones of an episode, with none before.
        """
        if not self.is_on:
            return obs
        past = {name: array[rows] for name, array in self.arrays.items()}
        if 'observation_history' in past:
            if first:
                past['observation_history'][:] = obs[:, None]
            obs = delayed(past['observation_history'], obs, self.latency, self.is_angle,
                          self.quaternions)
        if 'observation_bias' in past:
            obs = obs + past['observation_bias']
        if self.has_white:
            obs = obs + self.std * [rng.standard_normal(obs.shape[1]) for rng in rngs]
        if 'shown' in past:
            if not first:
                drawn = np.array([rng.random(self.num_terms) for rng in rngs])
                obs = np.where(drawn[:, self.term] < self.loss, past['shown'], obs)
            past['shown'][:] = obs
        return obs


def per_element(spec: PolicySpec, values: dict[str, float], key: str) -> np.ndarray:
    """Return the value of every observation element, 0 where its term has none, (obs_dim,).

    :param values: by the names of terms; ``key`` is where they stand in the configuration.
    :raises SpecError: if the spec lacks a term.
    """
    names = [term.name for term in spec.observation]
    for name in values:
        if name not in names:
            raise SpecError(f'noise.{key}.{name} is not an observation term of {spec.task}; '
                            f'its terms: {", ".join(names)}')
    return np.repeat([values.get(term.name, 0.0) for term in spec.observation],
                     [term.size for term in spec.observation])
