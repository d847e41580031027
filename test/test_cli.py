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

"""The command line, run as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dpg_robot.cli import main

SMALL = ['--set', 'learner.hidden=[16]', '--set', 'learner.denoiser_hidden=[16]',
         '--set', 'learner.gradient_hidden=[16]', '--set', 'learner.batch_size=16',
         '--set', 'trainer.warmup_steps=100', '--set', 'trainer.eval_episodes=10']


def run(*arguments, check=True):
    """Run dpg-robot; return the finished process with its output as text."""
    done = subprocess.run([sys.executable, '-m', 'dpg_robot.cli', *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """Return the folder of a short finished training with an exported model."""
    path = tmp_path_factory.mktemp('cli') / 'run'
    run('train', 'fetch_reach', '--run-dir', path, '--env-steps', 400, *SMALL)
    run('export', path, '--episodes', 10)
    return path


def test_training_shows_return_success_speed_and_remaining_time(tmp_path):
    done = run('train', 'fetch_reach', '--run-dir', tmp_path, '--env-steps', 1000, *SMALL)
    bar = done.stderr.split('\r')[-1]
    assert re.search(r'1000/1000 \[00:\d\d<00:00, .*step/s, return -\d+\.\d\d, success \d\.\d\d, '
                     r'evaluated \d\.\d\d\]', bar), bar
    assert f'dpg-robot export {tmp_path}' in done.stdout


def test_interrupted_training_resumes(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-m', 'dpg_robot.cli', 'train', 'fetch_reach', '--run-dir',
         str(tmp_path), '--env-steps', '100000', *SMALL],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not (tmp_path / 'metrics.jsonl').exists() or \
            not (tmp_path / 'metrics.jsonl').read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f'dpg-robot train --resume --run-dir {tmp_path}' in out
    rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    steps = json.loads(rows[-1])['env_steps']
    done = run('train', '--resume', '--run-dir', tmp_path, '--env-steps', steps + 400)
    assert 'done' in done.stdout
    assert yaml.safe_load((tmp_path / 'config.yaml').read_text())['learner']['hidden'] == [16]


@pytest.mark.parametrize('task', [[], ['fetch_reach']])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(run_dir, tmp_path, task):
    (tmp_path / 'config.yaml').write_bytes((run_dir / 'config.yaml').read_bytes())
    changes = ['--env-steps', '400', *SMALL] if task else []
    main(['train', *task, '--resume', '--run-dir', str(tmp_path), *changes])
    assert (tmp_path / 'metrics.jsonl').read_text().count('\n') == 2  # at steps 200 and 400
    assert (tmp_path / 'checkpoint.pt').exists()


def test_inspect_prints_the_contract_and_the_card_is_the_same(run_dir):
    text = run('inspect', run_dir / 'model.onnx').stdout
    for needed in ('end_effector/command', 'geometry_msgs/msg/TwistStamped', '-0.8125 to 0.8125',
                   'm/s', '25 Hz', 'doubly_robust', 'world.noise.actuator', '0.3',
                   'over 10 episodes, 95 % interval'):
        assert needed in text
    assert text == (run_dir / 'model.md').read_text()


def test_evaluate_writes_what_it_prints(run_dir, tmp_path):
    file = tmp_path / 'deep' / 'result.json'
    done = run('evaluate', run_dir / 'model.onnx', '--episodes', 10, '--json', file,
               '--set', 'noise.actuator=0.1')
    result = json.loads(file.read_text())
    assert f'success {result["success"]:.3f} over 10 episodes' in done.stdout
    assert f'return {result["return_mean"]:.3f}' in done.stdout
    again = run('evaluate', run_dir / 'model.onnx', '--episodes', 10, '--set',
                'noise.actuator=0.1')
    assert again.stdout == done.stdout


@pytest.mark.parametrize('arguments, message', [
    (['train'], 'name a task'),
    (['train', 'no_such_task'], 'no_such_task is not a task; tasks: adroit_door, ant'),
    (['train', 'fetch_reach', '--env-steps', '0'], 'trainer.env_steps must be at least 1, got 0'),
    (['train', 'fetch_reach', '--estimator', 'magic'], 'learner.estimator must be one of'),
    (['train', 'fetch_reach', '--device', 'tpu'], 'trainer.device must be one of cpu, cuda'),
    (['train', 'fetch_reach', '--num-worlds', '0'], 'trainer.num_worlds must be at least 1'),
    (['train', 'fetch_reach', '--estimator', 'model', '--set', 'trainer.algorithm=on_policy'],
     'on_policy.estimator must be one of denoising'),
    (['train', 'fetch_reach', '--set', 'trainer.algorithm=on_policy', '--set',
      'on_policy.horizon=1', '--num-worlds', '1'],
     'on_policy.horizon times trainer.num_worlds must be at least 2, got 1'),
    (['train', 'fetch_reach', '--set', 'learner.sigma'], "got 'learner.sigma'"),
    (['train', 'fetch_reach', '--set', 'world.noise.actuator=-0.1'],
     'world.noise.actuator must be at least 0, got -0.1'),
    (['train', '--resume', '--run-dir', '{tmp}/none'], 'none holds no training to resume'),
    (['train', 'fetch_reach', '--resume', '--run-dir', '{tmp}/none'],
     'none holds no training to resume: there is no config.yaml and no checkpoint.pt'),
    (['train', 'fetch_reach', '--run-dir', '{run}'], 'already holds a training'),
    (['train', '--resume', '--run-dir', '{run}', '--seed', '5'], 'trainer.seed must be 0'),
    (['evaluate', '{tmp}/none.onnx'], 'none.onnx cannot be read'),
    (['evaluate', '{run}/config.yaml'], 'must hold exactly one dpg_robot.content_hash'),
    (['evaluate', '{run}/model.onnx', '--set', 'noise.wind=1'], 'world.noise.wind'),
    (['inspect', '{tmp}'], 'cannot be read'),
    (['export', '{tmp}'], 'holds no checkpoint'),
    (['bench', 'gradient', 'reacher', '--estimators', 'critik'],
     'estimators must be among denoising, doubly_robust'),
    (['bench', 'gradient', 'reacher', '--transitions', '1000'],
     'transitions must be at least 2000, so that some are held out, got 1000'),
    (['bench', 'gradient', 'reacher', '--output', '{tmp}/others/file/x.json'],
     '--output must be a file in a folder that can be made, got '),
    (['evaluate', '{run}/model.onnx', '--json', '{tmp}/others/file/x.json'],
     '--json must be a file in a folder that can be made, got '),
    (['evaluate', '{run}/model.onnx', '--set', 'task=reacher'],
     'robot must be fetch as that of the policy, got reacher'),
    (['train', 'fetch_reach', '--run-dir', '{tmp}/others/file'],
     'others/file cannot be used: File exists'),
    (['bench', 'gradient', 'reacher', '--pairs', '4'], 'pairs must be at least 8, 4 for each'),
    (['bench', 'gradient', 'reacher', '--sweep', 'noise', '0.1', '--pairs', '4'],
     'pairs must be at least 8, 4 for each'),
    (['bench', 'throughput', 'reacher', '--num-worlds', '1'],
     'trainer.workers must be at most num_worlds (1), got 2'),
    (['train', 'reacher', '--env-steps', '100000000000', '--set',
      'trainer.replay_capacity=100000000000'], 'trainer.replay_capacity must be at most '),
    (['demo', '--set', 'world.task=hopper', '--run-dir', '{tmp}/new'],
     'the demo must be of fetch_reach, whose settings it has, got hopper'),
    (['demo', '--run-dir', '{tmp}/others'], 'the demo must have a folder that is new or empty'),
    (['demo', '--run-dir', '{tmp}/others/file'], 'the demo must have a folder that is new or'),
])
def test_a_mistake_is_one_line_and_status_2(arguments, message, run_dir, tmp_path, capsys):
    defaults = [] if '--run-dir' in arguments or arguments[0] != 'train' else \
        ['--run-dir', '{tmp}/run']
    (tmp_path / 'others').mkdir()
    (tmp_path / 'others' / 'file').write_text('precious')
    with pytest.raises(SystemExit) as stopped:
        main([a.format(tmp=tmp_path, run=run_dir) for a in arguments + defaults])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('dpg-robot: '), lines
    assert message in lines[0]
    assert (tmp_path / 'others' / 'file').read_text() == 'precious'


def test_an_unwritable_place_is_a_mistake_too(run_dir, tmp_path):
    target = tmp_path / 'file'
    target.write_text('')
    done = run('export', run_dir, '--episodes', 10, '--output', target / 'model.onnx',
               check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert os.path.getsize(run_dir / 'model.onnx') > 0
