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

"""Many stochastic worlds in one process, the noise of all in one go."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
import numpy as np

from dpg_robot.sim.noise import Noise, StochasticWorld


class VectorWorld(VectorEnv):
    """Worlds of one task behind gymnasium's vector interface; they are stepped in turn.

    An episode that ends is reset in the same step; its true last observation and info are in
    ``info['final_obs']`` and ``info['final_info']``.
    """

    def __init__(self, worlds: list[StochasticWorld], noise: Noise):
        """Gather worlds.

        :param noise: that of the worlds, world i being row i of it.
        """
        self.worlds, self.noise = worlds, noise
        describe(self, len(worlds), worlds[0].observation_space, worlds[0].action_space)
        self.metadata = {**worlds[0].metadata, **self.metadata}
        self.render_mode = worlds[0].render_mode

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict | None = None):
        """Start an episode in every world.

        :param seed: of each world, or of the first, after which they count up.
        :return: observations, shape (num_envs, obs_dim), and infos.
        """
        starts = [world.reset(seed=seed, options=options) for world, seed in zip(
            self.worlds, each_seed(seed, self.num_envs))]
        infos = {}
        for i, (_, info) in enumerate(starts):
            infos = self._add_info(infos, info, i)
        return np.array([obs for obs, _ in starts]), infos

    def step(self, actions: np.ndarray):
        """Advance every world by one control period.

        :param actions: normalised, shape (num_envs, action_dim).
        :return: observations, rewards, terminations, truncations, infos.
        """
        executed = self.noise.act(np.array(
            [world.commanded(action) for world, action in zip(self.worlds, actions, strict=True)]))
        obs, reward, terminated, truncated, info = zip(
            *(world.carry_out(action) for world, action in zip(self.worlds, executed)))
        obs = self.noise.observe(np.array(obs))
        terminated, truncated, infos = np.array(terminated), np.array(truncated), {}
        for i, world in enumerate(self.worlds):
            begun = info[i]
            if terminated[i] or truncated[i]:
                final = {'final_obs': obs[i].copy(), 'final_info': info[i]}
                infos = self._add_info(infos, final, i)
                obs[i], begun = world.reset()
            infos = self._add_info(infos, begun, i)
        return obs, np.array(reward, float), terminated, truncated, infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of every world, or what it returns if it is a method."""
        values = [world.get_wrapper_attr(name) for world in self.worlds]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in values)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every world."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every world: to one value each, or all to the same."""
        for world, value in zip(self.worlds, each_value(values, self.num_envs)):
            world.set_wrapper_attr(name, value)

    def render(self) -> tuple[Any, ...]:
        """Return an image of every world."""
        return self.call('render')

    def close_extras(self, **kwargs: Any) -> None:
        """Release the worlds."""
        for world in self.worlds:
            world.close()


def describe(envs: VectorEnv, num_envs: int, obs_space, action_space) -> None:
    """Fill in what gymnasium wants to know of every vector."""
    envs.num_envs = num_envs
    envs.single_observation_space, envs.single_action_space = obs_space, action_space
    envs.observation_space = batch_space(obs_space, num_envs)
    envs.action_space = batch_space(action_space, num_envs)
    envs.metadata = {'autoreset_mode': AutoresetMode.SAME_STEP}


def each_seed(seed: int | list[int | None] | None, num_envs: int) -> list[int | None]:
    """Return the seed of each world."""
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(num_envs)]
    return [None] * num_envs if seed is None else _of_each(list(seed), num_envs)


def each_value(values: Any, num_envs: int) -> list[Any]:
    """Return the value for each world, from a list of them or from one for all."""
    if isinstance(values, (list, tuple)):
        return _of_each(list(values), num_envs)
    return [values] * num_envs


def _of_each(values, num_envs):
    if len(values) != num_envs:
        raise ValueError(f'there must be one value for each of {num_envs} worlds, '
                         f'got {len(values)}')
    return values
