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
from typing import TYPE_CHECKING

import gymnasium
from gymnasium.vector import VectorEnv

from dpg_robot.contract.strict import bounded, dump, load, SpecError
from dpg_robot.sim.dead import DeadActuators
from dpg_robot.sim.noise import Noise, NoiseConfig, StochasticWorld
from dpg_robot.sim.rate_limit import RateLimitedWorld
from dpg_robot.sim.robot_config import RobotConfig
from dpg_robot.sim.tasks import TASKS
from dpg_robot.sim.vector import VectorWorld
from dpg_robot.sim.workers import WorkerVector

if TYPE_CHECKING:
    from dpg_robot.sim.warp.worlds import DeviceWorlds


@dataclass(frozen=True)
class WorldConfig:
    """Which task, which reward, and how noisy.

    :param task: its name; ``dpg-robot tasks`` lists them all.
    :param reward: 'dense'; tasks with a goal, and adroit_door, have 'sparse', too.
    :param noise: what is noisy about it.
    :param dead_actuators: so many actuators that move nothing are appended to the task's own.
    :param robot: the robot of a task that needs one: ``reach`` or ``track``.
    """

    task: str = bounded(choices=TASKS)
    reward: str = bounded('dense', choices=('dense', 'sparse'))
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    dead_actuators: int = bounded(0, minimum=0, maximum=64)
    robot: RobotConfig | None = None

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        if not TASKS[self.task].has_sparse and self.reward != 'dense':
            raise SpecError(f'{name}.reward must be dense for {self.task}, got {self.reward}')
        needs_robot = TASKS[self.task].needs_robot
        if needs_robot and not self.robot:
            raise SpecError(f'{name}.robot is required for the task {self.task}, and missing')
        if self.robot and not needs_robot:
            raise SpecError(f'{name}.robot must be left out for {self.task}, a task with a robot '
                            f'of its own, got {self.robot.model}')


def make_world(config: WorldConfig, render_mode: str | None = None) -> StochasticWorld:
    """Build one world: a gymnasium environment with physical observations.

    :param render_mode: None or 'rgb_array'.
    :raises SpecError: if a setting is impossible, the task has no such reward, or lacks what the
        noise names.
    """
    config = _checked(config)
    return _make_stochastic(_make_task(config, render_mode), config)


def make_vector(config: WorldConfig, num_envs: int, workers: int = 1) -> VectorEnv:
    """Build many worlds behind gymnasium's vector interface.

    An episode that ends is reset in the same step; its true last observation and info are in
    ``info['final_obs']`` and ``info['final_info']``. All worlds' ``state`` can be read with
    ``get_attr('state')`` and restored with ``set_attr('state', states)``. World i is the same, to
    the bit, whatever the number of worlds and workers.

    :param workers: processes that share the worlds, this one among them. A program with more than
        this one must guard its entry with ``if __name__ == '__main__'``.
    :raises SpecError: as :func:`make_world`, or if there are not so many worlds.
    """
    if not 1 <= workers <= num_envs:
        raise SpecError(f'workers must be 1 to num_envs ({num_envs}), got {workers}')
    config = _checked(config)
    if workers == 1:
        return _make_chunk(config, num_envs)
    return WorkerVector(_make_chunk, config, num_envs, workers)


def make_device_vector(config: WorldConfig, num_envs: int,
                       device: str = 'cuda') -> DeviceWorlds:
    """Build many worlds on one device, with MuJoCo Warp; all they take and give is on it.

    :param device: as torch calls it: ``cuda``, ``cuda:1`` or ``cpu``.
    :raises SpecError: as :func:`make_world`, or if Warp or the device is missing, or cannot
        simulate this task, this noise, or so many worlds.
    """
    try:
        # Only who asks for a device needs these, and they take seconds to load.
        from dpg_robot.sim.warp.worlds import build
    except ImportError as error:
        raise SpecError('mujoco-warp, warp-lang and torch must be installed for worlds on a '
                        f'device, got: {error}') from error
    return build(make_world(config), num_envs, device)


def _checked(config):
    """Return a configuration by the rules of task files, wherever it was written."""
    return load(WorldConfig, dump(config), 'world')


def _make_chunk(config, num_envs):
    tasks = [_make_task(config) for _ in range(num_envs)]
    noise = Noise(config.noise, tasks[0].policy_spec, num_envs)
    return VectorWorld([_make_stochastic(task, config, noise, row)
                        for row, task in enumerate(tasks)], noise)


def _make_stochastic(task, config, *noise_and_row) -> StochasticWorld:
    is_limited = config.robot or any(
        limit is not None for term in task.get_wrapper_attr('policy_spec').action
        for limit in (*term.rate_limit, *term.acceleration_limit))
    kind = RateLimitedWorld if is_limited else StochasticWorld
    return kind(task, config.noise, *noise_and_row)


def _make_task(config, render_mode=None) -> gymnasium.Env:
    entry = TASKS[config.task]
    choice = {'reward': config.reward} if entry.has_sparse else {}
    if entry.needs_robot:
        choice['robot'] = config.robot
    task = entry.make(render_mode=render_mode, **choice)
    return DeadActuators(task, config.dead_actuators) if config.dead_actuators else task
