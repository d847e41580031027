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

"""mujoco_warp's own loop beside ours: the physics of the same worlds, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
import gc
import itertools

import torch
import warp
from warp._src import context

NUM_COMMANDS = 16
COMMANDS = ('ctrl', 'mocap_pos', 'mocap_quat')


def own_loop(worlds) -> Callable[[], None]:
    """Return a function that advances the physics of all worlds by one control period.

    As mujoco_warp's ``testspeed``: one step captured as a CUDA graph and launched again and again,
    but without waiting for each. It works on the worlds' own arrays, so that model, room for
    contacts and memory are the same; commands are what random actions would be where the worlds
    are now.

    :param worlds: of :func:`dpg_robot.sim.world.make_device_vector`.
    """
    physics, commands = worlds.physics, itertools.cycle(_random_commands(worlds))

    def period():
        for name, command in next(commands).items():
            physics.data[name].copy_(command)
        for _ in range(physics.sim_steps):
            physics.step_once()
    return period


def _random_commands(worlds):
    """Return what some random actions put into the state, by the names there."""
    shape, drawn = (worlds.num_envs, worlds.task.spec.action_dim), []
    for _ in range(NUM_COMMANDS):
        worlds.task.command(2 * torch.rand(shape, device=worlds.device) - 1)
        drawn.append({name: worlds.physics.data[name].clone() for name in COMMANDS
                      if name in worlds.physics.data})
    return drawn


def trim_graph_memory() -> None:
    """Give back what graphs of the present GPU used, which it keeps when they are gone.

    What they use is given back as well if they are not running, until they run again.
    """
    gc.collect()
    torch.cuda.synchronize()
    warp.init()
    context.runtime.core.wp_cuda_device_graph_mem_trim(torch.cuda.current_device())
