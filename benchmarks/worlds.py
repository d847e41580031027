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

"""Steps per second of many worlds, and what their noise costs.

    .venv/bin/python benchmarks/worlds.py

One environment, a vector in one process and vectors in several take turns, round by round, so
that a change in the machine's speed meets all of them. Noise is timed inside of steps, behind the
physics that empty the caches: by itself, in a loop, it takes a quarter less.
"""

from __future__ import annotations

import argparse
from functools import partial
import json
from pathlib import Path
import sys
import time

import numpy as np

from dpg_robot.contract.strict import load
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_vector, make_world, WorldConfig

RESULTS = Path(__file__).parent / 'results'
TASK = 'fetch_reach'
NOISES = {
    'actuator': {'actuator': 0.3},
    'everything': {
        'actuator': 0.2, 'actuator_time_constant_s': 0.1, 'actuator_relative': 0.1,
        'actuator_relative_time_constant_s': 0.1, 'actuator_bias': 0.05, 'dead_zone': 0.02,
        'backlash': 0.05, 'command_latency_s': 0.02, 'command_latency_spread_s': 0.02,
        'command_jitter_s': 0.02, 'command_loss': 0.05,
        'observation': {'end_effector_position': 0.005, 'goal_position': 0.01},
        'observation_bias': {'end_effector_position': 0.005},
        'observation_latency_s': {'end_effector_velocity': 0.03},
        'observation_loss': {'goal_position': 0.1},
        'pushes': {'robot0:gripper_link': {
            'rate_hz': 1.0, 'force_n': [1.0, 5.0], 'duration_s': 0.1}},
        'randomize': {'gravity_m_s2': [9.7, 9.9], 'scale': {
            'mass': [0.8, 1.2], 'friction': [0.8, 1.2], 'damping': [0.8, 1.2]}}}}


def world_config(noise):
    return WorldConfig(TASK, noise=load(NoiseConfig, NOISES[noise]))


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def step_single(world, actions):
    for action in actions:
        _, _, terminated, truncated, _ = world.step(action)
        if terminated or truncated:
            world.reset()


def step_vector(envs, actions):
    for action in actions:
        envs.step(action)


class Stopwatch:
    """The time that some methods take where they are called."""

    def __init__(self):
        self.seconds = 0.0

    def watch(self, thing, *names):
        for name in names:
            setattr(thing, name, self._watched(getattr(thing, name)))

    def _watched(self, method):
        def watched(*arguments, **keywords):
            start = time.perf_counter()
            result = method(*arguments, **keywords)
            self.seconds += time.perf_counter() - start
            return result
        return watched


def watch_noise(envs):
    """Return a stopwatch of all that is noise in the steps of a vector in this process."""
    watch = Stopwatch()
    watch.watch(envs.noise, 'begin', 'hold', 'act', 'observe')
    for world in envs.worlds:
        for part in world._physics.values():
            watch.watch(part, 'begin', *(['step'] if hasattr(part, 'step') else []))
    return watch


def measure_speed(num_envs, workers, rounds, steps):
    """Return steps per second, and how many times those of one environment."""
    config, rng = world_config('actuator'), np.random.default_rng(0)
    single = make_world(config)
    single.reset(seed=0)
    vectors = {count: make_vector(config, num_envs, count) for count in workers}
    actions = rng.uniform(-1, 1, (steps, num_envs, single.action_space.shape[0]))
    runs = {'single': (partial(step_single, single, actions.reshape(-1, actions.shape[-1])))}
    for count, envs in vectors.items():
        envs.reset(seed=0)
        runs[f'workers_{count}'] = partial(step_vector, envs, actions)
    seconds = alternate(runs, rounds)
    for envs in vectors.values():
        envs.close()
    return {name: {'steps_per_second': float(np.median(actions.shape[0] * num_envs / times)),
                   'times_single': spread(seconds['single'] / times)}
            for name, times in seconds.items()}


def measure_noise(noise, num_envs, rounds, steps):
    """Return the part of a step that is its noise, and its microseconds for each world."""
    envs = make_vector(world_config(noise), num_envs)
    envs.reset(seed=0)
    watch = watch_noise(envs)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *envs.action_space.shape))
    seconds = []
    for _ in range(rounds + 1):
        watch.seconds = 0.0
        whole = timed(step_vector, envs, actions)
        seconds.append((watch.seconds, whole))
    envs.close()
    noise, step = np.transpose(seconds[1:])  # the first does not count
    return {'part_of_a_step': spread(noise / step),
            'microseconds': float(1e6 * np.median(noise) / steps / num_envs)}


def alternate(runs, rounds):
    """Return the seconds of each in every round, after one that does not count."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def spread(ratios):
    return {'median': float(np.median(ratios)),
            'quartiles': np.percentile(ratios, (25, 75)).tolist()}


def main():
    """Measure and write results/worlds.json."""
    # Not above: processes of workers import this file, and need no torch.
    from dpg_robot.experiment import commit, machine, versions
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--envs', type=int, default=8)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--steps', type=int, default=100, help='of each world in one round')
    parser.add_argument('--output', type=Path, default=RESULTS / 'worlds.json')
    options = parser.parse_args()
    speed = measure_speed(options.envs, options.workers, options.rounds, options.steps)
    for name, row in speed.items():
        print(f'{name:12} {row["steps_per_second"]:7.0f} steps/s, '
              f'{row["times_single"]["median"]:.2f} times one environment', flush=True)
    noise = {f'{name}_of_{count}': measure_noise(name, count, options.rounds, options.steps)
             for name in NOISES for count in (1, options.envs)}
    for name, row in noise.items():
        print(f'noise {name:16} {row["microseconds"]:6.1f} us in each world, '
              f'{100 * row["part_of_a_step"]["median"]:.1f} % of a step')
    result = {
        'task': TASK, 'num_envs': options.envs, 'rounds': options.rounds, 'speed': speed,
        'noise': noise, 'command': 'benchmarks/worlds.py ' + ' '.join(sys.argv[1:]),
        'versions': versions(), 'machine': machine(), 'commit': commit()}
    options.output.write_text(json.dumps(result, indent=1) + '\n')
    print(f'wrote {options.output}')


if __name__ == '__main__':
    main()
