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

"""Make a stochastic world, or many, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dpg_robot.contract.strict import bounded
from dpg_robot.sim.fetch import FetchReach
from dpg_robot.sim.noise import NoiseConfig, StochasticWorld

TASKS = {'fetch_reach': FetchReach}


@dataclass(frozen=True)
class WorldConfig:
    """Which task, which reward, and how noisy."""

    task: str = bounded(choices=tuple(TASKS))
    reward: str = bounded('dense', choices=('dense', 'sparse'))
    noise: NoiseConfig = field(default_factory=NoiseConfig)


def make_world(config: WorldConfig, render_mode: str | None = None) -> StochasticWorld:
    """Build one world: a gymnasium environment with physical observations.

    :param render_mode: None or 'rgb_array'.
    :raises SpecError: if the noise names a term that the task lacks.
    """
    task = TASKS[config.task](reward=config.reward, render_mode=render_mode)
    return StochasticWorld(task, config.noise)


def make_vector(config: WorldConfig, num_envs: int, processes: bool = False) -> VectorEnv:
    """Build many worlds behind gymnasium's vector interface.

    An episode that ends is reset in the same step; its true last observation and info are in
    ``info['final_obs']`` and ``info['final_info']``. All worlds' ``state`` can be read with
    ``get_attr('state')`` and restored with ``set_attr('state', states)``.

    :param processes: step each world in its own process.
    """
    makers = [lambda: make_world(config)] * num_envs
    kind = AsyncVectorEnv if processes else SyncVectorEnv
    return kind(makers, autoreset_mode=AutoresetMode.SAME_STEP)
