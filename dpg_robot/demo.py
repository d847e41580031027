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

"""The demo: train, export, and let the policy drive the simulated robot through ROS 2 topics."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import shutil
import sys
import time

import diagnostic_msgs.msg
import numpy as np
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions

from dpg_robot.cli import train, write_json
from dpg_robot.contract.messages import message_class
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import evaluate_model, ExperimentConfig, export_run, versions
from dpg_robot.learn.evaluate import wilson_interval
from dpg_robot.learn.run_log import METRICS_FILE
from dpg_robot.learn.trainer import CONFIG_FILE, own_folder
from dpg_robot.processes import running
from dpg_robot.report import draw_latency, draw_learning_curve, film
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.sim.world import make_world

LOCK = 'demo.lock'
EVALUATION_SEED = 3_000_000
STARTUP_S = 30.0


def run_demo(config: ExperimentConfig, run_dir: Path, episodes: int) -> dict:
    """Run all of it, print it, and write ``report.json`` and pictures to ``run_dir``.

    An earlier demo in that folder is moved aside.

    :param episodes: to evaluate in process, and again through topics.
    :return: the report.
    :raises SpecError: if the folder is another one's, a node cannot start or the episodes do not
        come.
    """
    if run_dir.name in ('', '..'):
        run_dir = run_dir.resolve()
    _move_aside(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with own_folder(run_dir, LOCK):
        return _run(config, run_dir, episodes)


def _run(config, run_dir, episodes):
    noise = config.world.noise
    print(f'[1/4] training {config.world.task}, actuator noise {noise.actuator:g} of full scale')
    if not train(config, run_dir):
        raise SpecError(f'the training was stopped; its checkpoint is in {run_dir}')
    model = run_dir / 'model.onnx'
    spec, parity = export_run(run_dir, model)
    print(f'[2/4] {model}: torch and ONNX agree to {parity:.1e} of the action range')

    policy = OnnxPolicy(model)
    inside = evaluate_model(policy, config.world, episodes, EVALUATION_SEED)
    print(f'[3/4] in process: {_outcome(inside.success, inside.return_mean, inside.episodes)}')

    task_file = run_dir / 'config.yaml'
    steps = make_world(config.world).get_wrapper_attr('episode_steps')
    length_s = episodes * steps * spec.control_dt
    print(f'[4/4] sim_node and policy_node, {episodes} episodes in real time, '
          f'at most about {length_s:.0f} s')
    drive = drive_through_topics(model, task_file, spec, episodes, length_s)
    print(f'      through topics: {_outcome(drive.success, drive.return_mean, episodes)}')

    rows = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    report = {
        'task': config.world.task, 'estimator': config.active.estimator,
        'env_steps': spec.training.env_steps, 'train_seconds': rows[-1]['train_seconds'],
        'success_in_process': inside.success, 'success_over_topics': drive.success,
        'return_in_process': inside.return_mean, 'return_over_topics': drive.return_mean,
        'episodes': episodes, 'parity_max_abs': parity,
        'tick_us': drive.percentiles('tick_us'),
        'state_to_command_us': drive.percentiles('state_to_command_us'),
        'deadline_misses': int(drive.diagnostics['deadline_misses']),
        'safe_ticks_while_driving': drive.safe_ticks,
        'model': {'path': str(model), 'content_hash': policy.content_hash},
        'seed': config.trainer.seed, 'noise': dump(noise), 'versions': versions()}
    write_json(run_dir / 'report.json', report)
    draw_learning_curve(rows, run_dir / 'learning_curve.png')
    draw_latency(drive.latencies_us(), run_dir / 'latency.png')
    _film(policy, config.world, run_dir / 'arm.gif')
    _print_latency(report)
    print(f'report and pictures in {run_dir}')
    return report


def _move_aside(run_dir):
    if not run_dir.exists() or run_dir.is_dir() and not any(run_dir.iterdir()):
        return
    if not any((run_dir / name).exists() for name in (CONFIG_FILE, LOCK)):
        raise SpecError('the demo must have a folder that is new or empty, or holds a demo '
                        f'before, got {run_dir}')
    # Who is at work there would go on in the new one.
    with own_folder(run_dir), own_folder(run_dir, LOCK):
        number = 1
        while (old := run_dir.with_name(f'{run_dir.name}.{number}')).exists():
            number += 1
        run_dir.rename(old)
    print(f'the demo before is now in {old}')


def _film(policy, world, path):
    if os.environ.get('MUJOCO_GL') == 'disable':
        print('frames are left out: MuJoCo has no GL to draw with (MUJOCO_GL=disable)')
        return
    try:
        film(policy, world, path, seed=EVALUATION_SEED)
    except Exception as error:  # no GL here: whatever the driver says, the demo goes on
        print(f'frames are left out: {" ".join(str(error).split())[:200]}')


def _outcome(success, return_mean, episodes):
    if success is None:
        return f'return {return_mean:.2f} over {episodes} episodes'
    low, high = wilson_interval(round(success * episodes), episodes)
    return f'success {success:.2f} over {episodes} episodes ' \
           f'(95 % interval {low:.2f} to {high:.2f})'


def _print_latency(report):
    print(f'      {"latency [us]":<18}{"p50":>8}{"p99":>8}{"max":>8}')
    for key, name in (('tick_us', 'tick'), ('state_to_command_us', 'state to command')):
        values = report[key]
        print(f'      {name:<18}{values["p50"]:>8.0f}{values["p99"]:>8.0f}{values["max"]:>8.0f}')


@dataclass
class Drive:
    """What was seen on the topics while the policy drove the robot; stamps in seconds."""

    success: float | None = None
    return_mean: float = 0.0
    diagnostics: dict[str, str] = field(default_factory=dict)
    waiting_ticks: int | None = None
    safe_ticks: int = 0
    state_stamps: list[float] = field(default_factory=list)
    command_stamps: list[float] = field(default_factory=list)

    def note(self, diagnostics: dict[str, str]) -> None:
        """Take what the control tells of itself."""
        if 'safe_ticks' not in diagnostics:
            return  # not yet active
        self.diagnostics, safe_ticks = diagnostics, int(diagnostics['safe_ticks'])
        if self.waiting_ticks is None and diagnostics['state'] == 'running':
            self.waiting_ticks = safe_ticks  # until the robot was there
        self.safe_ticks = safe_ticks - (self.waiting_ticks or 0)

    def percentiles(self, name: str) -> dict[str, float]:
        """Return p50, p99 and max as the policy node measured them."""
        return {key: float(self.diagnostics[f'{name}.{key}']) for key in ('p50', 'p99', 'max')}

    def latencies_us(self) -> np.ndarray:
        """Return command stamp minus the stamp of the newest state before it."""
        states, commands = np.sort(self.state_stamps), np.sort(self.command_stamps)
        commands = commands[commands > states[0]]
        return 1e6 * (commands - states[np.searchsorted(states, commands) - 1])


def drive_through_topics(model: Path, task_file: Path, spec: PolicySpec,
                         episodes: int, length_s: float) -> Drive:
    """Start the simulated robot and the policy as processes and watch their topics.

    :param length_s: how long the episodes may take together.
    :raises SpecError: if a node ends early or the episodes do not come in time.
    """
    drive, results = Drive(), {}
    with private_ros() as node, contextlib.ExitStack() as processes:
        _watch(node, spec, drive, results)
        commands = (node_command(name, parameters) for name, parameters in (
            ('sim_node', {'config': task_file, 'episodes': episodes, 'seed': EVALUATION_SEED}),
            # Blending in would be a difference to the evaluation in one process.
            ('policy_node', {'model': model, 'diagnostics_period_s': 0.5, 'blend_s': 0.0})))
        started = [processes.enter_context(running(*command)) for command in commands]
        deadline = time.monotonic() + STARTUP_S + 1.5 * length_s

        def missing():
            for process in started:
                if process.poll() is not None:
                    raise SpecError(f'{process.args[2]} ended with status {process.returncode} '
                                    f'after {len(results)} of {episodes} episodes')
            if time.monotonic() > deadline:
                raise SpecError(f'only {len(results)} of {episodes} episodes came through the '
                                'topics in time')
            return len(results) < episodes
        _spin(node, missing, episodes, results)
        last = time.monotonic() + 1.0  # the diagnostics that cover the last ticks
        _spin(node, lambda: time.monotonic() < last)
    counted = [results[i] for i in sorted(results)[:episodes]]
    drive.return_mean = float(np.mean([float(values['return']) for values in counted]))
    if 'success' in counted[0]:
        drive.success = float(np.mean([int(values['success']) for values in counted]))
    return drive


def _watch(node, spec, drive, results):
    def on_episode(status):
        values = {item.key: item.value for item in status.values}
        results[int(values['episode'])] = values

    def on_diagnostics(array):
        for status in array.status:
            if status.name == 'policy_node: control':
                drive.note({item.key: item.value for item in status.values})

    def stamps(into):
        def note(message):
            # A message without a header says nothing about when it was sent.
            stamp = message.header.stamp if hasattr(message, 'header') \
                else node.get_clock().now().to_msg()
            into.append(stamp.sec + 1e-9 * stamp.nanosec)
        return note

    every = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(
        diagnostic_msgs.msg.DiagnosticStatus, 'sim_node/episode', on_episode, every)
    node.create_subscription(
        diagnostic_msgs.msg.DiagnosticArray, '/diagnostics', on_diagnostics, 10)
    for term, into in ((spec.observation[0], drive.state_stamps),
                       (spec.action[0], drive.command_stamps)):
        node.create_subscription(message_class(term.type), term.topic, stamps(into), 100)


def _spin(node, wanted: Callable[[], bool], total=0, results=()):
    from tqdm import tqdm
    with tqdm(total=total, unit='episode', disable=not total) as bar:
        while wanted():
            rclpy.spin_once(node, timeout_sec=0.1)
            if len(results) > bar.n:
                bar.update(len(results) - bar.n)


@contextlib.contextmanager
def private_ros():
    """Give a node on a ROS domain of its own, unless the user chose one."""
    if 'ROS_DOMAIN_ID' not in os.environ:
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        if shutil.which('ros2'):
            print(f'      watch with: ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} ros2 topic list')
    if 'HOME' not in os.environ:
        os.environ.setdefault('ROS_LOG_DIR', str(Path('log/ros').absolute()))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('demo')
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def node_command(name: str, parameters: dict) -> list[str]:
    """Return how to run a node of this package."""
    command = [sys.executable, '-m', f'dpg_robot.nodes.{name}',
               '--ros-args', '--log-level', 'warn']
    for key, value in parameters.items():
        command += ['-p', f'{key}:={value}']
    return command
