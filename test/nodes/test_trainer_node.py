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

"""Tests of trainer_node as a process: its services, topics, states and last words."""

import json
import re
import signal
import subprocess
import sys
import time

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from policy_files import pose_spec, reach_weights, write_model
import pytest
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from ros_harness import values
from small_training import assert_same_parameters, tiny_config, train
from std_msgs.msg import String
from std_srvs.srv import Trigger
import yaml

from dpg_robot.contract.strict import dump
from dpg_robot.experiment import open_trainer
from dpg_robot.learn.run_log import Progress
from dpg_robot.nodes.trainer_node import PARAMETERS
from dpg_robot.runtime.onnx_policy import OnnxPolicy

STATUS = 'trainer_node: training'
ENDLESS = 'trainer.env_steps=1000000'
FAIL_ONCE = """
import sys
from dpg_robot.learn.learner import Learner
from dpg_robot.nodes.trainer_node import main
update, calls = Learner.update, []
def fail_once(self, *given):
    calls.append(1)
    if len(calls) == 15:
        raise FloatingPointError('the weights\\nare gone')
    return update(self, *given)
Learner.update = fail_once
sys.exit(main())
"""
# One start of the interpreter for many starts of the node.
START_EACH = """
import json, sys
from dpg_robot.nodes.trainer_node import main
for case in json.loads(sys.argv[1]):
    arguments = [part for item in case.items() for part in ('-p', '%s:=%s' % item)]
    print(main(['--ros-args', *arguments]), flush=True)
"""


def write_config(path, *overrides):
    path.write_text(yaml.safe_dump(dump(tiny_config(*overrides))))
    return path


class Trainer:
    """Talk to a trainer_node."""

    def __init__(self, ros, name='trainer_node'):
        self.ros, self.name = ros, name
        self.progress = ros.listen(DiagnosticStatus, f'/{name}/progress', 1, transient=True)
        self.models = ros.listen(String, f'/{name}/model', 1, transient=True)

    def call(self, service, kind=Trigger, request=None):
        """Call one of the node's services; return its answer and how long it took [s]."""
        return self.ros.call(kind, f'/{self.name}/{service}', request or kind.Request())

    def expect(self, service, success, message):
        answer, _ = self.call(service)
        assert answer.success is success, answer.message
        assert re.fullmatch(message, answer.message), answer.message
        return answer.message

    def set(self, name, value):
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value) \
            if isinstance(value, str) else ParameterValue(
                type=ParameterType.PARAMETER_INTEGER, integer_value=value)
        parameter = Parameter(name=name, value=value)
        answer, _ = self.call('set_parameters', SetParameters,
                              SetParameters.Request(parameters=[parameter]))
        return answer.results[0]

    def wait_state(self, state, timeout=30.0):
        return values(self.ros.status(
            STATUS, lambda status: values(status)['state'] == state, timeout))

    def newest_step(self):
        return int(values(self.progress[-1][1])['env_steps']) if self.progress else 0

    def wait_step(self, step):
        self.ros.wait(lambda: self.newest_step() >= step, 30.0, f'step {step}')


@pytest.fixture(scope='module')
def endless(ros):
    """Return a node in the middle of a training that does not end by itself."""
    config = write_config(ros.folder / 'endless.yaml', ENDLESS)
    trainer = Trainer(ros, 'endless')
    trainer.run_dir = ros.folder / 'endless'
    trainer.parameters = {'config': config, 'run_dir': trainer.run_dir, 'export_episodes': 2}
    trainer.process = ros.start('trainer_node', ['-r', '__node:=endless'], **trainer.parameters)
    trainer.wait_step(100)
    yield trainer
    if trainer.process.poll() is None:
        ros.stop(trainer.process)


def test_progress_and_diagnostics(ros, endless):
    status = endless.progress[-1][1]
    assert status.name == 'endless: progress'
    assert re.fullmatch(r'step \d+ of 1000000', status.message)
    told = values(status)
    assert set(told) == set(Progress.__dataclass_fields__)
    assert float(told['steps_per_second']) > 0
    status = ros.status('endless: training')
    assert (status.level, status.message) == (DiagnosticStatus.OK, 'training')
    told = values(status)
    assert told['estimator'] == 'doubly_robust'
    assert told['run_dir'] == str(endless.run_dir)
    assert int(told['progress.env_steps']) > 0


def test_answers_come_at_once_while_training(endless, capsys):
    begun = endless.newest_step()
    request = DescribeParameters.Request(names=[entry.name for entry in PARAMETERS])
    seconds = []
    for _ in range(50):
        answer, waited = endless.call('start')
        assert (answer.success, answer.message) == (
            False, f'already training, in {endless.run_dir}')
        seconds.append(waited)
        answer, waited = endless.call('describe_parameters', DescribeParameters, request)
        seconds.append(waited)
    with capsys.disabled():
        p50, p99 = np.percentile(seconds, [50, 99])
        print(f'\nanswers while training: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, '
              f'max {1e3 * max(seconds):.1f} ms')
    assert max(seconds) < 0.5
    endless.wait_step(begun + 20)


def test_parameters_are_described(endless):
    request = DescribeParameters.Request(names=[entry.name for entry in PARAMETERS])
    answer, _ = endless.call('describe_parameters', DescribeParameters, request)
    for entry, descriptor in zip(PARAMETERS, answer.descriptors, strict=True):
        assert descriptor.description == entry.description
        assert descriptor.read_only == entry.read_only
    changeable = {entry.name for entry in PARAMETERS if not entry.read_only}
    assert changeable == {'env_steps', 'export_path', 'export_episodes', 'export_every_steps',
                          'export_when_done'}
    assert not endless.set('seed', 3).successful
    assert not endless.set('env_steps', -3).successful


def test_export_while_training(ros, endless):
    before = endless.newest_step()
    path = endless.run_dir / 'model.onnx'
    message = endless.expect('export', True, r'exported .*, content hash [0-9a-f]{64}')
    policy = OnnxPolicy(path)
    assert message == f'exported {path}, content hash {policy.content_hash}'
    assert policy.spec.training.env_steps >= before
    assert policy.spec.training.evaluation['episodes'] == 2
    ros.wait(lambda: endless.models, what='the path of the model')
    assert endless.models[-1][1].data == str(path)
    endless.wait_step(policy.spec.training.env_steps + 20)


def test_export_as_it_goes(ros, endless):
    count = len(endless.models)
    assert endless.set('export_every_steps', 30).successful
    ros.wait(lambda: len(endless.models) >= count + 2, 30.0, 'two more models')
    assert endless.set('export_every_steps', 0).successful


def test_stop_resume_and_export_when_stopped(endless):
    run_dir = endless.run_dir
    endless.expect('resume', False, f'already training, in {run_dir}')
    (run_dir / 'checkpoint.pt').unlink(missing_ok=True)
    endless.expect('stop', True, f'idle; the checkpoint is {run_dir}/checkpoint.pt')
    # The answer came after the checkpoint was written.
    stopped_at = open_trainer(None, run_dir, resume=True).env_steps
    assert stopped_at >= endless.newest_step()
    time.sleep(0.5)
    assert endless.newest_step() <= stopped_at
    endless.expect('stop', False, 'not training: idle')
    endless.expect('export', True, r'exported .*, content hash [0-9a-f]{64}')
    assert OnnxPolicy(run_dir / 'model.onnx').spec.training.env_steps == stopped_at
    endless.expect('resume', True, f'training from step {stopped_at} of 1000000, in {run_dir}')
    endless.wait_step(stopped_at + 20)


def test_signals_leave_a_checkpoint(ros, endless):
    stopped_at = stop_by(signal.SIGINT, ros, endless)
    endless.process = ros.start('trainer_node', ['-r', '__node:=endless'], **endless.parameters)
    # It goes on by itself where the other stopped.
    ros.wait(lambda: f'from step {stopped_at} of 1000000' in endless.process.log.read_text(),
             30.0, 'the resumed training')
    assert stop_by(signal.SIGTERM, ros, endless) > stopped_at


def test_who_asks_at_the_end_is_answered(ros, endless):
    if endless.process.poll() is not None:
        endless.process = ros.start(
            'trainer_node', ['-r', '__node:=endless'], **endless.parameters)
    endless.expect('export', True, 'exported .*')
    waiting = [ros.ask(Trigger, '/endless/export', Trigger.Request()) for _ in range(3)]
    ros.wait(waiting[0].done, 30.0, 'the first of them')
    assert ros.stop(endless.process) == 0
    ros.wait(lambda: all(answer.done() for answer in waiting), 2.0, 'the others')
    for answer in waiting:
        assert re.match('exported|shutting down$', answer.result().message)


def stop_by(number, ros, trainer):
    """Send a signal while training, and return the step in the checkpoint."""
    trainer.wait_step(trainer.newest_step() + 20)
    assert ros.stop(trainer.process, number) == 0
    text = trainer.process.log.read_text()
    stopped_at = int(re.findall(r'stopped at step (\d+); to resume, call the resume service, or '
                                rf'start again with run_dir:={trainer.run_dir}\n', text)[-1])
    assert open_trainer(None, trainer.run_dir, resume=True).env_steps == stopped_at
    assert 'Traceback' not in text
    return stopped_at


def test_a_training_by_hand(ros, tmp_path):
    """Start, finish, extend; and the result is that of a training without a node."""
    config = write_config(tmp_path / 'short.yaml')
    run_dir = tmp_path / 'run'
    process = ros.start('trainer_node', config=config, run_dir=run_dir, autostart=False,
                        env_steps=60, export_episodes=0, export_path=tmp_path / 'policy.onnx')
    trainer = Trainer(ros)
    trainer.expect('stop', False, 'not training: idle')
    trainer.expect('resume', False, f'nothing to resume in {run_dir}: there is no checkpoint.pt')
    trainer.expect('export', False, f'{run_dir} holds no checkpoint to export: there is no '
                   'checkpoint.pt')
    refused = trainer.set('export_path', str(tmp_path / 'policy.txt'))
    assert not refused.successful
    assert refused.reason == 'a policy must be written to a file that ends in .onnx, got ' \
        f'{tmp_path}/policy.txt'
    trainer.expect('start', True, f'training from step 0 of 60, in {run_dir}')
    ros.wait(lambda: trainer.models, 30.0, 'the model of the finished training')
    assert trainer.models[-1][1].data == str(tmp_path / 'policy.onnx')
    told = trainer.wait_state('finished')
    assert told['model.content_hash'] == OnnxPolicy(tmp_path / 'policy.onnx').content_hash
    for service in ('start', 'resume'):
        trainer.expect(service, False, f'the training in {run_dir} is finished; to continue it, '
                       'set parameter env_steps to more than 60')
    trainer.expect('export', True, 'exported .*')
    assert trainer.set('env_steps', 120).successful
    trainer.expect('resume', True, f'training from step 60 of 120, in {run_dir}')
    assert trainer.wait_state('finished')['progress.env_steps'] == '120'
    assert ros.stop(process) == 0
    assert_same_parameters(train(None, run_dir),
                           train(tiny_config('trainer.env_steps=120'), tmp_path / 'other'))


def test_a_finished_training_has_its_policy(ros, tmp_path):
    """Also where a node ended between the last checkpoint and the export."""
    config = write_config(tmp_path / 'short.yaml', 'trainer.env_steps=60')
    run_dir = tmp_path / 'run'
    train(tiny_config('trainer.env_steps=60'), run_dir)
    path, made_ns = run_dir / 'model.onnx', []
    for line in 'exported', 'is finished, and its policy', 'exported', 'exported':
        if len(made_ns) == 2:  # somebody else's policy lies there now
            write_model(path, pose_spec(), reach_weights())
        if len(made_ns) == 3:  # an export was cut short
            path.with_suffix('.md').unlink()
        process = ros.start('trainer_node', config=config, run_dir=run_dir, export_episodes=0)
        trainer = Trainer(ros)
        ros.wait(lambda: trainer.models, 30.0, 'the model of the finished training')
        assert trainer.models[-1][1].data == str(path)
        content_hash = OnnxPolicy(path).content_hash
        ros.status(STATUS, lambda s: values(s)['model.content_hash'] == content_hash)
        assert ros.stop(process) == 0
        assert line in process.log.read_text()
        made_ns.append(path.stat().st_mtime_ns)
    assert made_ns[0] == made_ns[1] < made_ns[2] < made_ns[3]


def test_a_failure_is_told_and_survived(ros, tmp_path):
    config = write_config(tmp_path / 'failing.yaml', 'trainer.checkpoint_every_steps=20')
    process = ros.start('trainer_node', code=FAIL_ONCE, config=config, run_dir=tmp_path / 'run',
                        export_when_done=False)
    trainer = Trainer(ros)
    status = ros.status(STATUS, lambda status: values(status)['state'] == 'failed', 30.0)
    line = 'training failed: FloatingPointError: the weights are gone'
    assert (status.level, status.message) == (DiagnosticStatus.ERROR, line)
    assert process.log.read_text().count(line) == 1
    assert 'Traceback' not in process.log.read_text()
    trainer.expect('stop', False, 'not training: failed')
    trainer.expect('resume', True, r'training from step 40 of 200, in .*')
    trainer.wait_state('finished')
    assert ros.stop(process) == 0
    assert_same_parameters(train(None, tmp_path / 'run'), train(tiny_config(), tmp_path / 'other'))


def test_startup_errors_are_one_line(ros, tmp_path):
    config = write_config(tmp_path / 'short.yaml', 'trainer.env_steps=4')
    train(tiny_config('trainer.env_steps=4'), tmp_path / 'run')
    (tmp_path / 'file').write_text('')
    here = {'config': config, 'run_dir': tmp_path / 'run'}
    cases = {
        'config file nowhere.yaml cannot be read: No such file or directory':
            {'config': 'nowhere.yaml', 'autostart': 'false'},
        'learner.estimator must be one of denoising, doubly_robust, critic, disturbance_critic, '
        'model, discriminative, reinforce; got magic':
            {**here, 'estimator': 'magic'},
        'learner.sigma must be greater than 0, got -1.0':
            {**here, 'overrides': "['learner.sigma=-1']"},
        'trainer.device must be one of cpu, cuda, warp_cpu; got tpu':
            {**here, 'device': 'tpu'},
        'trainer.num_worlds must be 2, as the training in .*/run began with, got 3':
            {**here, 'num_worlds': 3},
        'trainer.seed must be 0, as the training in .*/run began with, got 7':
            {**here, 'seed': 7},
        '.*/run already holds a training; resume it, or choose another folder':
            {**here, 'resume': 'false'},
        'a policy must be written to a file that ends in .onnx, got .*/model.txt':
            {**here, 'export_path': tmp_path / 'model.txt'},
        'run_dir .*/file/run cannot be used: Not a directory':
            {**here, 'run_dir': tmp_path / 'file' / 'run'}}
    process = ros.start('trainer_node', seed=-2)
    assert process.wait(timeout=60) == 2
    assert re.fullmatch(r'trainer_node: parameter seed must be from -1 to 2147483647, got -2\n',
                        process.log.read_text())
    told = subprocess.run(
        [sys.executable, '-c', START_EACH, json.dumps(list(cases.values()), default=str)],
        capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout.split() == ['2'] * len(cases)
    for message, line in zip(cases, told.stderr.splitlines(), strict=True):
        assert re.fullmatch(f'trainer_node: {message}', line), line
