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

"""How many steps per second, simulating alone and learning, by task and number of worlds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, replace
import math
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

from dpg_robot.contract.strict import SpecError
from dpg_robot.memory import is_out_of_memory

# On a GPU the settings are those for many worlds.
TASKS = {'cpu': ['half_cheetah', 'fetch_reach', 'hand_reach'],
         'cuda': ['half_cheetah_gpu', 'fetch_reach_gpu', 'hand_reach_gpu'],
         'warp_cpu': ['half_cheetah_gpu', 'fetch_reach_gpu', 'hand_reach_gpu']}
NUM_WORLDS = {'cpu': [8], 'cuda': [1024, 2048, 4096, 8192, 16384, 32768], 'warp_cpu': [8]}
ROUNDS = 2
ENDLESS = 2**31 - 1


def add_throughput(benches: argparse._SubParsersAction) -> None:
    """Add ``bench throughput`` to the command line; what it needs is imported when it runs."""
    parser = benches.add_parser(
        'throughput', help='steps per second, simulating alone and learning')
    parser.add_argument('tasks', nargs='*', metavar='TASK',
                        help='tasks, such as fetch_reach, or YAML files (default: three)')
    parser.add_argument('--device', choices=tuple(TASKS), default='cpu')
    parser.add_argument('--num-worlds', type=int, nargs='+', metavar='N',
                        help='default: 8, or 1024 to 32768 on a GPU')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2],
                        help='processes, on the device cpu (default: 1 2)')
    parser.add_argument('--seconds', type=float, default=2.0,
                        help='of each measurement (default: %(default)s)')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change any key of the YAML: learner.batch_size=512')
    parser.add_argument('--output', type=Path,
                        help='default: benchmarks/results/throughput_DEVICE.json')
    parser.set_defaults(run=_run)


def _run(options):
    from dpg_robot.bench.throughput_report import draw, table
    from dpg_robot.cli import write_json
    bench = ThroughputBench(
        options.device, tuple(options.tasks or TASKS[options.device]),
        tuple(options.num_worlds or NUM_WORLDS[options.device]), tuple(options.workers),
        options.seconds, tuple(options.set))
    result = {'command': options.command, **bench_throughput(bench)}
    failed = [row['failed'] for row in result['rows'] if 'failed' in row]
    path = options.output or Path(f'benchmarks/results/throughput_{options.device}.json')
    write_json(path, result)
    draw(result, path.with_suffix('.png'))
    print(f'{table(result)}\nwrote {path} and its picture')
    if failed:
        raise SpecError(f'{len(failed)} of {len(result["rows"])} rows failed, first: {failed[0]}')


@dataclass(frozen=True)
class ThroughputBench:
    """What to measure: every task with every number of worlds, ``seconds`` for each figure.

    :param workers: numbers of processes, on the device cpu.
    :param parts: ``simulate``, ``learn`` or both.
    :param changes: to the settings of all tasks, such as ``learner.hidden=[16]``.
    :raises SpecError: if a value is impossible.
    """

    device: str
    tasks: tuple[str, ...]
    num_worlds: tuple[int, ...]
    workers: tuple[int, ...] = (1,)
    seconds: float = 2.0
    changes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ('simulate', 'learn')

    def __post_init__(self):
        for name, values in (('num_worlds', self.num_worlds), ('workers', self.workers),
                             ('seconds', (self.seconds,))):
            for value in values:
                if not value > 0:
                    raise SpecError(f'{name} must be greater than 0, got {value}')


def bench_throughput(bench: ThroughputBench, note: Callable[[dict], None] = lambda row: None,
                     ends: float = math.inf) -> dict[str, Any]:
    """Measure, and return a row for each task, number of worlds and number of workers.

    Rates are steps per second of all worlds together; ``memory`` is what worlds and training take
    [bytes], on the GPU's memory where there is one. On a device ``warp_steps_per_second`` is
    mujoco_warp's own loop on the same model and number of worlds: physics, and nothing else. A
    row that could not be measured, or not whole, has ``refused``, or ``failed`` with its error.

    :param note: called with each row.
    :param ends: from then on rows are refused rather than measured, on the clock of
        :func:`time.monotonic` [s].
    :raises SpecError: if a task is unknown or its settings are impossible.
    """
    from dpg_robot.experiment import commit, load_config, versions
    from dpg_robot.learn.device import find_device
    find_device(bench.device)
    # All of them first: a wrong one is told before anything is measured.
    configs = [load_config(task, [
        *bench.changes, f'trainer.device={bench.device}', f'trainer.num_worlds={num_worlds}',
        f'trainer.workers={workers}']) for task in bench.tasks for num_worlds in bench.num_worlds
        for workers in (bench.workers if bench.device == 'cpu' else (1,))]
    rows = []
    for config in configs:
        rows.append(_measure(config, bench, ends))
        note(rows[-1])
    return {'device': bench.device, 'seconds': bench.seconds, 'rows': rows,
            'versions': versions(), 'machine': machine(bench.device), 'commit': commit()}


def machine(device: str) -> dict[str, Any]:
    """Return what a rate depends on, beside the versions."""
    import torch

    from dpg_robot.experiment import processor
    about = {'processor': processor(), 'cores': os.cpu_count(),
             'load_average': round(os.getloadavg()[0], 2)}
    return about | ({'gpu': torch.cuda.get_device_name()} if device == 'cuda' else {})


def _measure(config, bench, ends):
    trainer = config.trainer
    row = {'task': config.world.task, 'num_worlds': trainer.num_worlds,
           'workers': trainer.workers, 'algorithm': trainer.algorithm}
    if time.monotonic() > ends:
        return row | {'refused': 'no time was left'}
    try:
        for part in bench.parts:
            row |= {'simulate': _simulate, 'learn': _learn}[part](config, bench.seconds)
    except SpecError as error:  # not for this device, or too large
        row['refused'] = str(error).partition('\n')[0]
    except Exception as error:  # the other rows are worth having
        row['refused' if is_out_of_memory(error) else 'failed'] = \
            f'{type(error).__name__}: {error}'.partition('\n')[0]
    return row


def _simulate(config, seconds):
    from dpg_robot.experiment import make_training_worlds
    give_back_memory(config.trainer.device)
    worlds = make_training_worlds(config)
    try:
        worlds.reset(seed=0)
        step = _random_steps(worlds)
        if config.trainer.device == 'cpu':
            return {'steps_per_second': worlds.num_envs * rate(step, seconds)}
        from dpg_robot.bench.warp_loop import own_loop
        state = worlds.get_state()
        own = own_loop(worlds)
        rates = {step: [], own: []}
        for _ in range(ROUNDS):  # in turn, so that a change in the machine's speed meets both
            for function, found in rates.items():
                worlds.set_state(state)
                found.append(worlds.num_envs * rate(function, seconds / ROUNDS, _wait_for(worlds)))
        ours, theirs = (sum(found) / ROUNDS for found in rates.values())
        return {'steps_per_second': ours, 'warp_steps_per_second': theirs,
                'times_warp': ours / theirs}
    finally:
        worlds.close()


def _random_steps(worlds):
    """Return a function that takes one step, with a random action that is ready beforehand."""
    import torch
    shape = worlds.num_envs, worlds.single_action_space.shape[0]
    actions = 2 * torch.rand(16, *shape, device=getattr(worlds, 'device', 'cpu')) - 1
    if not hasattr(worlds, 'device'):
        actions = actions.numpy()
    calls = iter(range(ENDLESS))
    return lambda: worlds.step(actions[next(calls) % len(actions)])


def _learn(config, seconds):
    num_worlds = config.trainer.num_worlds
    config = replace(config, trainer=replace(
        config.trainer, env_steps=ENDLESS, warmup_steps=num_worlds, eval_every_steps=0))
    with _opened(config) as (trainer, memory):
        warm_up(trainer)
        rounds = rate(trainer.round, seconds, trainer.worlds.wait)
        return {'with_training': rounds * trainer.algorithm.steps_per_round,
                'updates_per_second': rounds * _updates_per_round(config), 'memory': memory()}


def warm_up(trainer) -> None:
    """Go on until kernels are compiled and updates recorded."""
    from dpg_robot.learn.device import NUM_WARM_UP
    # An on-policy update is many steps of the optimiser: all is recorded in the first.
    enough = 2 if trainer.config.algorithm == 'on_policy' else 2 * (NUM_WARM_UP + 2)
    while trainer.updates < enough:
        trainer.round()
    trainer.worlds.wait()


def _updates_per_round(config):
    trainer = config.trainer
    return 1 if trainer.algorithm == 'on_policy' \
        else trainer.updates_per_step * trainer.num_worlds


@contextlib.contextmanager
def _opened(config) -> Iterator[tuple]:
    """Open a training in a folder of its own; also return what tells the memory it has taken."""
    from dpg_robot.experiment import hindsight_goals, make_training_worlds
    from dpg_robot.learn.trainer import Trainer
    from dpg_robot.sim.world import make_vector
    give_back_memory(config.trainer.device)
    before = _memory(config.trainer.device)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is evaluated: one world tells the sizes.
        trainer = Trainer(config.trainer, config.active, make_training_worlds(config),
                          make_vector(config.world, 1), Path(folder), {}, hindsight_goals(config))
        try:
            yield trainer, lambda: _memory(config.trainer.device) - before
        finally:
            trainer.close()


def give_back_memory(device: str) -> None:
    """Let go, on a GPU, of what earlier worlds and trainings took."""
    if device == 'cuda':
        from dpg_robot.bench.warp_loop import trim_graph_memory
        trim_graph_memory()


def rate(function: Callable[[], Any], seconds: float,
         wait: Callable[[], None] = lambda: None) -> float:
    """Return how often a function can be called in a second.

    :param wait: returns when all that was called is done; it is called seldom.
    """
    function()
    wait()
    started = time.perf_counter()
    function()
    wait()
    # So many in a row keep a device busy.
    many = max(1, int(0.1 * seconds / (time.perf_counter() - started)))
    calls, started = 0, time.perf_counter()
    while True:
        for _ in range(many):
            function()
        wait()
        calls += many
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return calls / elapsed


def _wait_for(worlds):
    """Return what waits until the device of some worlds has done all it was told."""
    import torch
    return torch.cuda.synchronize if worlds.device.type == 'cuda' else lambda: None


def _memory(device):
    """Return the memory in use, of the GPU or of this process and its children [bytes]."""
    import gc
    gc.collect()
    if device == 'cuda':
        import torch
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free
    import ctypes
    import multiprocessing
    if sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)  # what was freed would be taken again, and not be seen
    pids = ['self', *(child.pid for child in multiprocessing.active_children())]
    pages = sum(int(Path(f'/proc/{pid}/statm').read_text().split()[1]) for pid in pids) \
        if sys.platform == 'linux' else 0
    return pages * os.sysconf('SC_PAGE_SIZE')
