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

The second shows the way without a GPU, on toy sizes. Beside a torch that knows the GPU it needs
mujoco, mujoco-warp, warp-lang, gymnasium, gymnasium-robotics, onnxruntime and PyYAML, in the
versions of requirements/. In this order, each in a process of its own, so that what fails there
leaves the others alone, and every figure is written as soon as it is known:

- ``throughput``: as ``dpg-robot bench throughput``, beside mujoco_warp's own loop; from 16,384
  worlds on with rollouts of four steps, since a round of more would take too long;
- ``fetch_reach``: seconds until 95 % of evaluated episodes succeed, those of training alone
  (``train_s``) and all (``wall_s``), with evaluations on the CPU and checkpoints;
- ``hand_reach``: learning curves of four on-policy estimators: the slowest for its share of the
  time, the others for as many steps; ``cut_off`` marks one that had no time for all of them;
- ``waiting``: rounds of both algorithms in which torch makes an error of every wait of the host,
  and what its profiler counted in as many more (on a CPU some kernels read values themselves).

``--only SECTION`` adds one to the file. The first step of a task compiles its kernels, for up to
a minute, which is in no figure but ``warm_up_s``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
import traceback

from dpg_robot.bench.throughput import (
    bench_throughput,
    machine,
    TASKS,
    ThroughputBench,
)
from dpg_robot.bench.waits import warm_up, watched
from dpg_robot.experiment import load_config, open_trainer, versions
from dpg_robot.learn.checkpoint import write_atomic

RESULTS = Path(__file__).parent / 'results'
# Of the time that is left, so much for each. The profiler is last, since it could end its process.
SHARES = {'throughput': 0.4, 'fetch_reach': 0.35, 'hand_reach': 0.7, 'waiting': 1.0}
LAST_WORDS_S = 20.0  # to end what is going on when the time of a section is up
SLOWEST = 'doubly_robust'
ESTIMATORS = (SLOWEST, 'denoising', 'critic', 'reinforce')
SIZES = (1024, 4096, 16384, 32768)
LARGE = 16384
WANTED_SUCCESS = 0.95
TINY = ('learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
        'learner.batch_size=16', 'on_policy.hidden=[16]', 'on_policy.denoiser_hidden=[16]',
        'on_policy.horizon=4', 'on_policy.minibatches=2', 'trainer.warmup_steps=4',
        'trainer.updates_per_step=0.25', 'trainer.log_every_steps=16',
        'trainer.eval_every_steps=32', 'trainer.eval_episodes=1')


class Gpu:
    """The sections, with the time that is left for them.

    :ivar figures: those of the section, as far as they are known.
    """

    def __init__(self, device, quick, minutes, write):
        """Begin to count the time.

        :param write: called with the figures whenever there is a new one.
        """
        self.device, self.quick, self.ends = device, quick, time.monotonic() + 60 * minutes
        self.figures, self._write = {}, write

    def config(self, task, *changes):
        """Return a task's settings; of a quick run those of a toy."""
        toy = (*TINY, 'trainer.num_worlds=4') if self.quick else ()
        return load_config('reacher' if self.quick else f'{task}_gpu',
                           [f'trainer.device={self.device}', *changes, *toy])

    def left(self, share=1.0):
        """Return a share of the seconds that are left."""
        return share * max(0.0, self.ends - time.monotonic())

    def add(self, **figures):
        """Add figures, or renew them, and write all."""
        self.figures |= figures
        self._write(self.figures)

    def run(self, section):
        """Run a section; return whether nothing failed."""
        try:
            getattr(self, section)()
        except Exception:  # whatever it is, what is known so far is kept
            self.add(failed=traceback.format_exc())
            print(self.figures['failed'], flush=True)
        return 'failed' not in self.figures

    def throughput(self):
        """Measure steps per second of every task and number of worlds."""
        tasks, sizes = (('reacher',), (4,)) if self.quick else (TASKS[self.device], SIZES)
        seconds, rows = (0.05 if self.quick else 0.5), []

        def note(row):
            if 'with_training' in row:
                row['training_costs'] = 1 - row['with_training'] / row['steps_per_second']
            tell(row)
            rows.append(row)
            self.add(seconds=seconds, rows=rows)
        for size in sizes:
            changes = TINY if self.quick else ('on_policy.horizon=4',) * (size >= LARGE)
            bench = ThroughputBench(self.device, tuple(tasks), (size,), (1,), seconds, changes)
            bench_throughput(bench, note, self.ends)

    def fetch_reach(self):
        """Train until nearly all episodes succeed, and tell how long that took."""
        config = self.config('fetch_reach', *(['trainer.env_steps=32'] if self.quick else []))
        self.add(warm_up_s=compile_kernels(config), wanted_success=WANTED_SUCCESS)
        curve = train(config, self.left(), lambda curve: self.add(**curve), is_enough)
        reached = [point for point in curve['points'] if is_enough(point)]
        self.add(reached=reached[0] if reached else None)

    def hand_reach(self):
        """Train with each estimator for the same number of steps, as many as there is time for."""
        changes = ['trainer.algorithm=on_policy', 'trainer.eval_every_steps=655360']
        if self.quick:
            changes.append('trainer.env_steps=32')
        self.add(warm_up_s=compile_kernels(self.config('hand_reach', *changes)))
        for i, name in enumerate(ESTIMATORS):
            config = self.config('hand_reach', *changes, f'on_policy.estimator={name}')
            # The first leaves the others more than it took itself.
            share = 0.8 / len(ESTIMATORS) if name == SLOWEST else 1 / (len(ESTIMATORS) - i)
            curve = train(config, self.left(share), lambda curve: self.add(**{name: curve}))
            if name == SLOWEST:
                changes.append(f'trainer.env_steps={curve["env_steps"]}')
                curve['cut_off'] = False

    def waiting(self):
        """Run rounds in which the host must not wait for the device."""
        for algorithm, task in (('off_policy', 'fetch_reach'), ('on_policy', 'half_cheetah')):
            with opened(self.config(task, f'trainer.algorithm={algorithm}')) as trainer:
                watch = watched(trainer, lambda figures: self.add(**{algorithm: figures}))
                tell({'algorithm': algorithm, **watch})


@contextlib.contextmanager
def opened(config):
    """Open a training in a folder of its own, and clean up behind it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(
            open_trainer(config, Path(folder), resume=False)) as trainer:
        yield trainer


def compile_kernels(config):
    """Go through a training's first rounds, for nothing but their kernels; return the seconds."""
    started = time.monotonic()
    with opened(config) as trainer:
        warm_up(trainer)
    return time.monotonic() - started


def train(config, seconds, write, enough=lambda point: False):
    """Train for at most so long, and return the curve with the time that training took.

    :param write: called with the curve so far, whenever there is a new point.
    :param enough: whether a point is good enough to stop.
    """
    curve = {'estimator': config.active.estimator, 'num_worlds': config.trainer.num_worlds,
             'points': []}
    with opened(config) as trainer:
        started = time.monotonic()

        def note(progress):
            point = {'env_steps': progress.env_steps, 'train_s': trainer.train_seconds,
                     'wall_s': time.monotonic() - started, 'success': progress.eval_success,
                     'return': progress.eval_return, 'training_return': progress.episode_return}
            curve['points'].append({name: value if value == value else None
                                    for name, value in point.items()})
            tell({'estimator': curve['estimator'], **curve['points'][-1]})
            write(curve)

        def stop():
            return any(map(enough, curve['points'][-1:])) or time.monotonic() - started > seconds
        finished = trainer.run(note, stop)
        curve |= {'env_steps': trainer.env_steps, 'updates': trainer.updates,
                  'train_s': trainer.train_seconds, 'wall_s': time.monotonic() - started,
                  'cut_off': not (finished or any(map(enough, curve['points'][-1:])))}
    write(curve)
    return curve


def is_enough(point):
    """Return whether nearly all evaluated episodes succeeded."""
    return (point['success'] or 0.0) >= WANTED_SUCCESS


def tell(row):
    """Print a line of figures."""
    print(', '.join(f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
                    for name, value in row.items()), flush=True)


def read(path):
    """Return what was written so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(path, **figures):
    """Renew some figures in the file, and leave the others."""
    text = json.dumps(read(path) | figures, indent=1) + '\n'
    write_atomic(path, lambda file: file.write(text.encode()))


def run_apart(section, seconds, limit, options):
    """Run a section in a process of its own; return whether nothing failed.

    :param limit: when the process is ended, whatever it does [s].
    """
    command = [sys.executable, __file__, '--only', section, '--device', options.device,
               '--minutes', str(seconds / 60), '--output', str(options.output)]
    try:
        status = subprocess.run(
            command + ['--quick'] * options.quick, timeout=limit,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}).returncode
        failure = f'its process ended with {status}'
    except subprocess.TimeoutExpired:
        status, failure = None, f'its process was ended after {limit:.0f} s'
    figures = read(options.output).get(section, {})
    if status != 0 and 'failed' not in figures:
        save(options.output, **{section: figures | {'failed': failure}})
        print(f'{section}: {failure}', flush=True)
    return status == 0


def main(arguments=None):
    """Run all sections and write what they gave; return 1 if any of them failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cuda', 'warp_cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to show the way')
    parser.add_argument('--minutes', type=float, default=9.5, help='in all (default: 9.5)')
    parser.add_argument('--only', metavar='SECTION', choices=tuple(SHARES))
    parser.add_argument('--output', type=Path, default=RESULTS / 'gpu.json')
    options = parser.parse_args(arguments)
    if options.only:
        print(f'{options.only}:', flush=True)
        gpu = Gpu(options.device, options.quick, options.minutes,
                  lambda figures: save(options.output, **{options.only: figures}))
        went_well = gpu.run(options.only)
        save(options.output, machine=machine(options.device))
        return int(not went_well)
    ends, went_well = time.monotonic() + 60 * options.minutes, True
    options.output.unlink(missing_ok=True)
    save(options.output, command='benchmarks/gpu.py ' + ' '.join(arguments),
          device=options.device, quick=options.quick, versions=versions())
    for section, share in SHARES.items():
        left = max(ends - time.monotonic(), 0.0)
        seconds = share * max(left - LAST_WORDS_S, 0.0)
        went_well &= run_apart(section, seconds, seconds + LAST_WORDS_S, options)
    print(f'wrote {options.output}')
    return int(not went_well)


if __name__ == '__main__':
    sys.exit(main())
