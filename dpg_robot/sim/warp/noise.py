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

"""The noise of :mod:`dpg_robot.sim.signals` for worlds on a device: the same models, in torch.

One random generator serves all worlds, and what begins with an episode is drawn for all of them
and kept where one begins: nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.sim.signals import Gaussian, per_element, QUATERNION
from dpg_robot.sim.warp.physics import floats, put

if TYPE_CHECKING:
    from dpg_robot.sim.noise import NoiseConfig


class Draws:
    """Random numbers for all worlds; what is drawn has a row for each."""

    def __init__(self, num_envs: int, device: torch.device):
        """Begin with a seed that nobody knows."""
        self.num_envs = num_envs
        self.generator = torch.Generator(device)
        self.generator.seed()

    def normal(self, *shape: int) -> torch.Tensor:
        """Return standard normal numbers, shape (num_envs, *shape)."""
        return torch.randn(self.num_envs, *shape, generator=self.generator,
                           device=self.generator.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Return numbers from 0 to below 1, shape (num_envs, *shape)."""
        return torch.rand(self.num_envs, *shape, generator=self.generator,
                          device=self.generator.device)

    def within(self, lower: float, upper: float, *shape: int) -> torch.Tensor:
        """Return numbers between two ends, shape (num_envs, *shape)."""
        return lower + (upper - lower) * self.uniform(*shape)


class DeviceMemory:
    """What the noise remembers, by name; everything begins anew with an episode."""

    def __init__(self, num_envs: int, device: torch.device):
        """Remember nothing of so many worlds."""
        self.tensors: dict[str, torch.Tensor] = {}
        self._num_envs, self.device = num_envs, device
        self._draws: dict[str, Callable[[Draws], torch.Tensor]] = {}

    def add(self, name: str, *shape: int,
            draw: Callable[[Draws], torch.Tensor] | None = None) -> None:
        """Remember a tensor of each world; it begins with what ``draw`` gives, or with zeros."""
        self.tensors[name] = torch.zeros(self._num_envs, *shape, device=self.device)
        zero = torch.zeros((), device=self.device)
        self._draws[name] = draw or (lambda draws: zero)

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin episodes of some worlds, shape (num_envs,), bool."""
        for name, draw in self._draws.items():
            put(self.tensors[name], done, draw(draws))


class DeviceCommandNoise:
    """From commands to what the actuators carry out."""

    def __init__(self, config: NoiseConfig, spec: PolicySpec, memory: DeviceMemory):
        """Prepare for the commands of a contract."""
        dim, rate_hz, dt = spec.action_dim, spec.control_rate_hz, 1 / spec.control_rate_hz
        self.config, self.memory = config, memory.tensors
        self.additive = Gaussian(config.actuator, config.actuator_time_constant_s, dt)
        self.relative = Gaussian(
            config.actuator_relative, config.actuator_relative_time_constant_s, dt)
        self.latency, self.spread, self.jitter = (rate_hz * value for value in (
            config.command_latency_s, config.command_latency_spread_s, config.command_jitter_s))
        for name, noise in (('additive', self.additive), ('relative', self.relative)):
            if noise.keep:
                memory.add(name, dim, draw=lambda draws, std=noise.std: std * draws.normal(dim))
        if config.actuator_bias:
            memory.add('bias', dim, draw=lambda draws: config.actuator_bias * draws.normal(dim))
        if config.backlash:
            memory.add('play', dim)
        if config.command_loss:
            memory.add('held', dim)
        if self.spread:
            memory.add('spread', 1, draw=lambda draws: draws.within(0.0, self.spread, 1))
        if longest := self.latency + self.spread + self.jitter:
            memory.add('history', int(longest) + 2, dim)
            self.fixed_latency = torch.full((1, 1), self.latency, device=memory.device)

    def hold(self, done: torch.Tensor, command: torch.Tensor) -> None:
        """Begin episodes as if this had been commanded for long, shape (num_envs, dim)."""
        command = command.clamp(-1.0, 1.0)
        begins = {'held': command, 'history': command[:, None],
                  'play': dead_zone(command, self.config.dead_zone)}
        for name in begins.keys() & self.memory.keys():
            put(self.memory[name], done, begins[name])

    def __call__(self, command: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return what is carried out, within -1 and 1; shapes (num_envs, dim)."""
        config, memory = self.config, self.memory
        command = command.clamp(-1.0, 1.0)
        if config.command_loss:
            arrived = draws.uniform(1) >= config.command_loss
            command = memory['held'].copy_(torch.where(arrived, command, memory['held'])).clone()
        if 'history' in memory:
            latency = self.fixed_latency + memory.get('spread', 0.0)
            if self.jitter:
                latency = latency + self.jitter * draws.uniform(1)
            command = delayed(memory['history'], command, latency)
        if config.dead_zone:
            command = dead_zone(command, config.dead_zone)
        if config.backlash:
            half = config.backlash / 2
            command = memory['play'].copy_(torch.minimum(torch.maximum(
                memory['play'], command - half), command + half)).clone()
        return self._disturbed(command, draws).clamp(-1.0, 1.0)

    def _disturbed(self, command, draws):
        result, memory = command, self.memory
        if self.relative.std:
            result = result + command * _next(
                self.relative, memory.get('relative'), draws.normal(command.shape[1]))
        if 'bias' in memory:
            result = result + memory['bias']
        if self.additive.std:
            result = result + _next(
                self.additive, memory.get('additive'), draws.normal(command.shape[1]))
        return result


def _next(noise, last, xi):
    """Return the next values from standard normal draws; ``last``, if any, becomes them."""
    value = noise.add * xi
    return value if last is None else last.copy_(value + noise.keep * last).clone()


class DeviceObservationNoise:
    """From the true state to what is observed of it."""

    def __init__(self, config: NoiseConfig, spec: PolicySpec, memory: DeviceMemory):
        """Prepare for the terms of a contract.

        :raises SpecError: if the noise names a term that the spec lacks.
        """
        std, bias, loss, latency = (
            per_element(spec, getattr(config, key), key) for key in (
                'observation', 'observation_bias', 'observation_loss', 'observation_latency_s'))
        device, sizes = memory.device, [term.size for term in spec.observation]
        self.memory, dim, self.num_terms = memory.tensors, len(std), len(sizes)
        self.std = floats(std, device) if std.any() else None
        self.loss = floats(loss, device)
        self.term = torch.tensor(np.repeat(np.arange(len(sizes)), sizes), device=device)
        if bias.any():
            scale = floats(bias, device)
            memory.add('observation_bias', dim, draw=lambda draws: scale * draws.normal(dim))
        if latency.any():
            latency = latency * spec.control_rate_hz
            self.latency = floats(latency, device)[None]
            is_angle = np.repeat([term.unit == 'rad' for term in spec.observation], sizes)
            self.is_angle = torch.tensor(is_angle, device=device)
            self.quaternions = [
                slice(first, first + 4) for first, term in zip(np.cumsum([0, *sizes]).tolist(),
                                                               spec.observation)
                if latency[first] and [field[-13:] for field in term.fields] == QUATERNION]
            memory.add('observation_history', int(latency.max()) + 2, dim)
        if loss.any():
            memory.add('shown', dim)

    def __call__(self, obs: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return observations after a step, shapes (num_envs, obs_dim)."""
        memory = self.memory
        if 'observation_history' in memory:
            obs = delayed(memory['observation_history'], obs, self.latency, self.is_angle,
                          self.quaternions)
        obs = self._disturbed(obs, draws)
        if 'shown' in memory:
            lost = draws.uniform(self.num_terms)[:, self.term] < self.loss
            obs = memory['shown'].copy_(torch.where(lost, memory['shown'], obs)).clone()
        return obs

    def first(self, obs: torch.Tensor, done: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the first observations of episodes, of the worlds where one begins."""
        if 'observation_history' in self.memory:
            put(self.memory['observation_history'], done, obs[:, None])
        obs = self._disturbed(obs, draws)
        if 'shown' in self.memory:
            put(self.memory['shown'], done, obs)
        return obs

    def _disturbed(self, obs, draws):
        if 'observation_bias' in self.memory:
            obs = obs + self.memory['observation_bias']
        return obs if self.std is None else obs + self.std * draws.normal(obs.shape[1])


def dead_zone(command: torch.Tensor, width: float) -> torch.Tensor:
    """Return commands that do nothing up to a size of ``width``, and lose as much beyond."""
    return torch.sign(command) * (command.abs() - width).clamp(min=0.0)


def delayed(history: torch.Tensor, newest: torch.Tensor, latency: torch.Tensor,
            is_angle: torch.Tensor | None = None,
            quaternions: Sequence[slice] = ()) -> torch.Tensor:
    """Put the newest values into a delay line and return those of ``latency`` periods ago.

    It is :func:`dpg_robot.sim.signals.delayed`, in torch.

    :param history: newest first, shape (num_envs, periods, dim); changed in place.
    :param newest: shape (num_envs, dim).
    :param latency: 0 to periods - 2, broadcast to (num_envs, dim).
    :param is_angle: which elements are angles [rad], shape (dim,).
    :param quaternions: places of those, either sign of which is the same orientation.
    """
    history.copy_(torch.cat([newest[:, None], history[:, :-1]], 1))
    latency = latency.expand(newest.shape)
    # A latency that rounding has brought to the end of the line is the last value's.
    whole = latency.long().clamp(max=history.shape[1] - 2)
    fraction = latency - whole
    newer = history.gather(1, whole[:, None])[:, 0]
    older = history.gather(1, whole[:, None] + 1)[:, 0]
    if is_angle is not None:
        nearest = newer + torch.remainder(older - newer + math.pi, 2 * math.pi) - math.pi
        older = torch.where(is_angle, nearest, older)
    for places in quaternions:
        across = (newer[:, places] * older[:, places]).sum(1, keepdim=True) < 0
        older[:, places] = torch.where(across, -older[:, places], older[:, places])
    blend = (1 - fraction) * newer + fraction * older
    for places in quaternions:
        blend[:, places] /= torch.linalg.vector_norm(blend[:, places], dim=1, keepdim=True)
    return blend
