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

"""The whole way, small: train, export, two node processes, topics, report."""

import json
import subprocess
import sys

from PIL import Image
import pytest

from dpg_robot.contract.strict import SpecError
from dpg_robot.demo import Drive, LOCK, run_demo
from dpg_robot.experiment import load_training
from dpg_robot.learn.evaluate import wilson_interval
from dpg_robot.learn.trainer import own_folder


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """Run a short demo where an earlier one was; return its folder and what it printed."""
    path = tmp_path_factory.mktemp('demo') / 'runs'
    path.mkdir()
    (path / 'report.json').write_text('an earlier one')
    (path / 'config.yaml').write_text('its settings')
    done = subprocess.run(
        [sys.executable, '-m', 'dpg_robot.cli', 'demo', '--env-steps', '2000', '--episodes', '3',
         '--run-dir', str(path), '--json', str(path) + '.json'],
        capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return path, done.stdout


def test_report_holds_what_was_promised(demo):
    folder, _ = demo
    report = json.loads((folder / 'report.json').read_text())
    assert report['env_steps'] == 2000
    assert report['episodes'] == 3
    assert report['train_seconds'] > 0
    assert 0 <= report['parity_max_abs'] <= 1e-5
    assert report['noise']['actuator'] == 0.3
    for key in ('tick_us', 'state_to_command_us'):
        assert 0 < report[key]['p50'] <= report[key]['p99'] <= report[key]['max']
    # A command rests on a state that is older than the tick that used it.
    assert report['tick_us']['p50'] < report['state_to_command_us']['p50']
    assert {'model', 'seed', 'versions', 'success_in_process'} <= report.keys()
    assert json.loads(folder.with_name('runs.json').read_text()) == report


def test_successes_came_through_the_topics(demo):
    folder, out = demo
    success = json.loads((folder / 'report.json').read_text())['success_over_topics']
    assert success in (0, 1 / 3, 2 / 3, 1)
    low, high = wilson_interval(round(3 * success), 3)
    assert f'through topics: success {success:.2f} over 3 episodes ' \
        f'(95 % interval {low:.2f} to {high:.2f})' in out


def test_pictures_can_be_opened(demo):
    folder, out = demo
    for name in ('learning_curve.png', 'latency.png'):
        assert min(Image.open(folder / name).size) > 200
    if 'frames are left out' not in out:
        assert Image.open(folder / 'arm.gif').n_frames > 50


def test_an_earlier_demo_is_kept(demo):
    folder, out = demo
    old = folder.with_name('runs.1')
    assert str(old) in out
    assert (old / 'report.json').read_text() == 'an earlier one'


@pytest.mark.parametrize('name', ['lock', LOCK])
def test_a_demo_that_still_runs_is_left_where_it_is(tmp_path, name):
    """Or it would go on in the folder of the second one."""
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / 'config.yaml').write_text('its settings')
    with own_folder(tmp_path / 'demo', name), \
            pytest.raises(SpecError, match='another process trains'):
        run_demo(load_training('fetch_reach'), tmp_path / 'demo', 1)
    assert [path.name for path in tmp_path.iterdir()] == ['demo']


def test_safe_ticks_are_those_behind_the_first_driven_one():
    drive = Drive()
    for told, expected in (
            ({'state': 'inactive', 'lifecycle': 'inactive'}, 0),
            ({'state': 'waiting', 'safe_ticks': '4'}, 4),
            ({'state': 'running', 'safe_ticks': '7'}, 0),
            ({'state': 'safe', 'safe_ticks': '9'}, 2), ({'state': 'inactive'}, 2),
            ({'state': 'running', 'safe_ticks': '10'}, 3)):
        drive.note(told)
        assert drive.safe_ticks == expected
    assert drive.diagnostics == told
