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

"""Run a training from parameters: progress on topics; stop, resume and export by service.

One thread (:meth:`TrainerNode.loop`) owns the training and does what services ask for between
two updates, so nothing ever sees half-updated parameters; the executor's thread stays free to
answer.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from dataclasses import asdict
import json
from pathlib import Path
import queue
import sys
import threading
import traceback

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from dpg_robot.contract.model_file import read_sealed
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import (
    check_policy_path,
    export_run,
    export_trainer,
    load_training,
    open_trainer,
)
from dpg_robot.learn.run_log import Progress
from dpg_robot.learn.trainer import CHECKPOINT_FILE, Trainer
from dpg_robot.nodes.common import declare_parameters, Diagnostics, flatten, flush, Parameter, run

PARAMETERS = (
    Parameter('config', 'fetch_reach', 'A task that comes with the package, or the path of a '
              'YAML file.'),
    Parameter('run_dir', '', 'Folder for checkpoint, curves and model; empty for runs/ and the '
              "config's name, in the folder where the node was started."),
    Parameter('estimator', '', "Estimator of the policy gradient; empty for the config's."),
    Parameter('seed', -1, "Seed of everything random; -1 for the config's.", -1, 2**31 - 1),
    Parameter('device', '', "cpu, or cuda for worlds and learning on a GPU; empty for the "
              "config's."),
    Parameter('num_worlds', 0, "Worlds that are stepped together; 0 for the config's.",
              0, 2**31 - 1),
    Parameter('overrides', [''], "Changes to the config, such as 'learner.sigma=0.3'."),
    Parameter('autostart', True, 'Train at once; otherwise wait for the start service.'),
    Parameter('resume', True, 'Continue the training that run_dir holds, if any; otherwise '
              'refuse to start there.'),
    Parameter('env_steps', 0, "Environment steps to train for; 0 for the config's. A larger "
              'number continues a finished training, with the next start or resume.',
              0, 2**31 - 1, read_only=False),
    Parameter('export_path', '', 'Policy file to write (.onnx); empty for model.onnx in run_dir.',
              read_only=False),
    Parameter('export_episodes', 100, 'Episodes to evaluate for the record in the policy file.',
              0, 100000, read_only=False),
    Parameter('export_every_steps', 0, 'Export each time that so many environment steps are done, '
              'for a policy_node that follows; 0 for never.', 0, 2**31 - 1, read_only=False),
    Parameter('export_when_done', True, 'Export when the training is finished.',
              read_only=False),
)
NEWEST_KEPT = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                         durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TrainerNode(Node):
    """Own a training, which is idle, training, stopping, finished or failed."""

    def __init__(self, stop: threading.Event):
        """Read the configuration, open the training if it starts at once, and offer services.

        :param stop: ends :meth:`loop`, behind a checkpoint.
        :raises SpecError: if a parameter or the configuration is wrong, or the training cannot
            be opened.
        """
        super().__init__('trainer_node')
        self.settings = declare_parameters(self, PARAMETERS)
        self._stop, self._halt = stop, threading.Event()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], str], Future]] = queue.SimpleQueue()
        self._trainer: Trainer | None = None
        self._state, self._failure = 'idle', ''
        self._progress: Progress | None = None
        self._model = {'path': '', 'content_hash': ''}
        self._config = self._read_config()
        self.run_dir = Path(self.settings['run_dir']
                            or Path('runs', Path(self.settings['config']).stem)).absolute()
        check_policy_path(self._export_path())
        self.add_on_set_parameters_callback(self._check_parameters)
        if self.settings['autostart']:
            self._open(self.settings['resume'])
        self._connect()
        if self._state == 'finished':
            self._jobs.put((self._offer_finished, Future()))

    def _connect(self):
        self._diagnostics = Diagnostics(self, 'training', self._config.world.task)
        self._progress_publisher = self.create_publisher(
            DiagnosticStatus, '~/progress', NEWEST_KEPT)
        self._model_publisher = self.create_publisher(String, '~/model', NEWEST_KEPT)
        # While one service waits for its answer, the others and the timer go on.
        self._callbacks = ReentrantCallbackGroup()
        for name, callback in (('start', self._on_start), ('stop', self._on_stop),
                               ('resume', self._on_resume), ('export', self._on_export)):
            self.create_service(Trigger, f'~/{name}', callback, callback_group=self._callbacks)
        # Not the node's clock, which may be simulated.
        self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def state(self) -> str:
        """Return idle, training, stopping, finished or failed."""
        stopping = self._state == 'training' and (self._halt.is_set() or self._stop.is_set())
        return 'stopping' if stopping else self._state

    def loop(self) -> None:
        """Train and serve until stopped; the last act of a training is a checkpoint."""
        while not self._stop.is_set():
            if self._state == 'training':
                self._train()
            else:
                self._serve(timeout_s=0.1)
        while not self._jobs.empty():
            self._give(self._jobs.get()[1], (False, 'shutting down'))
        self._let_answers_out()
        self._report()
        flush([self._progress_publisher, self._model_publisher])

    def _train(self):
        trainer, steps = self._trainer, self._config.trainer.env_steps
        self.get_logger().info(
            f'training {self._config.world.task} with {self._config.active.estimator}, from '
            f'step {trainer.env_steps} of {steps}, in {self.run_dir}')
        try:
            finished = trainer.run(self._on_progress, self._between_updates)
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._trainer = None
            trainer.close()
        self._state = 'finished' if finished else 'idle'
        self.get_logger().info(self._describe_end(trainer.env_steps))
        if finished and self.get_parameter('export_when_done').value:
            self._try(self._export)

    def _describe_end(self, step):
        if self._state == 'finished':
            return f'finished at step {step}, in {self.run_dir}'
        return (f'stopped at step {step}; to resume, call the resume service, or start again '
                f'with run_dir:={self.run_dir}')

    def _between_updates(self):
        """Do what services asked for; parameters and optimiser are whole now."""
        every = self.get_parameter('export_every_steps').value
        if every and self._trainer.env_steps >= self._exported_at + every:
            self._try(self._export)
        while not (self._halt.is_set() or self._stop.is_set()):
            if not self._serve(timeout_s=0.0):
                return False
        return True

    def _serve(self, timeout_s):
        try:
            job, answer = self._jobs.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._give(answer, self._try(job))
        return True

    def _give(self, answer, result):
        answer.set_result(result)
        self.executor.create_task(lambda: None)  # wakes it, to send the answer

    def _let_answers_out(self):
        # The newest of the executor's tasks is the first in a pass through all that are there.
        for _ in ('begun', 'done'):
            event = threading.Event()
            self.executor.create_task(event.set)
            event.wait(timeout=1.0)

    def _try(self, job):
        """Do a job; return whether it succeeded, and one line about it."""
        try:
            line = job()
        except Exception as error:
            line = _one_line(error)
            self.get_logger().warning(line)
            return False, line
        self.get_logger().info(line)
        return True, line

    def _fail(self, error):
        self._failure = _one_line(error)
        self.get_logger().error(f'training failed: {self._failure}')
        self.get_logger().debug(traceback.format_exc())
        self._state = 'failed'  # which a report may tell at any time: the log has the reason
        self._report()

    def _open(self, resume):
        """Open the training in run_dir, for :meth:`loop` to run.

        :raises SpecError: if it cannot be opened.
        """
        config = self._read_config()
        try:
            trainer = open_trainer(config, self.run_dir, resume)
        except OSError as error:
            raise SpecError(f'run_dir {self.run_dir} cannot be used: {error.strerror}') from error
        self._config, self._failure = config, ''
        if trainer.finished:
            trainer.close()
            self._state = 'finished'
            return
        self._halt.clear()
        self._trainer, self._state, self._exported_at = trainer, 'training', trainer.env_steps

    def _begin(self, resume):
        if self._state == 'training':
            raise SpecError(self._already())
        self._open(resume)
        steps = self._config.trainer.env_steps
        if self._state == 'finished':
            raise SpecError(f'the training in {self.run_dir} is finished; to continue it, set '
                            f'parameter env_steps to more than {steps}')
        return f'training from step {self._trainer.env_steps} of {steps}, in {self.run_dir}'

    def _resume(self):
        if not (self.run_dir / CHECKPOINT_FILE).exists():
            raise SpecError(f'nothing to resume in {self.run_dir}: there is no {CHECKPOINT_FILE}')
        return self._begin(resume=True)

    def _export(self):
        path = self._export_path()
        episodes = self.get_parameter('export_episodes').value
        if self._trainer is None:
            robot = self._config.world.robot  # its model may have moved since the training
            here = [f'world.robot.{key}={json.dumps(value)}' for key, value in (
                ('model', robot.model), ('model_hash', robot.model_hash))] if robot else []
            export_run(self.run_dir, path, episodes, here)
        else:
            self._exported_at = self._trainer.env_steps
            export_trainer(self._trainer, self._config, path, episodes)
        self._announce(path)
        return f'exported {path}, content hash {self._model["content_hash"]}'

    def _export_path(self):
        return self._policy_file(self.get_parameter('export_path').value)

    def _policy_file(self, path):
        return Path(path or self.run_dir / 'model.onnx').absolute()

    def _check_parameters(self, parameters):
        try:
            for parameter in parameters:
                if parameter.name == 'export_path':
                    check_policy_path(self._policy_file(parameter.value))
        except SpecError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _announce(self, path):
        self._model = {'path': str(path), 'content_hash': read_sealed(path)[1]}
        self._model_publisher.publish(String(data=str(path)))

    def _offer_finished(self):
        """Make up for an export that a training, finished before this node began, may lack."""
        path, checkpoint = self._export_path(), self.run_dir / CHECKPOINT_FILE
        if path.exists() and path.stat().st_mtime_ns > checkpoint.stat().st_mtime_ns \
                and self._is_of_this_training(path):
            self._announce(path)
            return f'the training in {self.run_dir} is finished, and its policy {path}'
        if self.get_parameter('export_when_done').value:
            return self._export()
        return f'the training in {self.run_dir} is finished'

    def _is_of_this_training(self, path):
        from dpg_robot.runtime.onnx_policy import OnnxPolicy  # loads a library; seldom needed
        with contextlib.suppress(SpecError, FileNotFoundError):
            policy = OnnxPolicy(path)
            training = policy.spec.training
            card = path.with_suffix('.md').read_text(errors='replace')
            # An export that was cut short has another card, or none.
            return policy.content_hash in card and (
                training.estimator, training.seed, training.world) == (
                    self._config.active.estimator, self._config.trainer.seed,
                    dump(self._config.world))
        return False

    def _already(self):
        return f'already {self.state}, in {self.run_dir}'

    async def _on_start(self, request, response):
        return await self._answer(response, lambda: self._begin(self.settings['resume']))

    async def _on_resume(self, request, response):
        return await self._answer(response, self._resume)

    async def _on_export(self, request, response):
        return await self._answer(response, self._export, while_training=True)

    async def _on_stop(self, request, response):
        if self._state != 'training':
            response.message = f'not training: {self.state}'
            return response
        self._halt.set()
        # The loop comes to this job after the training has ended, behind its checkpoint.
        return await self._answer(response, self._confirm_stop, while_training=True)

    def _confirm_stop(self):
        if self._state == 'failed':
            raise SpecError(f'training failed: {self._failure}')
        return f'{self._state}; the checkpoint is {self.run_dir / CHECKPOINT_FILE}'

    async def _answer(self, response, job, while_training=False):
        """Let the loop do a job, and wait without blocking the executor."""
        if self._state == 'training' and not while_training:
            response.message = self._already()  # at once; the loop may be busy for seconds
            return response
        answer = Future()
        self._jobs.put((job, answer))
        response.success, response.message = await answer
        return response

    def _read_config(self):
        given = {**self.settings, 'env_steps': self.get_parameter('env_steps').value}
        overrides = [text for text in given['overrides'] if text]
        for key, value, default in (('estimator', given['estimator'], ''),
                                    ('trainer.seed', given['seed'], -1),
                                    ('trainer.device', given['device'], ''),
                                    ('trainer.num_worlds', given['num_worlds'], 0),
                                    ('trainer.env_steps', given['env_steps'], 0)):
            if value != default:
                overrides.append(f'{key}={value}')
        return load_training(given['config'], overrides)

    def _on_progress(self, progress):
        self._progress = progress
        self._progress_publisher.publish(DiagnosticStatus(
            name=f'{self.get_name()}: progress', hardware_id=self._config.world.task,
            message=f'step {progress.env_steps} of {progress.total_steps}',
            values=[KeyValue(key=k, value=v) for k, v in flatten(asdict(progress)).items()]))

    def _report(self):
        message = f'training failed: {self._failure}' if self._state == 'failed' else self.state
        self._diagnostics.publish('ERROR' if self._state == 'failed' else 'OK', message, {
            'state': self.state, 'task': self._config.world.task,
            'estimator': self._config.active.estimator, 'seed': self._config.trainer.seed,
            'run_dir': str(self.run_dir), 'model': self._model,
            'progress': asdict(self._progress) if self._progress else {}})


def _one_line(error):
    text = ' '.join(str(error).split())
    return text if isinstance(error, SpecError) else f'{type(error).__name__}: {text}'


def main(args=None) -> int:
    """Run the node; the exit code is 2 if it cannot start."""
    # However long an evaluation or export takes: no training ends without its checkpoint.
    return run(TrainerNode, args, grace_s=None)


if __name__ == '__main__':
    sys.exit(main())
