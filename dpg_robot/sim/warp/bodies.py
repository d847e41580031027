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

"""What the world does to bodies on a device: pushes, and models that differ each episode.

They are those of :mod:`dpg_robot.sim.disturbances`, and take its configuration.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import mujoco
import numpy as np
import torch

from dpg_robot.sim.disturbances import PushConfig, RandomizeConfig, RandomModel
from dpg_robot.sim.warp.noise import DeviceMemory, Draws
from dpg_robot.sim.warp.physics import floats, Physics, put

# What follows from the numbers that are drawn, besides these numbers themselves.
FIELDS = (
    'body_mass', 'body_inertia', 'body_subtreemass', 'body_invweight0', 'body_gravcomp',
    'geom_friction', 'dof_damping', 'dof_invweight0', 'tendon_invweight0', 'actuator_gainprm',
    'actuator_biasprm', 'gravity', 'meaninertia')
# So many models are drawn at a seed; each episode takes one of them.
POOL = 4096
# A period in which more pushes begin than are looked at is rarer than this.
NEVER = 1e-9


class DevicePushes:
    """The random forces on some bodies of all worlds.

    ``memory`` is that of :class:`dpg_robot.sim.disturbances.Pushes`: for each body the time to its
    next push and what is left of the present one [s], and the present force [N]; shape
    (num_envs, bodies, 5).
    """

    def __init__(self, model: mujoco.MjModel, config: dict[str, PushConfig], control_dt: float,
                 physics: Physics, memory: DeviceMemory):
        """Find the bodies, which the model must have."""
        pushes, device = list(config.values()), physics.device
        self._dt, self._forces = control_dt, physics.data['xfrc_applied']
        self._bodies = torch.tensor([model.body(name).id for name in config], device=device)
        self._mean_wait = floats([1 / push.rate_hz for push in pushes], device)
        self._duration = floats([push.duration_s for push in pushes], device)
        self._force = floats([push.force_n for push in pushes], device)
        self._axes = floats([[axis in push.axes for axis in 'xyz'] for push in pushes], device)
        self._most = _most_beginnings(control_dt * max(push.rate_hz for push in pushes))
        memory.add('pushes', len(pushes), 5, draw=self._first)
        self.memory = memory.tensors['pushes']

    def _first(self, draws):
        return torch.cat([self._wait(draws)[..., None],
                          torch.zeros(draws.num_envs, len(self._duration), 4,
                                      device=self._duration.device)], 2)

    def _wait(self, draws):
        return -self._mean_wait * torch.log1p(-draws.uniform(len(self._mean_wait)))

    def step(self, draws: Draws) -> None:
        """Apply the forces of the coming control period, each averaged over it."""
        wait, left, force = self.memory[..., 0], self.memory[..., 1], self.memory[..., 2:]
        rest, impulse = torch.full_like(wait, self._dt), torch.zeros_like(force)
        for _ in range(self._most):
            begins = wait < rest  # a push begins in this period
            spent = torch.minimum(wait, left)[..., None] * force
            impulse = impulse + torch.where(begins[..., None], spent, 0.0)
            rest = torch.where(begins, rest - wait, rest)
            wait = torch.where(begins, self._wait(draws), wait)
            left = torch.where(begins, self._duration, left)
            force = torch.where(begins[..., None], self._draw_force(draws), force)
        impulse = impulse + torch.minimum(rest, left)[..., None] * force
        self.memory.copy_(torch.cat([
            (wait - rest).clamp(min=0.0)[..., None], (left - rest).clamp(min=0.0)[..., None],
            force], 2))
        self._forces[:, self._bodies, :3] = impulse / self._dt

    def _draw_force(self, draws):
        direction = draws.normal(len(self._bodies), 3) * self._axes
        lower, upper = self._force.unbind(1)
        size = lower + (upper - lower) * draws.uniform(len(self._bodies))
        length = torch.linalg.vector_norm(direction, dim=2, keepdim=True)
        return size[..., None] * direction / length


def _most_beginnings(mean):
    """Return how many events of a Poisson process a period has at most, but for ``NEVER``."""
    count, part = 0, math.exp(-mean)
    total = part
    while 1 - total > NEVER:
        count += 1
        part *= mean / count
        total += part
    return max(count, 1)


class ModelPool:
    """Models that were drawn as the CPU's are, of which each episode of each world takes one.

    MuJoCo itself computes on the CPU, at a seed, what follows from the numbers of each. An episode
    only copies; on the device the same would take longer than a step of the physics.

    :ivar fields: numbers of the pool's models by name, shape (POOL, ...), on the device.
    """

    def __init__(self, model: mujoco.MjModel, task: str, config: RandomizeConfig,
                 device: torch.device):
        """Find the parts, and draw a first pool.

        :raises SpecError: if there is no such part.
        """
        self._model, self._device = copy.copy(model), device
        given = {name: np.copy(_field(model, name)) for name in FIELDS}
        self._random = RandomModel(SimpleNamespace(model=self._model), task, config)
        drawn = self._draw(np.random.default_rng())
        # A range may be one value: what differs from the model counts, not what varies.
        self.fields = {name: floats(values, device) for name, values in drawn.items()
                       if not np.allclose(values, given[name], rtol=1e-6, atol=0)}

    def _draw(self, rng):
        drawn = {name: [] for name in FIELDS}
        for _ in range(POOL):
            self._random.begin(rng)
            for name, values in drawn.items():
                values.append(np.copy(_field(self._model, name)))
        return {name: np.array(values) for name, values in drawn.items()}

    def seed(self, seed: int) -> None:
        """Draw the pool anew, the same for the same seed."""
        drawn = self._draw(np.random.default_rng([seed, 1]))
        for name, tensor in self.fields.items():
            tensor.copy_(floats(drawn[name], self._device))

    def begin(self, done: torch.Tensor, physics: Physics, draws: Draws) -> None:
        """Take other models where episodes begin, shape (num_envs,), bool."""
        chosen = (draws.uniform() * POOL).long().clamp(max=POOL - 1)
        for name, tensor in self.fields.items():
            put(physics.model[name], done, tensor[chosen])


def _field(model, name):
    return getattr({'gravity': model.opt, 'meaninertia': model.stat}.get(name, model), name)
