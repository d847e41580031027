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

"""The table of tasks, and pictures of a task with and without its noise."""

import os
from pathlib import Path
import re
import subprocess
import sys
from types import SimpleNamespace

import mujoco.viewer
import numpy as np
from PIL import Image
from policy_files import pose_spec, reach_weights, write_model
import pytest

from dpg_robot import view as module
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import check_world, world_of
from dpg_robot.resources import share_path, task_file
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.sim.tasks import TASKS
from dpg_robot.view import _show, task_table, View, view

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def table():
    return [re.split(r'\s{2,}', line) for line in task_table().splitlines()]


def test_the_table_lists_every_task(table):
    head, _, *rows = table
    assert [row[0] for row in rows] == list(TASKS)
    hand = dict(zip(head, next(row for row in rows if row[0] == 'hand_reach')))
    assert hand == {
        'task': 'hand_reach', 'obs_dim': '78', 'action_dim': '20', 'eps_dim': '20',
        'rate [Hz]': '25', 'steps': '50', 'goal': 'yes', 'reward': 'dense, sparse',
        'reads': 'JointState, Float64MultiArray', 'commands': 'Float64MultiArray'}


def test_the_document_says_the_same(table):
    document = (ROOT / 'docs' / 'tasks.md').read_text().splitlines()
    told = [[cell.strip(' `') for cell in line.split('|')[1:-1]] for line in document
            if re.match(r'\| `\w+` \| \S+-v\d', line)]
    told = [[name, obs, action, action, rate, steps, 'yes' if goal else 'no', rewards]
            for name, _, obs, action, rate, steps, goal, rewards, *_ in told]
    own = [row[:8] for row in table[2:] if not TASKS[row[0]].needs_robot]
    assert told == own


@pytest.fixture
def pictures(monkeypatch):
    """Draw a bar in place of the world, as high as the gripper is far from the base [cm]."""
    def picture(world):
        image = np.zeros((20, 10, 3), np.uint8)
        image[:int(100 * (world.unwrapped.sim.data.site('robot0:grip').xpos[0] - 1.25))] = 255
        return image
    monkeypatch.setattr(module, '_picture', picture)
    monkeypatch.setenv('MUJOCO_GL', 'egl')
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)


def test_a_film_shows_both_worlds_in_real_time(pictures, tmp_path):
    view(View('fetch_reach', seconds=0.4, overrides=('noise.actuator=0.9',)), tmp_path / 'a.gif')
    with Image.open(tmp_path / 'a.gif') as film:
        assert film.size == (20, 20)
        halves, length_ms = [], 0
        for i in range(film.n_frames):
            film.seek(i)
            length_ms += film.info['duration']
            halves.append(np.hsplit(np.asarray(film.convert('L'), float), 2))
    first, last = halves[0], halves[-1]
    assert length_ms == 400  # pictures that are the same are one
    assert (first[0] == first[1]).all() and (last[0] != last[1]).any()


@pytest.mark.parametrize('options, differs', [
    ({}, True), ({'overrides': ('world.noise.actuator=0',)}, False)])
def test_a_strip_has_one_world_above_the_other(pictures, tmp_path, options, differs):
    view(View('fetch_reach', seconds=1.0, seed=3, **options), tmp_path / 'a.png')
    picture = np.asarray(Image.open(tmp_path / 'a.png'))
    assert picture.shape == (40, 80, 3)
    assert (picture[:20] != picture[20:]).any() == differs


def test_a_name_is_chosen_where_there_is_no_screen(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    view(View('fetch_reach', seconds=0.1, policy='zero'))
    assert (tmp_path / 'fetch_reach.gif').exists() and 'fetch_reach.gif' in capsys.readouterr().out


@pytest.mark.parametrize('what, output, message', [
    (View('fetch_reach'), 'a.mp4', r'^--output must end in .gif or .png, got a.mp4$'),
    (View('fetch_reach', seconds=0), 'a.gif', r'^--seconds must be greater than 0 .*, got 0$'),
    (View('fetch_reach', seed=-1), 'a.gif', r'^--seed must be at least 0, got -1$'),
    (View('no_such'), 'a.gif', r'^no_such is not a task'),
    (View('fetch_reach', ('noise.actuator=-1',)), 'a.gif',
     r'^world.noise.actuator must be at least 0, got -1'),
    (View('fetch_reach', ('noise.wind=1',)), 'a.gif', r'^world.noise.wind is not a known key')])
def test_a_mistake_is_named(pictures, what, output, message):
    with pytest.raises(SpecError, match=message):
        view(what, Path(output))


def test_a_policy_of_another_task_is_refused(pictures, tmp_path):
    model = write_model(tmp_path / 'm.onnx', pose_spec(), reach_weights())
    with pytest.raises(SpecError, match='m.onnx must be a policy for fetch_reach, got one for '
                                        'reach$'):
        view(View('fetch_reach', model=model), tmp_path / 'a.gif')


@pytest.mark.parametrize('change, message', [
    ('dead_actuators=2', 'the world must keep the contract of the policy: action must have'),
    ('task=fetch_push', 'the world must keep the contract of the policy: observation must have')])
def test_a_world_that_is_not_the_policys_is_refused(change, message):
    spec = OnnxPolicy(share_path('models', 'fetch_reach.onnx')).spec
    check_world(spec, world_of(spec, ['noise.actuator=0.5']))
    with pytest.raises(SpecError, match=message):
        check_world(spec, world_of(spec, [change]))
    if 'task' not in change:
        with pytest.raises(SpecError, match=message):
            View('fetch_reach', (change,), model=share_path('models', 'fetch_reach.onnx')).open(
                False)


def test_a_policy_acts():
    world, act = View('fetch_reach', model=share_path('models', 'fetch_reach.onnx')).open(False)
    obs, _ = world.reset(seed=0)
    far = np.linalg.norm(obs[:3] - obs[6:])
    for _ in range(20):
        obs, *_ = world.step(act(obs))
    assert np.linalg.norm(obs[:3] - obs[6:]) < 0.05 < far


@pytest.mark.parametrize('noise', [0.0, 0.9])
def test_a_policy_acts_in_the_world_of_the_file(tmp_path, noise):
    path = tmp_path / 'mine.yaml'
    path.write_text(f'world: {{task: fetch_reach, noise: {{actuator: {noise}}}}}')
    world, act = View(str(path), model=share_path('models', 'fetch_reach.onnx')).open(True)
    obs, _ = world.reset(seed=0)
    action = act(obs)
    executed = world.step(action)[4]['executed_action']
    assert np.allclose(executed, action, atol=1e-6) == (noise == 0.0)


def test_a_policy_of_another_robot_is_refused(tmp_path):
    path = tmp_path / 'mine.yaml'
    text = task_file('six_axis_reach').read_text()
    path.write_text(text.replace('control_rate_hz: 20', 'control_rate_hz: 25'))
    with pytest.raises(SpecError, match='^the world must keep the contract of the policy: '
                                        'control_rate_hz must be 20.0 .*, got 25.0$'):
        View(str(path), model=share_path('models', 'six_axis_reach.onnx')).open(True)


def test_nothing_to_draw_with_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'dpg_robot.cli', 'view', 'reacher', '--output', tmp_path / 'a.gif'],
        capture_output=True, text=True, env={**os.environ, 'MUJOCO_GL': 'disable'})
    assert done.returncode == 2
    assert done.stderr.startswith('dpg-robot: a picture must be drawn by EGL or OSMesa')
    assert not (tmp_path / 'a.gif').exists()


def test_a_window_shows_every_step_until_it_is_closed(monkeypatch):
    shown = []

    class Window:
        user_scn = None

        def __init__(self, model, data):
            self.set_texts = lambda texts: shown.append(texts[2])
            self.is_running = lambda: len(shown) < 5
            self.sync = lambda: shown.append(model.site('target0').pos.copy())

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(mujoco.viewer, 'launch_passive', Window)
    slept = []
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append))
    _show(View('fetch_reach', seconds=10.0), noisy=True)
    assert shown[0] == 'with noise' and len(shown) == 5
    assert slept == pytest.approx([0.04, 0.08, 0.12, 0.16])
