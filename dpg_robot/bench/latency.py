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

"""How long a state takes to become a command: policy_node over DDS, as on a robot.

A process that is the robot publishes states and receives commands; policy_node is started as
``ros2 run`` starts it. In turn with it, at each rate, runs the floor: a bare rclpy node that
answers the same messages without a policy (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from importlib import metadata
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from dpg_robot.bench.latency_figures import (
    figures,
    latencies,
    missed_fraction,
    percentiles,
    pooled,
    table,
)
from dpg_robot.bench.latency_nodes import COMMAND_TOPIC, NUM_STATES, STATE_TOPIC, states
from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec
from dpg_robot.contract.strict import SpecError
from dpg_robot.processes import running

JOINTS, HIDDEN = 20, (256, 256)
NUM_PACED = 300
_RSS_PERIOD_S = 5.0


def add_latency(benches: argparse._SubParsersAction) -> None:
    """Add ``bench latency`` to the command line; what it needs is imported when it runs."""
    parser = benches.add_parser(
        'latency', help='from a state to the command of policy_node, over DDS')
    parser.add_argument('--rates', type=int, nargs='+', default=[50, 100, 250, 500], metavar='HZ')
    parser.add_argument('--seconds', type=float, default=8.0,
                        help='at each rate (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=2,
                        help='turns in which policy_node and echo share these (default: 2)')
    parser.add_argument('--memory-minutes', type=float, default=0.0, metavar='MINUTES',
                        help="then watch the node's memory for so long")
    parser.add_argument('--wake-latency-us', type=int, default=-1, metavar='US',
                        help="policy_node's parameter of that name, for the echo as well "
                        '(default: %(default)s, as the system wants)')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/latency.json'),
                        help='default: %(default)s')
    parser.set_defaults(run=_run)


def _run(options):
    from dpg_robot.cli import write_json
    bench = LatencyBench(tuple(options.rates), options.seconds, options.rounds,
                         options.memory_minutes, options.wake_latency_us)
    result = {'command': options.command, **bench_latency(bench)}
    write_json(options.output, result)
    print(f'{table(result)}\nwrote {options.output}')


@dataclass(frozen=True)
class LatencyBench:
    """What to measure.

    ``rates`` in Hz; ``seconds`` at each rate, of policy_node and again of the echo, in ``rounds``
    turns; ``memory_minutes`` of policy_node's memory, 0 for none; ``wake_latency_us`` as
    policy_node's parameter, for the echo as well.

    :raises SpecError: if a value is impossible.
    """

    rates: tuple[int, ...] = (50, 100, 250, 500)
    seconds: float = 8.0
    rounds: int = 2
    memory_minutes: float = 0.0
    wake_latency_us: int = -1

    def __post_init__(self):
        for name, least, values in (
                ('rates', 1, self.rates), ('seconds', 1, (self.seconds,)),
                ('rounds', 1, (self.rounds,)), ('memory_minutes', 0, (self.memory_minutes,)),
                ('wake_latency_us', -1, (self.wake_latency_us,))):
            for value in values:
                if not value >= least:
                    raise SpecError(f'{name} must be at least {least}, got {value}')


def bench_latency(bench: LatencyBench) -> dict[str, Any]:
    """Measure all of it.

    :raises SpecError: if a node does not start or answer.
    """
    from dpg_robot.experiment import commit, machine, versions
    from dpg_robot.runtime.realtime import wake_latency
    _own_domain()
    runs = {(kind, rate): [] for rate in bench.rates for kind in ('policy', 'echo')}
    told = {rate: [] for rate in bench.rates}
    result: dict[str, Any] = {'load_average': os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder, \
            wake_latency(bench.wake_latency_us) as problem:  # of all cores, whoever asks for it
        if problem:
            raise SpecError(problem)
        models = export_models(Path(folder), bench.rates)
        answers, floor = _run_model(models[bench.rates[0]])
        expected = {'policy': answers, 'echo': states(JOINTS)[:, :JOINTS]}
        for number, rate, kind in _turns(bench):
            print(f'round {number + 1} of {bench.rounds}: {kind} at {rate} Hz', flush=True)
            run = _measure(kind, rate, bench.seconds / bench.rounds, models[rate], folder)
            runs[kind, rate].append(latencies(run, expected[kind], 1.0 / rate))
            if kind == 'policy':
                told[rate].append(json.loads(str(run['diagnostics'])))
        echo = {str(rate): runs['echo', rate] for rate in bench.rates}
        result |= {
            'rates': {str(rate): figures(runs['policy', rate], told[rate])
                      for rate in bench.rates},
            'floor': {'rclpy_echo_us': {rate: pooled(each) for rate, each in echo.items()},
                      'rclpy_echo_missed_fraction': {
                          rate: missed_fraction(each) for rate, each in echo.items()},
                      'onnxruntime_us': floor,
                      'onnxruntime_paced_us': {
                          str(rate): _run_model(models[rate], NUM_PACED, 1.0 / rate)[1]
                          for rate in bench.rates}}}
        if bench.memory_minutes:
            result['memory'] = _measure_memory(bench, models, folder)
    return {**result, 'seconds': bench.seconds, 'rounds': bench.rounds,
            'wake_latency_us': bench.wake_latency_us, 'hidden': list(HIDDEN),
            'observation': 2 * JOINTS, 'action': JOINTS, 'versions': versions() | _ros_versions(),
            'machine': machine(), 'commit': commit()}


def _turns(bench):
    """Yield round, rate and kind; who comes first meets another machine than who comes second."""
    for number in range(bench.rounds):
        for rate in bench.rates:
            for kind in ('policy', 'echo')[::1 if number % 2 == 0 else -1]:
                yield number, rate, kind


def bench_spec(rate: float) -> PolicySpec:
    """Return the contract of a robot with twenty joints."""
    joints = tuple(f'joint_{i}' for i in range(JOINTS))
    ones = (1.0,) * JOINTS
    return PolicySpec(
        1, 'bench', 'bench', float(rate),
        tuple(ObservationTerm(
            key, STATE_TOPIC, 'sensor_msgs/msg/JointState',
            tuple(f'{key}[{joint}]' for joint in joints), unit, max_age_s=0.5)
            for key, unit in (('position', 'rad'), ('velocity', 'rad/s'))),
        (ActionTerm('effort', COMMAND_TOPIC, 'std_msgs/msg/Float64MultiArray',
                    tuple(f'data[{i}]' for i in range(JOINTS)), 'N m', scale=ones,
                    lower=tuple(-x for x in ones), upper=ones, safe=(0.0,) * JOINTS,
                    rate_limit=(None,) * JOINTS, joints=joints),), eps_dim=JOINTS)


def export_models(folder: Path, rates: tuple[int, ...]) -> dict[int, Path]:
    """Write an untrained policy, of the same weights for each rate, as training's are written."""
    import torch

    from dpg_robot.export import export_policy
    from dpg_robot.learn.policy import SquashedGaussianPolicy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = SquashedGaussianPolicy(2 * JOINTS, JOINTS, HIDDEN, min_std=0.1)
    models = {}
    for rate in rates:
        models[rate] = folder / f'bench_{rate}.onnx'
        export_policy(policy, bench_spec(rate), states(JOINTS)[:64], models[rate])
    return models


def _run_model(path, count=NUM_STATES, pause_s=0.0):
    """Return the answers to so many states, and what the raw call takes in microseconds.

    Behind a pause it finds the processor's caches cold, as a robot's call once a period does.
    """
    from dpg_robot.runtime.onnx_policy import OnnxPolicy
    policy, rows = OnnxPolicy(path), states(JOINTS)[:count].astype(np.float32)
    answers, taken_ns = np.zeros((count, JOINTS)), np.zeros(count)
    for i, row in enumerate(rows):
        if pause_s:
            time.sleep(pause_s)
        began_ns = time.perf_counter_ns()
        answer = policy(row)
        taken_ns[i] = time.perf_counter_ns() - began_ns
        answers[i] = answer
    return answers, percentiles(taken_ns * 1e-3)


def _measure(kind, rate, seconds, model, folder):
    """Return what the robot noted while it was driven by policy_node, or by the echo."""
    output = Path(folder) / 'robot.npz'
    with running(*driver_command(kind, model)) as driver:
        with running(*robot_command(rate, seconds, kind == 'policy', output)) as process:
            while process.poll() is None:
                if driver.poll() is not None:
                    raise SpecError(f'{kind} at {rate} Hz ended with status {driver.returncode}')
                time.sleep(0.05)
        if process.returncode:
            raise SpecError(f'{kind} at {rate} Hz: the robot ended with status '
                            f'{process.returncode}')
    with np.load(output) as data:
        return dict(data)


def driver_command(kind: str, model: Path) -> list[str]:
    """Return the command of policy_node, with its defaults, or of the echo."""
    if kind == 'echo':
        return [sys.executable, '-m', 'dpg_robot.bench.latency_nodes', 'echo', _namespace()]
    return [sys.executable, '-m', 'dpg_robot.nodes.policy_node', '--ros-args', '--log-level',
            'warn', '-p', f'model:={model}', '-r', f'__ns:=/{_namespace()}']


def robot_command(rate: int, seconds: float, is_policy: bool, output: Path) -> list[str]:
    """Return the command of the robot, which writes what it noted to a file."""
    return [sys.executable, '-m', 'dpg_robot.bench.latency_nodes', 'robot', _namespace(),
            json.dumps({'rate': rate, 'seconds': seconds, 'joints': JOINTS,
                        'is_policy': is_policy, 'output': str(output)})]


def _namespace():
    return f'bench_{os.getpid()}'  # whatever else runs in the domain that the user chose


def _measure_memory(bench, models, folder):
    """Return how policy_node's resident memory grows while it drives the robot."""
    rate = 100 if 100 in bench.rates else bench.rates[0]
    command = robot_command(rate, 60.0 * bench.memory_minutes, True, Path(folder) / 'memory.npz')
    samples = []
    print(f'memory: {bench.memory_minutes:g} minutes at {rate} Hz', flush=True)
    with running(*driver_command('policy', models[rate])) as driver, \
            running(*command) as robot:
        began_s = time.monotonic()
        while robot.poll() is None:
            samples.append((time.monotonic() - began_s, _resident_mb(driver.pid)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                robot.wait(min(_RSS_PERIOD_S, 6.0 * bench.memory_minutes))
    if robot.returncode:
        raise SpecError(f'the robot ended with status {robot.returncode}')
    times_s, sizes = np.array(samples).T
    # The first third is the start: libraries, first messages.
    settled = times_s >= times_s[-1] / 3.0
    slope = np.polyfit(times_s[settled], sizes[settled], 1)[0] if settled.sum() > 1 else 0.0
    return {'rate_hz': rate, 'minutes': bench.memory_minutes,
            'first_mb': float(sizes[settled][0]), 'last_mb': float(sizes[-1]),
            'growth_mb': float(sizes[-1] - sizes[settled][0]),
            'growth_mb_per_hour': float(slope * 3600.0),
            'samples': [{'s': round(s, 1), 'mb': round(mb, 2)} for s, mb in samples]}


def _resident_mb(pid):
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') * 1e-6


def _own_domain():
    """Keep the topics away from others', unless the user chose a domain."""
    if 'ROS_DOMAIN_ID' not in os.environ:
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


def _ros_versions():
    found = {}
    for name in ('rclpy', 'ros-jazzy-rclpy', 'ros-jazzy-rmw-fastrtps-cpp'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, 'rmw': os.environ.get('RMW_IMPLEMENTATION', 'default')}


