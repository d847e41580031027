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

"""Learner updates per second, beside Stable-Baselines3's SAC with the same networks and batch.

    .venv/bin/pip install -r requirements/bench.txt -c requirements/constraints.txt
    .venv/bin/python benchmarks/updates.py

Both update from the same number of random transitions of one task's shape. What our learner takes
from the new transitions that come in the meantime, in the task's training, is a part of our
updates. The learners take turns, round by round, so that a change in the machine's speed meets all
of them; each has the number of torch threads with which it is fastest here.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import sys
import time

import gymnasium
import numpy as np
import torch

from dpg_robot.experiment import commit, load_config, machine, versions
from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.learner import Learner
from dpg_robot.learn.off_policy import MIN_NEW
from dpg_robot.learn.replay import Batch, Replay
from dpg_robot.sim.world import make_world

RESULTS = Path(__file__).parent / 'results'
NUM_TRANSITIONS = 10_000
WARM_UP = 50


def our_updates(config, spec, trainer):
    """Return a function that takes a number of updates, and the new transitions of that time."""
    learner = Learner(config, spec.obs_dim, spec.action_dim)
    replay = Replay(NUM_TRANSITIONS, spec.obs_dim, spec.action_dim)
    obs = torch.randn(NUM_TRANSITIONS, spec.obs_dim)
    batch = Batch(obs, torch.rand(NUM_TRANSITIONS, spec.action_dim) * 2 - 1,
                  torch.randn(NUM_TRANSITIONS), obs + 0.1 * torch.randn_like(obs),
                  torch.zeros(NUM_TRANSITIONS),
                  torch.zeros(NUM_TRANSITIONS), torch.zeros(NUM_TRANSITIONS))
    replay.add(batch)
    learner.observe(batch)
    waiting = 0.0

    def update(count):
        nonlocal waiting
        for left in reversed(range(count)):  # SAC, too, logs once in so many
            waiting += 1 / trainer.updates_per_step
            if waiting >= MIN_NEW:
                learner.observe(Batch(*(column[:int(waiting)] for column in batch)))
                waiting %= 1
            learner.update(replay.sample(config.batch_size), report=left == 0)
    return update


def sac_updates(config, spec):
    """Return a function that takes a number of updates of SAC."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    class Shape(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (spec.action_dim,), np.float32)

    model = SAC('MlpPolicy', Shape(), buffer_size=NUM_TRANSITIONS, batch_size=config.batch_size,
                policy_kwargs={'net_arch': list(config.hidden)}, device='cpu')
    model.set_logger(configure(format_strings=[]))
    rng = np.random.default_rng(0)
    for _ in range(NUM_TRANSITIONS):
        obs = rng.standard_normal((1, spec.obs_dim)).astype(np.float32)
        model.replay_buffer.add(obs, obs + 0.1, rng.uniform(-1, 1, (1, spec.action_dim)),
                                rng.standard_normal(1), np.zeros(1), [{}])
    return lambda count: model.train(count, config.batch_size)


def seconds(update, count, threads):
    """Return the seconds of one update."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    update(count)
    return (time.perf_counter() - start) / count


def main():
    """Time all learners and write results/updates_TASK.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', nargs='?', default='half_cheetah')
    parser.add_argument('--estimators', nargs='+', default=list(ESTIMATORS))
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--updates', type=int, default=96, help='in one round')
    parser.add_argument('--output', type=Path)
    options = parser.parse_args()
    config = load_config(options.task)
    spec = make_world(config.world).policy_spec
    learners = {'sb3_sac': sac_updates(config.learner, spec)}
    for name in options.estimators:
        ours = load_config(options.task, [f'learner.estimator={name}'])
        learners[name] = our_updates(ours.learner, spec, ours.trainer)
    threads = {}
    for name, update in learners.items():
        update(WARM_UP)
        choices = range(1, (os.cpu_count() or 1) + 1)
        threads[name] = min(choices, key=lambda n: seconds(update, options.updates, n))
    times = {name: [] for name in learners}
    for _ in range(options.rounds):
        for name, update in learners.items():
            times[name].append(seconds(update, options.updates, threads[name]))
    peer = np.array(times['sb3_sac'])
    result = {
        'task': options.task, 'hidden': config.learner.hidden,
        'batch_size': config.learner.batch_size,
        'command': 'benchmarks/updates.py ' + ' '.join(sys.argv[1:]), 'versions': versions(),
        'machine': machine(), 'commit': commit(),
        'learners': {name: {
            'threads': threads[name], 'updates_per_second': 1 / float(np.median(values)),
            'times_sb3_sac': {
                'median': float(np.median(peer / values)),
                'quartiles': np.percentile(peer / values, (25, 75)).tolist()}}
            for name, values in times.items()}}
    path = options.output or RESULTS / f'updates_{options.task}.json'
    path.write_text(json.dumps(result, indent=1) + '\n')
    for name, row in result['learners'].items():
        print(f'{name:20} {row["updates_per_second"]:7.0f} updates/s, '
              f'{row["times_sb3_sac"]["median"]:.2f} times SAC, {row["threads"]} threads')
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
