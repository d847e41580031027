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

For one world, arrays are so small that a step costs as much as it has calls of numpy: about
0.2 us for arrays of one shape, twice to four times that with a number of Python's or where shapes
differ. So constants are arrays, of the shape that they meet in one world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
import math
from typing import Any, TYPE_CHECKING

import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

if TYPE_CHECKING:
    from dpg_robot.sim.noise import NoiseConfig

ALL = slice(None)
LOWEST, HIGHEST = np.array(-1.0), np.array(1.0)
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


def delayed(history: np.ndarray, newest: np.ndarray, latency: np.ndarray | float,
            is_angle: np.ndarray | None = None, quaternions: Sequence[slice] = ()) -> np.ndarray:
    """Put the newest values into a delay line and return those of ``latency`` periods ago.

    :param latency: 0 to periods - 2, broadcast to (worlds, dim).
    :return: as :func:`between`, which also has the other parameters.
    """
    return between(history, newest, *neighbours(latency, history.shape), is_angle, quaternions)


def neighbours(latency: np.ndarray | float, shape: tuple[int, int, int]):
    """Return where in a delay line of this shape is what comes next after values so old.

    :return: its places, shape (worlds, dim), and the part of a period from there to the values.
    """
    whole = np.floor(latency)
    return (whole * shape[2] + _newest_places(shape)).astype(int), latency - whole


@cache
def _newest_places(shape):
    worlds, periods, dim = shape
    return np.arange(dim) + np.arange(float(worlds))[:, None] * periods * dim


def between(history: np.ndarray, newest: np.ndarray, at: np.ndarray, fraction: np.ndarray,
            is_angle: np.ndarray | None = None, quaternions: Sequence[slice] = ()) -> np.ndarray:
    """Put the newest values into a delay line and return some between older ones.

    Fractions of a period blend two neighbours. For a zero-order hold that is its mean over the
    coming period; for samples of a signal it is their linear interpolation.

    :param history: newest first, shape (worlds, periods, dim).
    :param newest: shape (worlds, dim).
    :param at: places of the newer ones, and ``fraction``: see :func:`neighbours`.
    :param is_angle: which elements are angles [rad], shape (dim,): between two of them lies the
        shorter arc.
    :param quaternions: places of those, either sign of which is the same orientation.
    """
    history[:, 1:] = history[:, :-1]
    history[:, 0] = newest
    values = history.reshape(-1)
    newer, older = values.take(at), values[history.shape[2]:].take(at)
    if is_angle is not None:
        nearest = newer + (older - newer + math.pi) % (2 * math.pi) - math.pi
        older = np.where(is_angle, nearest, older)
    for places in quaternions:
        across = (newer[:, places] * older[:, places]).sum(1) < 0
        older[across, places] *= -1
    older -= newer
    older *= fraction
    older += newer
    for places in quaternions:
        older[:, places] /= np.linalg.norm(older[:, places], axis=1, keepdims=True)
    return older


def clip(value: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float,
         out: np.ndarray | None = None) -> np.ndarray:
    """Return values between two ends; for small arrays, several times as fast as numpy's."""
    return np.minimum(np.maximum(value, lower), upper, out=out)


def dead_zone(command: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Return commands that do nothing up to a size of ``width``, and lose as much beyond."""
    return command - clip(command, -width, width)


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

    def of(self, rows: slice) -> dict[str, np.ndarray]:
        """Return what some worlds remember, by name; to be changed in place."""
        if rows is ALL:
            return self.arrays
        return {name: array[rows] for name, array in self.arrays.items()}


class CommandNoise:
    """From commands to what the actuators carry out."""

    def __init__(self, config: NoiseConfig, rate_hz: float, dim: int, memory: Memory):
        """Prepare for commands of size ``dim`` at a control rate [Hz]."""
        self.config, self.memory = config, memory
        additive = Gaussian(config.actuator, config.actuator_time_constant_s, 1 / rate_hz)
        relative = Gaussian(
            config.actuator_relative, config.actuator_relative_time_constant_s, 1 / rate_hz)
        self.has_additive, self.has_relative = additive.std > 0, relative.std > 0
        gaussians = [noise for noise in (additive, relative) if noise.std]
        std, self.keep, self.add = (
            np.array([[getattr(noise, name)] * dim for noise in gaussians]).reshape(1, -1, dim)
            for name in ('std', 'keep', 'add'))
        self.normals = np.zeros((memory.num_worlds, len(gaussians), dim))
        self.uniforms = np.zeros((memory.num_worlds, 2))
        self.loss, self.jitter, self.half_play = map(np.array, (
            config.command_loss, config.command_jitter_s * rate_hz, config.backlash / 2))
        self.dead_zone = np.full((1, dim), config.dead_zone) if config.dead_zone else None
        if self.keep.any():
            memory.add('gaussian', len(gaussians), dim, draw=lambda rng: rng.normal(0.0, std[0]))
        if config.actuator_bias:
            memory.add('bias', dim, draw=lambda rng: rng.normal(0.0, config.actuator_bias, dim))
        if config.backlash:
            memory.add('play', dim)
        if config.command_loss:
            memory.add('held', dim)
        fixed, spread, jitter = (rate_hz * value for value in (
            config.command_latency_s, config.command_latency_spread_s, config.command_jitter_s))
        if longest := fixed + spread + jitter:
            memory.add('latency', dim, draw=lambda rng: fixed + rng.uniform(0.0, spread))
            memory.add('history', int(longest) + 2, dim)

    def hold(self, row: int, command: np.ndarray) -> None:
        """Begin an episode of one world as if this had been commanded for long, (dim,)."""
        command = clip(command, -1.0, 1.0)
        begins = {'held': command, 'history': command,
                  'play': dead_zone(command, self.config.dead_zone)}
        for name in begins.keys() & self.memory.arrays.keys():
            self.memory.arrays[name][row] = begins[name]

    def __call__(self, command: np.ndarray, rngs: list[np.random.Generator],
                 rows: slice) -> np.ndarray:
        """Return what is carried out, within -1 and 1; shapes (rows, dim)."""
        past, uniforms = self.memory.of(rows), self.uniforms[rows]
        if self.loss or self.jitter:
            _draw_uniforms(rngs, uniforms)
        command = clip(command, LOWEST, HIGHEST)  # which also makes it one of doubles
        if self.loss:
            np.copyto(past['held'], command, where=uniforms[:, :1] >= self.loss)
            command = past['held']
        if 'history' in past:
            latency = past['latency']
            if self.jitter:
                latency = latency + self.jitter * uniforms[:, 1:]
            command = delayed(past['history'], command, latency)
        if self.dead_zone is not None:
            command = dead_zone(command, self.dead_zone)
        if self.half_play:
            play, half = past['play'], self.half_play
            command = clip(play, command - half, command + half, out=play)
        return clip(self._disturbed(command, past, rngs, rows), LOWEST, HIGHEST)

    def _disturbed(self, command, past, rngs, rows):
        noise = self._gaussians(past, rngs, rows)
        result = command
        if self.has_relative:
            result = result + command * noise[:, -1]
        if 'bias' in past:
            result = result + past['bias']
        if self.has_additive:
            result = result + noise[:, 0]
        return result

    def _gaussians(self, past, rngs, rows):
        xi = self.normals[rows]
        _draw_normals(rngs, xi)
        xi *= self.add
        if 'gaussian' not in past:
            return xi
        last = past['gaussian']
        last *= self.keep
        last += xi
        return last


class ObservationNoise:
    """From the true state to what is observed of it."""

    def __init__(self, config: NoiseConfig, spec: PolicySpec, memory: Memory):
        """Prepare for the terms of a contract.

        :raises SpecError: if the noise names a term that the spec lacks.
        """
        self.memory = memory
        std, bias, self.loss, latency = (
            per_element(spec, getattr(config, key), key)[None] for key in (
                'observation', 'observation_bias', 'observation_loss', 'observation_latency_s'))
        sizes, dim, worlds = [term.size for term in spec.observation], std.size, memory.num_worlds
        self.std, self.term = std, np.repeat(np.arange(len(sizes)), sizes)
        self.normals, self.uniforms = np.zeros((worlds, dim)), np.zeros((worlds, len(sizes)))
        if bias.any():
            memory.add('observation_bias', dim, draw=lambda rng: rng.normal(0.0, bias[0]))
        if latency.any():
            is_angle = np.repeat([term.unit == 'rad' for term in spec.observation], sizes)
            self.is_angle = is_angle if (is_angle & (latency[0] > 0)).any() else None
            self.quaternions = [
                slice(first, first + 4) for first, term in zip(np.cumsum([0, *sizes]),
                                                               spec.observation)
                if latency[0, first] and [field[-13:] for field in term.fields] == QUATERNION]
            periods = latency * spec.control_rate_hz
            memory.add('observation_history', int(periods.max()) + 2, dim)
            self.at, self.fraction = neighbours(
                periods, memory.arrays['observation_history'].shape)
        if self.loss.any():
            memory.add('shown', dim)
        self.has_white = bool(std.any())
        self.is_on = any(values.any() for values in (std, bias, latency, self.loss))

    def __call__(self, obs: np.ndarray, rngs: list[np.random.Generator], rows: slice,
                 first: bool) -> np.ndarray:
        """Return observations, shape (rows, obs_dim).

        :param first: whether these are the first ones of an episode, with none before.
        """
        if not self.is_on:
            return obs
        past = self.memory.of(rows)
        if 'observation_history' in past:
            if first:
                past['observation_history'][:] = obs[:, None]
            obs = between(past['observation_history'], obs, self.at[:len(obs)], self.fraction,
                          self.is_angle, self.quaternions)
        if 'observation_bias' in past:
            obs = obs + past['observation_bias']
        if self.has_white:
            noise = self.normals[rows]
            _draw_normals(rngs, noise)
            noise *= self.std
            obs = obs + noise
        if 'shown' in past:
            obs = self._shown(obs, past['shown'], rngs, rows, first)
        return obs

    def _shown(self, obs, shown, rngs, rows, first):
        comes = True
        if not first:
            uniforms = self.uniforms[rows]
            _draw_uniforms(rngs, uniforms)
            comes = uniforms.take(self.term, axis=1) >= self.loss
        np.copyto(shown, obs, where=comes)
        return shown.copy()


# Into arrays that are there already, whose first axis is that of the generators.
def _draw_normals(rngs, values):
    for rng, own in zip(rngs, values):
        rng.standard_normal(out=own)


def _draw_uniforms(rngs, values):
    for rng, own in zip(rngs, values):
        rng.random(out=own)


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
