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

"""The command dpg-robot: tasks, view, train, evaluate, export, inspect, replay, demo, bench."""

from __future__ import annotations

import argparse
from ctypes.util import find_library
from dataclasses import asdict
import json
import math
import os
from pathlib import Path
import shlex
import signal
import sys

from dpg_robot.bench.latency import add_latency
from dpg_robot.bench.throughput import add_throughput
from dpg_robot.contract.strict import SpecError
from dpg_robot.replay_flight import add_replay
from dpg_robot.view import add_commands


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line on standard error and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    options.command = shlex.join(['dpg-robot', *arguments])
    try:
        for name in ('output', 'json'):  # told before hours are spent
            make_room(f'--{name}', getattr(options, name, None))
        options.run(options)
    except (SpecError, OSError) as error:
        is_plain = isinstance(error, OSError) and error.filename and error.strerror
        text = f'{error.filename} cannot be used: {error.strerror}' if is_plain else error
        print(f'dpg-robot: {text}', file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        print(f'dpg-robot: this command needs {error.name}, which is not installed: see '
              'requirements/train.txt', file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog='dpg-robot', description='Train policies in a noisy MuJoCo world, and run them.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    add_commands(commands)

    train = commands.add_parser('train', help='train a policy')
    train.add_argument('config', nargs='?', help='a task, such as fetch_reach, or a YAML file; '
                       'not needed with --resume')
    train.add_argument('--run-dir', type=Path, help='folder of the run (default: in runs/, '
                       'with the name of the config)')
    train.add_argument('--resume', action='store_true', help='go on from the last checkpoint')
    _add_training_options(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser('evaluate', help='run an exported policy in simulation')
    evaluate.add_argument('model', type=Path)
    evaluate.add_argument('--episodes', type=_positive, default=100)
    evaluate.add_argument('--seed', type=_seed, default=4_000_000)
    evaluate.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                          help='change the world it was trained in: noise.actuator=0.2')
    _add_json(evaluate)
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser('export', help="write a run's policy as one ONNX file")
    export.add_argument('run_dir', type=Path)
    export.add_argument('--output', type=Path, help='default: RUN_DIR/model.onnx')
    export.add_argument('--episodes', type=_positive, default=100,
                        help='episodes to evaluate for the record in the file')
    export.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help="where the robot's model is now: world.robot.model=PATH, or "
                        "world.robot.model_hash= if it was changed")
    export.set_defaults(run=_export)

    inspect = commands.add_parser('inspect', help="print a model file's contract")
    inspect.add_argument('model', type=Path)
    inspect.set_defaults(run=_inspect)

    add_replay(commands)

    demo = commands.add_parser(
        'demo', help='train, export, and drive the simulated robot through ROS 2 topics')
    demo.add_argument('--run-dir', type=Path, default=Path('runs/demo'))
    demo.add_argument('--episodes', type=_positive, default=100,
                      help='to evaluate in process, and again through topics')
    _add_training_options(demo)
    _add_json(demo)
    demo.set_defaults(run=_demo)

    bench = commands.add_parser('bench', help='measure what the package claims')
    benches = bench.add_subparsers(required=True, metavar='WHAT')
    _add_bench_gradient(benches)
    add_latency(benches)
    add_throughput(benches)
    return parser


def _add_bench_gradient(benches):
    gradient = benches.add_parser(
        'gradient', help='estimators of the gradient against the true one')
    gradient.add_argument('config', help='a task, such as reacher, or a YAML file')
    gradient.add_argument('--estimators', nargs='+', metavar='NAME',
                          default=['critic', 'denoising', 'doubly_robust', 'model'])
    gradient.add_argument('--seeds', type=_positive, default=3)
    gradient.add_argument('--transitions', type=_positive, default=20_000,
                          help='to fit on, in each of two replicas (default: %(default)s)')
    gradient.add_argument('--states', type=_positive, default=600,
                          help='where the truth is measured (default: %(default)s)')
    gradient.add_argument('--fractions', type=_positive, nargs='+', default=[4, 2, 1],
                          help='of the transitions to fit on, the newest: 4 for a quarter; all, '
                          'in any case (default: 4 2 1)')
    gradient.add_argument('--pairs', type=_positive, default=300,
                          help='noise draws and their negatives per state (default: %(default)s)')
    gradient.add_argument('--sweep', nargs='+', metavar=('KEY', 'VALUE'),
                          help='noise 0.05 0.1 0.2 0.4, or dead_actuators 0 8 32')
    gradient.add_argument('--jobs', type=_positive, default=1,
                          help='processes, which share out the seeds')
    gradient.add_argument('--run-dir', type=Path, default=Path('runs/bench'),
                          help='what a stopped benchmark goes on from (default: %(default)s)')
    gradient.add_argument('--output', type=Path, help='JSON file, its picture lies beside it '
                          '(default: benchmarks/results/gradient_TASK[_KEY].json)')
    gradient.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                          help='change any key of the YAML: learner.sigma=0.3')
    gradient.set_defaults(run=_bench_gradient)


def _add_training_options(parser):
    parser.add_argument('--estimator', help='how the gradient is estimated, such as doubly_robust')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--env-steps', type=int)
    parser.add_argument('--device', help='cpu, or cuda for worlds and learning on a GPU')
    parser.add_argument('--num-worlds', type=int, help='worlds that are stepped together')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change any key of the YAML: learner.sigma=0.3')


def _add_json(parser):
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the result here')


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def _seed(text):
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f'must be from 0 to {2**31 - 1}, got {value}')
    return value


def _overrides(options):
    named = {'estimator': options.estimator, 'trainer.seed': options.seed,
             'trainer.env_steps': options.env_steps, 'trainer.device': options.device,
             'trainer.num_worlds': options.num_worlds}
    return options.set + [f'{key}={value}' for key, value in named.items() if value is not None]


def make_room(name: str, path: Path | None) -> None:
    """Make the folder of a file to write, if any.

    :param name: of the option.
    :raises SpecError: if that is not possible.
    """
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f'{name} must be a file in a folder that can be made, got {path}: '
                        f'{error.strerror}') from error


def write_json(path: Path | None, result: dict) -> None:
    """Write a result where the user asked for it, if at all."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + '\n')


def _train(options):
    from dpg_robot.experiment import CHECKPOINT_FILE, CONFIG_FILE, load_training
    if options.config is None and not options.resume:
        raise SpecError('name a task, such as fetch_reach, or a YAML file; or use --resume')
    run_dir = options.run_dir or Path('runs') / Path(options.config or 'fetch_reach').stem
    config = options.config or run_dir / CONFIG_FILE
    # A run that was killed before its first checkpoint has a config, and begins anew.
    wanted = [CONFIG_FILE, CHECKPOINT_FILE] if options.config else [CONFIG_FILE]
    if options.resume and not any((run_dir / name).exists() for name in wanted):
        raise SpecError(f'{run_dir} holds no training to resume: there is no '
                        + ' and no '.join(wanted))
    if not train(load_training(config, _overrides(options)), run_dir, options.resume):
        print('stopped; go on with: dpg-robot train --resume --run-dir '
              + shlex.quote(str(run_dir)))
        raise SystemExit(130)  # not done, so that what follows in a script does not go on
    print(f'done; write the policy with: dpg-robot export {shlex.quote(str(run_dir))}')


def train(config, run_dir: Path, resume: bool = False) -> bool:
    """Train with a progress bar; SIGINT, SIGTERM and SIGHUP stop it behind a checkpoint.

    :return: whether the training is finished.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from dpg_robot.experiment import open_trainer
    trainer = open_trainer(config, run_dir, resume)
    signals = []  # a handler may interrupt another one, so it must not take a lock
    previous = {number: signal.signal(number, lambda *which: signals.append(which))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                # What nohup started shall outlive its terminal.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}
    try:
        with logging_redirect_tqdm(), tqdm(  # warnings have lines of their own
                total=trainer.config.env_steps, initial=trainer.env_steps, unit='step',
                desc=f'{config.world.task} {config.active.estimator}') as bar:
            def show(progress):
                evaluated = progress.eval_success if not math.isnan(progress.eval_success) \
                    else progress.eval_return
                bar.set_postfix_str(
                    ', '.join(f'{name} {value:.2f}' for name, value in (
                        ('return', progress.episode_return), ('success', progress.success),
                        ('evaluated', evaluated)) if not math.isnan(value)),
                    refresh=False)
                bar.update(progress.env_steps - bar.n)
            return trainer.run(show, lambda: bool(signals))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        trainer.close()


def _evaluate(options):
    from dpg_robot.experiment import evaluate_model, world_of
    from dpg_robot.runtime.onnx_policy import OnnxPolicy
    policy = OnnxPolicy(options.model)
    world = world_of(policy.spec, options.set)
    result = asdict(evaluate_model(policy, world, options.episodes, options.seed))
    if result['success'] is not None:
        print(f'success {result["success"]:.3f} over {result["episodes"]} episodes (95 % interval '
              f'{result["success_low"]:.3f} to {result["success_high"]:.3f}), ', end='')
    over = '' if result['success'] is not None else f' over {result["episodes"]} episodes'
    print(f'return {result["return_mean"]:.3f}{over} (std {result["return_std"]:.3f})')
    write_json(options.json, {'model': str(options.model), 'content_hash': policy.content_hash,
                              **result})


def _export(options):
    from dpg_robot.experiment import export_run
    output = options.output or options.run_dir / 'model.onnx'
    spec, parity = export_run(options.run_dir, output, options.episodes, options.set)
    evaluation = spec.training.evaluation
    name = 'return_mean' if evaluation['success'] is None else 'success'
    print(f'{output}: {name.removesuffix("_mean")} {evaluation[name]:.3f} '
          f'over {evaluation["episodes"]} episodes, '
          f'torch and ONNX agree to {parity:.1e} of the action range')


def _inspect(options):
    from dpg_robot.contract.describe import describe
    from dpg_robot.runtime.onnx_policy import OnnxPolicy
    policy = OnnxPolicy(options.model)
    print(describe(policy.spec, policy.content_hash), end='')


def _demo(options):
    # Both before anything else: MuJoCo reads this once, and rclpy's wheels restart the process.
    os.environ.setdefault('MUJOCO_GL', 'egl' if find_library('EGL') else 'disable')
    import rclpy  # noqa: F401

    from dpg_robot.demo import run_demo
    from dpg_robot.experiment import load_training
    config = load_training('fetch_reach', _overrides(options))
    if config.world.task != 'fetch_reach':
        raise SpecError('the demo must be of fetch_reach, whose settings it has, got '
                        f'{config.world.task}; dpg-robot train has all tasks')
    result = run_demo(config, options.run_dir, options.episodes)
    write_json(options.json, result)


def _bench_gradient(options):
    from dpg_robot.bench.gradient import (
        bench_gradient,
        GradientBench,
        load_measured,
        sweep_gradient,
    )
    from dpg_robot.bench.report import draw, table
    from dpg_robot.learn.fit import check_fit, fit_gradient
    parts = max(options.fractions) if not options.sweep else 1
    check_fit(options.estimators, options.transitions, parts)
    bench = GradientBench(tuple(options.estimators), options.transitions, options.seeds,
                          options.states, options.pairs, options.jobs, tuple(options.fractions),
                          options.run_dir)
    if options.sweep:
        key, *values = options.sweep
        result = sweep_gradient(options.config, options.set, key, values, bench, fit_gradient)
    else:
        result = bench_gradient(load_measured(options.config, options.set), bench, fit_gradient)
    result = {'command': options.command, **result}
    name = '_'.join(['gradient', result['task'], *(options.sweep or [])[:1]])
    path = options.output or Path('benchmarks/results') / f'{name}.json'
    write_json(path, result)
    draw(result, path.with_suffix('.png'))
    print(f'{table(result)}\nwrote {path} and its picture')


if __name__ == '__main__':
    main()
