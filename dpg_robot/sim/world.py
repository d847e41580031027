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

from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.sim.dead import DeadActuators
from dpg_robot.sim.noise import NoiseConfig, StochasticWorld
from dpg_robot.sim.tasks import TASKS


@dataclass(frozen=True)
class WorldConfig:
    """Which task, which reward, and how noisy.

    :param reward: 'dense'; a task with a goal may have 'sparse', too.
    :param dead_actuators: so many actuators that move nothing are appended to the task's own.
    """

    task: str = bounded(choices=tuple(TASKS))
    reward: str = bounded('dense', choices=('dense', 'sparse'))
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    dead_actuators: int = bounded(0, minimum=0, maximum=64)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        if not TASKS[self.task].has_sparse and self.reward != 'dense':
            raise SpecError(f'{name}.reward must be dense for {self.task}, got {self.reward}')


def make_world(config: WorldConfig, render_mode: str | None = None) -> StochasticWorld:
    """Build one world: a gymnasium environment with physical observations.

    :param render_mode: None or 'rgb_array'.
    :raises SpecError: if the task has no such reward, or lacks a term that the noise names.
    """
    config.check('world')
    entry = TASKS[config.task]
    choice = {'reward': config.reward} if entry.has_sparse else {}
    task = entry.make(render_mode=render_mode, **choice)
    if config.dead_actuators:
        task = DeadActuators(task, config.dead_actuators)
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
