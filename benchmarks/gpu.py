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

"""What training on a GPU gives, all in one go of under ten minutes; figures to results/gpu.json.

    .venv/bin/python benchmarks/gpu.py
    .venv/bin/python benchmarks/gpu.py --device warp_cpu --quick --output /tmp/gpu.json

The second shows the way without a GPU, on toy sizes. In this order, each written when it is done:

- ``waiting``: rounds of both algorithms in which torch makes an error of every wait of the host,
  and what its profiler counted in them (on a CPU some kernels read values themselves);
- ``throughput``: as ``dpg-robot bench throughput``, beside mujoco_warp's own loop;
- ``fetch_reach``: seconds until 95 % of evaluated episodes succeed;
- ``hand_reach``: learning curves of four on-policy estimators, with the same steps for each.

The first step of a task compiles its kernels, for up to a minute: warm_up_s tells.
"""

from __future__ import annotations

import argparse
from collections import Counter
import json
from pathlib import Path
import sys
import tempfile
import time

import torch

from dpg_robot.bench.throughput import (
    bench_throughput,
    machine,
    rate,
    TASKS,
    ThroughputBench,
    wait_for,
)
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import load_config, open_trainer, versions
from dpg_robot.learn.device import NUM_WARM_UP

RESULTS = Path(__file__).parent / 'results'
ESTIMATORS = ('denoising', 'doubly_robust', 'critic', 'reinforce')
SIZES = (1024, 4096, 16384, 32768)
WANTED_SUCCESS = 0.95
FIRST_LOOK = 2 * (NUM_WARM_UP + 2)
# What the host waits in, and what it would read from the device.
WAITS = ('Synchronize', 'Memcpy DtoH', 'cudaMemcpy', 'aten::item', 'aten::_local_scalar_dense',
         'aten::nonzero', 'cudaGraphLaunch')
TINY = ('learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
        'learner.batch_size=16', 'on_policy.hidden=[16]', 'on_policy.denoiser_hidden=[16]',
        'on_policy.horizon=4', 'on_policy.minibatches=2', 'trainer.warmup_steps=4',
        'trainer.updates_per_step=0.25', 'trainer.log_every_steps=16',
        'trainer.eval_every_steps=32', 'trainer.eval_episodes=1')


class Gpu:
    """The sections, with the time that is left for them."""

    def __init__(self, device, quick, minutes):
        """Begin to count the time."""
        self.device, self.quick, self.ends = device, quick, time.monotonic() + 60 * minutes

    def config(self, task, *changes):
        """Return a task's settings; of a quick run those of a toy."""
        toy = (*TINY, 'trainer.num_worlds=4') if self.quick else ()
        return load_config('reacher' if self.quick else f'{task}_gpu',
                           [*toy, f'trainer.device={self.device}', *changes])

    def left(self, share=1.0):
        """Return a share of the seconds that are left."""
        return share * max(0.0, self.ends - time.monotonic())

    def waiting(self):
        """Run rounds in which the host must not wait for the device."""
        result = {}
        for algorithm, task in (('off_policy', 'fetch_reach'), ('on_policy', 'half_cheetah')):
            config = self.config(task, f'trainer.algorithm={algorithm}')
            with opened(config) as trainer:
                started = time.monotonic()
                warm_up(trainer)
                result[algorithm] = {'warm_up_s': time.monotonic() - started, **watched(trainer)}
        return result

    def throughput(self):
        """Measure steps per second of every task and number of worlds."""
        tasks = ('reacher',) if self.quick else tuple(TASKS[self.device])
        sizes = (4,) if self.quick else SIZES
        bench = ThroughputBench(self.device, tasks, sizes, (1,), 0.05 if self.quick else 0.5,
                                TINY if self.quick else ())
        result = bench_throughput(bench, tell)
        for row in result['rows']:
            if 'with_training' in row:
                row['training_costs'] = 1 - row['with_training'] / row['steps_per_second']
        return result

    def fetch_reach(self):
        """Train until nearly all episodes succeed, and tell how long that took."""
        config = self.config('fetch_reach', *(['trainer.env_steps=32'] if self.quick else []))
        curve = train(config, self.left(0.4), lambda p: p.eval_success >= WANTED_SUCCESS)
        reached = [point for point in curve['points']
                   if (point['success'] or 0.0) >= WANTED_SUCCESS]
        return curve | {'wanted_success': WANTED_SUCCESS,
                        'seconds': reached[0]['seconds'] if reached else None,
                        'env_steps': reached[0]['env_steps'] if reached else None}

    def hand_reach(self):
        """Train with each estimator for the same number of steps, as many as there is time for."""
        result = {}
        for i, name in enumerate(ESTIMATORS):
            changes = ['trainer.algorithm=on_policy', f'on_policy.estimator={name}']
            if self.quick:
                changes.append('trainer.env_steps=32')
            elif result:  # as many as the first
                changes.append(f'trainer.env_steps={result[ESTIMATORS[0]]["env_steps"]}')
            share = 0.9 / (len(ESTIMATORS) - i)
            result[name] = train(self.config('hand_reach', *changes), self.left(share))
        return result


class opened:
    """Open a training in a folder of its own, and clean up behind it."""

    def __init__(self, config):
        """Remember the settings."""
        self.config = config

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = open_trainer(self.config, Path(self.folder.name), resume=False)
        return self.trainer

    def __exit__(self, *failure):
        self.trainer.close()
        self.folder.cleanup()


def warm_up(trainer):
    """Go on until kernels are compiled and updates recorded."""
    while trainer.updates < FIRST_LOOK:
        trainer.round()
    wait_for(trainer.worlds)()


def watched(trainer, rounds=5):
    """Return what the host waited for in some rounds; on a GPU a wait is an error."""
    on_gpu = trainer.worlds.device.type == 'cuda'
    if on_gpu:
        torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(rounds):
            trainer.round()
        error = None
    except RuntimeError as problem:
        error = str(problem).partition('\n')[0]
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode('default')
    activities = [torch.profiler.ProfilerActivity.CPU] + (
        [torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(rounds):
            trainer.round()
        before_the_end = time.monotonic()
        wait_for(trainer.worlds)()
    counts = Counter()
    for event in profile.key_averages():
        for what in WAITS:
            if what in event.key:
                counts[event.key] += event.count
    return {'rounds': rounds, 'checked_by_torch': on_gpu, 'error': error,
            'counted': dict(counts), 'behind_the_host_s': time.monotonic() - before_the_end,
            'rounds_per_second': rate(trainer.round, 0.5, wait_for(trainer.worlds))}


def train(config, seconds, is_enough=lambda progress: False):
    """Train for at most so long, and return the curve with the time that training took."""
    points = []
    with opened(config) as trainer:
        started = time.monotonic()

        def note(progress):
            point = {'env_steps': progress.env_steps, 'seconds': time.monotonic() - started,
                     'success': progress.eval_success, 'return': progress.eval_return,
                     'training_return': progress.episode_return}
            points.append({name: value if value == value else None
                           for name, value in point.items()})
            tell({'estimator': config.active.estimator, **points[-1]})
            note.enough = is_enough(progress)
        note.enough = False
        trainer.run(note, lambda: note.enough or time.monotonic() - started > seconds)
        return {'points': points, 'env_steps': trainer.env_steps, 'updates': trainer.updates,
                'num_worlds': config.trainer.num_worlds, 'estimator': config.active.estimator,
                'wall_s': time.monotonic() - started, 'train_s': trainer.train_seconds}


def tell(row):
    """Print a line of figures."""
    print(', '.join(f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
                    for name, value in row.items()), flush=True)


def main(arguments=None):
    """Run all sections and write what they gave."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cuda', 'warp_cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to show the way')
    parser.add_argument('--minutes', type=float, default=9.5, help='in all (default: 9.5)')
    parser.add_argument('--only', nargs='+', metavar='SECTION',
                        choices=('waiting', 'throughput', 'fetch_reach', 'hand_reach'))
    parser.add_argument('--output', type=Path, default=RESULTS / 'gpu.json')
    options = parser.parse_args(arguments)
    gpu = Gpu(options.device, options.quick, options.minutes)
    result = {'command': 'benchmarks/gpu.py ' + ' '.join(arguments), 'device': options.device,
              'quick': options.quick, 'versions': versions()}
    for name in options.only or ('waiting', 'throughput', 'fetch_reach', 'hand_reach'):
        print(f'{name}:', flush=True)
        try:
            result[name] = getattr(gpu, name)()
        except SpecError as error:  # the others may still go
            result[name] = {'refused': str(error)}
            tell(result[name])
        result['machine'] = machine(options.device)
        options.output.write_text(json.dumps(result, indent=1) + '\n')
    print(f'wrote {options.output}')


if __name__ == '__main__':
    main()
