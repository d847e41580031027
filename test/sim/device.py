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

"""Worlds on Warp's CPU device, and the states of CPU worlds put into them."""

import dataclasses

import mujoco
import numpy as np
import torch

from dpg_robot.experiment import load_config
from dpg_robot.resources import share_path
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_device_vector, make_world, WorldConfig

ROBOTS = {'reach': 'six_axis_reach', 'track': 'six_axis_track'}
_ALL = mujoco.mjtState.mjSTATE_INTEGRATION


def config_of(task, **options):
    """Return the configuration of a world without noise."""
    config = WorldConfig(task)
    if task in ROBOTS:
        config = load_config(share_path('config', f'{ROBOTS[task]}.yaml')).world
    return dataclasses.replace(config, **{'noise': NoiseConfig(), **options})


def make_worlds(task, num_envs, **options):
    """Return worlds on the CPU device."""
    return make_device_vector(config_of(task, **options), num_envs, 'cpu')


def gather(task_name, num, seed=0, every=3, **options):
    """Step a CPU task with random actions; return states, actions and what came of them."""
    task = make_world(config_of(task_name, **options)).unwrapped
    rng = np.random.default_rng(seed)
    steps = []
    task.reset(seed=seed)
    while len(steps) < num * every:
        action = rng.uniform(-1, 1, task.action_space.shape)
        state = task.state
        obs, reward, terminated, truncated, info = task.step(action)
        steps.append((state, action, obs, reward, terminated, info.get('is_success', False)))
        if terminated or truncated:
            task.reset()
    return task, *map(list, zip(*steps[every - 1::every]))


def put_states(worlds, task, states):
    """Put states of a CPU task into the worlds, one each."""
    data, rows = mujoco.MjData(task.sim.model), []
    for state in states:
        mujoco.mj_setState(task.sim.model, data, state['physics'], _ALL)
        rows.append({name: np.copy(getattr(data, name)) for name in worlds.physics.data})
    for name, tensor in worlds.physics.data.items():
        tensor.copy_(torch.tensor(np.array([row[name] for row in rows])).reshape(tensor.shape))
    memory = {
        'goal': lambda state: state['goal'], 'sines': lambda state: state['goal'],
        'periods': lambda state: [state['steps']],
        'seen': lambda state: state['body_position'][1, :2]}
    worlds.physics.settle()
    for name, tensor in worlds.task.memory.items():
        if name in memory:
            tensor.copy_(torch.tensor(np.array([memory[name](state) for state in states])))
    if 'seen_gripper' in worlds.task.memory:
        seen = torch.cat(worlds.task.poses, 1) if 'body_position' not in states[0] else tensor_of(
            [np.append(state['body_position'][worlds.task.welded],
                       state['body_orientation'][worlds.task.welded]) for state in states])
        worlds.task.seen.copy_(seen)
    worlds.steps.copy_(torch.tensor([state['steps'] for state in states]))


def tensor_of(values):
    """Return numbers as worlds take them."""
    return torch.tensor(np.array(values), dtype=torch.float32)
