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
mujoco, mujoco-warp, warp-lang, gymnasium, gymnasium-robotics, onnxruntime and PyYAML with all that
pip brings for them, in the versions of requirements/; where this package is not installed, its
folder in PYTHONPATH. In this order, each in a process of its own, so that what fails there
leaves the others alone, and every figure is written as soon as it is known:

- ``kernels``: seconds that the kernels of each task take to compile, all tasks at once;
- ``parity``: the tests that only a GPU can run, if pytest is there;
- ``throughput``: as ``dpg-robot bench throughput``, beside mujoco_warp's own loop, and then with
  learning; from 16,384 worlds on with rollouts of four steps, since a round of more would take
  too long;
- ``fetch_reach``: seconds until 95 % of evaluated episodes succeed, those of training alone
  (``train_s``) and all (``wall_s``), with evaluations on the CPU and checkpoints;
- ``hand_reach``: learning curves of four on-policy estimators: the slowest for its share of the
  time, the others for as many steps; ``cut_off`` marks one that had no time for all of them;
- ``off_policy_waits``, ``on_policy_waits``: rounds in which torch makes an error of every wait of
  the host, and what its profiler counted in as many more (on a CPU some kernels read values
  themselves).

Where updates cannot be recorded as CUDA graphs, a section is run again without.
``--only SECTION`` adds one to the file.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
import contextlib
from importlib.util import find_spec
import itertools
import json
import multiprocessing
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
import traceback

import torch

from dpg_robot.bench.throughput import (
    bench_throughput,
    give_back_memory,
    machine,
    TASKS,
    ThroughputBench,
)
from dpg_robot.bench.waits import warm_up, watched
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import (
    commit,
    load_config,
    make_training_worlds,
    open_trainer,
    versions,
)
from dpg_robot.learn.checkpoint import write_atomic
from dpg_robot.learn.device import find_device

RESULTS = Path(__file__).parent / 'results'
# Of the time that is left, so much for each.
SHARES = {'kernels': 0.3, 'parity': 0.2, 'throughput': 0.4, 'fetch_reach': 0.35, 'hand_reach': 0.7,
          'off_policy_waits': 0.5, 'on_policy_waits': 1.0}
LAST_WORDS_S = 20.0  # to end what is going on when the time of a section is up
SLOWEST = 'doubly_robust'
ESTIMATORS = (SLOWEST, 'denoising', 'critic', 'reinforce')
SIZES = (1024, 4096, 16384, 32768)
LARGE = 16384
WANTED_SUCCESS = 0.95
TESTS = ('sim/test_warp_world.py::test_two_control_periods_are_those_of_mujoco[cuda]',
         'learn/test_device.py::test_a_recorded_update_is_the_update')
NO_GRAPHS = 'trainer.cuda_graphs=false'
REFUSED_GRAPHS = 'trainer.cuda_graphs must be false'
TINY = ('learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
        'learner.batch_size=16', 'on_policy.hidden=[16]', 'on_policy.denoiser_hidden=[16]',
        'on_policy.horizon=4', 'on_policy.minibatches=2', 'trainer.warmup_steps=4',
        'trainer.updates_per_step=0.25', 'trainer.log_every_steps=16',
        'trainer.eval_every_steps=32', 'trainer.eval_episodes=1')


class Gpu:
    """The sections, with the time that is left for them.

    :ivar figures: those of the section, as far as they are known; :ivar went_well: whether
        nothing failed so far.
    """

    def __init__(self, device, quick, ends, write, changes=()):
        """Prepare to measure.

        :param ends: when the time is up, on the clock of :func:`time.monotonic` [s].
        :param write: called with the figures whenever there is a new one.
        :param changes: to all settings, such as ``trainer.cuda_graphs=false``.
        """
        self.device, self.quick, self.ends, self.changes = device, quick, ends, tuple(changes)
        self.figures, self.went_well, self._write = {}, True, write

    def config(self, task, *changes):
        """Return a task's settings; of a quick run those of a toy."""
        toy = (*TINY, 'trainer.num_worlds=4') if self.quick else ()
        return load_config('reacher' if self.quick else f'{task}_gpu',
                           [f'trainer.device={self.device}', *self.changes, *changes, *toy])

    def left(self, share=1.0):
        """Return a share of the seconds that are left."""
        return share * max(0.0, self.ends - time.monotonic())

    def add(self, **figures):
        """Add figures, or renew them, and write all."""
        self.figures |= figures
        self._write(self.figures)

    def run(self, section):
        """Run a section; return whether nothing failed."""
        self.attempt(getattr(self, section), lambda failed: self.add(failed=failed))
        return self.went_well

    def attempt(self, function, tell_failure):
        """Return what a function returns; what it fails with is a figure beside the others."""
        try:
            return function()
        except Exception:
            self.went_well = False
            tell_failure(traceback.format_exc())
            traceback.print_exc()

    def kernels(self):
        """Compile the kernels of all tasks; what comes later finds them in warp's cache."""
        names = ['reacher'] if self.quick else [
            name.removesuffix('_gpu') for name in TASKS[self.device]]
        spawn = multiprocessing.get_context('spawn')  # CUDA does not survive a fork
        with ProcessPoolExecutor(len(names), spawn) as pool:
            found = {name: pool.submit(compile_physics, self.config(name)) for name in names}
            for name, future in found.items():
                self.add(**{name: future.result()})

    def parity(self):
        """Run the tests that a machine without a GPU skips."""
        if find_spec('pytest') is None:
            return self.add(refused='pytest is not installed')
        tests = [str(RESULTS.parents[1] / 'test' / name) for name in TESTS]
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', *tests], capture_output=True, text=True,
            timeout=self.left())
        self.add(closing_line=(done.stdout.splitlines() or [done.stderr])[-1])
        if done.returncode:
            self.went_well = False
            self.add(failed=done.stdout[-4000:] + done.stderr[-4000:])

    def throughput(self):
        """Measure steps per second of every task and number of worlds, physics first."""
        tasks, sizes = (('reacher',), (4,)) if self.quick else (TASKS[self.device], SIZES)
        seconds, rows, took = (0.05 if self.quick else 0.5), {}, {}
        for part, size, task in itertools.product(('simulate', 'learn'), sizes, tasks):
            def note(row, key=(task, size)):
                row = rows[key] = rows.get(key, {}) | row
                if 'with_training' in row and 'steps_per_second' in row:
                    row['training_costs'] = 1 - row['with_training'] / row['steps_per_second']
                self.went_well &= 'failed' not in row and REFUSED_GRAPHS not in str(row)
                tell(row)
                self.add(seconds=seconds, rows=list(rows.values()))
            changes = TINY if self.quick else ('on_policy.horizon=4',) * (size >= LARGE)
            bench = ThroughputBench(self.device, (task,), (size,), (1,), seconds,
                                    (*self.changes, *changes), (part,))
            # As more worlds take longer: none is begun that would probably not end in time.
            began_s = time.monotonic()
            bench_throughput(bench, note, self.ends - 2.0 * took.get((part, task), 0.0))
            took[part, task] = max(took.get((part, task), 0.0), time.monotonic() - began_s)

    def fetch_reach(self):
        """Train until nearly all episodes succeed, and tell how long that took."""
        config = self.config('fetch_reach', *(['trainer.env_steps=32'] if self.quick else []))
        self.add(warm_up_s=compile_kernels(config), wanted_success=WANTED_SUCCESS)
        curve = train(config, self.left(), lambda curve: self.add(**curve), is_enough)
        reached = [point for point in curve['points'] if is_enough(point)]
        self.add(reached=reached[0] if reached else None)

    def hand_reach(self):
        """Train with each estimator for the same number of steps, as many as there is time for."""
        changes = ['trainer.algorithm=on_policy', 'trainer.eval_every_steps=327680']
        if self.quick:
            changes.append('trainer.env_steps=32')
        self.add(warm_up_s=compile_kernels(self.config('hand_reach', *changes)))
        for i, name in enumerate(ESTIMATORS):
            config = self.config('hand_reach', *changes, f'on_policy.estimator={name}')
            # The first leaves the others more than it took itself.
            share = 0.8 / len(ESTIMATORS) if name == SLOWEST else 1 / (len(ESTIMATORS) - i)
            curve = self.attempt(
                lambda: train(config, self.left(share), lambda curve: self.add(**{name: curve})),
                lambda failed: self.add(**{name: self.figures.get(name, {}) | {'failed': failed}}))
            if name == SLOWEST and curve:
                changes.append(f'trainer.env_steps={curve["env_steps"]}')
                curve['cut_off'] = False

    def off_policy_waits(self):
        """Run rounds in which the host must not wait for the device."""
        self._watch(self.config('fetch_reach', 'trainer.algorithm=off_policy'))

    def on_policy_waits(self):
        """Run rounds in which the host must not wait for the device."""
        self._watch(self.config('half_cheetah', 'trainer.algorithm=on_policy'))

    def _watch(self, config):
        with opened(config) as trainer:
            tell(watched(trainer, lambda figures: self.add(**figures)))


@contextlib.contextmanager
def opened(config):
    """Open a training in a folder of its own, and clean up behind it."""
    give_back_memory(config.trainer.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(
            open_trainer(config, Path(folder), resume=False)) as trainer:
        yield trainer


def compile_physics(config):
    """Take a step of all worlds, for nothing but its kernels; return the seconds."""
    started = time.monotonic()
    with contextlib.closing(make_training_worlds(config)) as worlds:
        worlds.reset(seed=0)
        shape = worlds.num_envs, *worlds.single_action_space.shape
        worlds.step(torch.zeros(shape, device=worlds.device))
    return time.monotonic() - started


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


def run_apart(section, seconds, limit, options, changes=()):
    """Run a section in a process of its own; return whether nothing failed.

    :param limit: when the process is ended, whatever it does [s].
    """
    command = [sys.executable, __file__, '--only', section, '--device', options.device,
               '--ends', str(time.monotonic() + seconds), '--output', str(options.output)]
    command += [part for change in changes for part in ('--set', change)]
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


def run_in_turn(section, share, ends, options):
    """Run a section in its share of the time, again if it cannot be recorded; return if well."""
    def run(changes):
        seconds = share * max(ends - time.monotonic() - LAST_WORDS_S, 0.0)
        return run_apart(section, seconds, seconds + LAST_WORDS_S, options, changes)
    if run(options.set):
        return True
    first = read(options.output)[section]
    if REFUSED_GRAPHS in str(first) and NO_GRAPHS not in options.set:
        run([*options.set, NO_GRAPHS])
        again = read(options.output)[section]
        save(options.output, **{section: again | {'recorded': first}})
    return False


def main(arguments=None):
    """Run all sections and write what they gave; return 1 if any of them failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cuda', 'warp_cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to show the way')
    parser.add_argument('--minutes', type=float, default=8.5, help='in all (default: 8.5)')
    parser.add_argument('--ends', type=float, help=argparse.SUPPRESS)  # for --only, on the clock
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change any key of the YAML: trainer.cuda_graphs=false')
    parser.add_argument('--only', metavar='SECTION', choices=tuple(SHARES))
    parser.add_argument('--output', type=Path, default=RESULTS / 'gpu.json')
    options = parser.parse_args(arguments)
    ends = options.ends or time.monotonic() + 60 * options.minutes
    if options.only:
        print(f'{options.only}:', flush=True)
        gpu = Gpu(options.device, options.quick, ends,
                  lambda figures: save(options.output, **{options.only: figures}), options.set)
        went_well = gpu.run(options.only)
        save(options.output, machine=machine(options.device))
        return int(not went_well)
    try:
        find_device(options.device)
    except SpecError as error:
        print(f'benchmarks/gpu.py: {error}', file=sys.stderr)
        return 2
    went_well = True
    options.output.unlink(missing_ok=True)
    save(options.output, command='benchmarks/gpu.py ' + ' '.join(arguments),
         device=options.device, quick=options.quick, versions=versions(), commit=commit())
    for section, share in SHARES.items():
        went_well &= run_in_turn(section, share, ends, options)
    print(f'wrote {options.output}')
    return int(not went_well)


if __name__ == '__main__':
    sys.exit(main())
