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

"""Worlds in several processes: what goes wrong in one is said, and none is left behind."""

import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from toys import DIE, FAIL, HANG, make_toys

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim import workers as module
from dpg_robot.sim.workers import join_infos, WorkerVector
from dpg_robot.sim.world import make_vector, WorldConfig


@pytest.fixture(scope='module')
def envs():
    """Return three toys in two processes, the first in this one."""
    envs = WorkerVector(make_toys, None, 3, 2)
    envs.reset(seed=0)
    yield envs
    envs.close()


def pids_of(envs):
    return [worker.process.pid for worker in envs._workers]


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except OSError:
        return False


def assert_gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, 'some processes go on'
        time.sleep(0.02)


def test_an_error_in_a_worker_reaches_the_caller_and_the_rest_goes_on(envs):
    with pytest.raises(RuntimeError, match=r'(?s)worlds 1 to 2: .*toys.py.*ArithmeticError: the '
                                           'toy broke'):
        envs.step(np.array([[0.1], [FAIL], [0.1]]))
    with pytest.raises(ArithmeticError, match='the toy broke'):
        envs.step(np.array([[FAIL], [0.1], [0.1]]))
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        envs.get_attr('colour')
    with pytest.raises(RuntimeError, match='pickle'):
        envs.call('get_wrapper_attr', 'secret')
    obs, *_ = envs.step(np.full((3, 1), 0.25))
    np.testing.assert_allclose(obs[:, 0], [0.35, 0.35, 0.35])
    envs.reset()
    assert envs.get_attr('state')[2]['task'] == 0.0


def test_closing_ends_the_processes_after_one_died_and_while_one_hangs(monkeypatch):
    monkeypatch.setattr(module, 'GRACE_S', 0.5)
    envs = WorkerVector(make_toys, None, 3, 3)
    for _ in range(2):  # and again, without waiting for what cannot come
        with pytest.raises(RuntimeError, match='worlds 1 to 1 ended by itself, with exit code 3'):
            envs.step(np.array([[0.0], [DIE], [0.0]]))
    envs._board.actions[:] = HANG
    envs._workers[1].ask('step', ())
    pids = pids_of(envs)
    assert [is_alive(pid) for pid in pids] == [False, True]
    envs.close()
    envs.close()
    assert_gone(pids, seconds=0.1)


@pytest.mark.parametrize('config', ['bad', 'bad in workers'])
def test_a_wrong_configuration_is_a_plain_error(config):
    with pytest.raises(SpecError, match='toy must be good'):
        WorkerVector(make_toys, config, 4, 2)
    names = {child.name for child in multiprocessing.active_children()}
    assert not names & {'worlds 0 to 1', 'worlds 2 to 3'}


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_an_interrupt_of_all_processes_does_not_end_them(envs, name):
    """It reaches all processes of a terminal; the worlds' states are still to be saved."""
    for pid in pids_of(envs):
        os.kill(pid, getattr(signal, name))
    assert len(envs.get_attr('state')) == 3


def test_actions_of_another_shape_are_refused(envs):
    with pytest.raises(ValueError, match=r'^actions must have the shape \(3, 1\), got \(1,\)$'):
        envs.step(np.zeros(1))


def test_after_an_interrupt_no_answer_belongs_to_another_question(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    envs = WorkerVector(make_toys, None, 2, 2)
    try:
        envs.reset(seed=0)
        with monkeypatch.context() as patch:
            patch.setattr(envs._workers[0], 'answer', interrupted)
            with pytest.raises(KeyboardInterrupt):
                envs.step(np.zeros((2, 1)))
        with pytest.raises(RuntimeError, match='must be made anew after an interrupt'):
            envs.get_attr('state')
    finally:
        envs.close()


def test_they_end_with_a_program_that_does_not_close_them(tmp_path):
    parent = run_parent(tmp_path, '')
    assert parent.returncode == 0 and parent.stderr == ''
    assert_gone([int(word) for word in parent.stdout.split()])


def run_parent(folder, end):
    """Return a finished program that made worlds, printed their processes, and ended so."""
    script = folder / 'parent.py'
    script.write_text("""
import os, signal
from dpg_robot.sim.workers import WorkerVector
from toys import make_toys
if __name__ == '__main__':
    envs = WorkerVector(make_toys, None, 3, 3)
    print(*(worker.process.pid for worker in envs._workers), flush=True)
""" + end)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ['PYTHONPATH']])
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': paths}, timeout=60)


def test_they_end_with_their_parent_however_it_dies(tmp_path):
    parent = run_parent(tmp_path, '    os.kill(os.getpid(), signal.SIGKILL)')
    pids = [int(word) for word in parent.stdout.split()]
    assert len(pids) == 2, parent.stderr
    assert_gone(pids)
    assert parent.stderr == ''


@pytest.mark.parametrize('workers', [0, 3, -1])
def test_the_number_of_workers_is_bounded(workers):
    with pytest.raises(SpecError, match=rf'workers must be 1 to num_envs \(2\), got {workers}'):
        make_vector(WorldConfig('reacher'), 2, workers)


def test_infos_of_parts_are_joined():
    first = {'x': np.array([1, 2]), '_x': np.array([True, True])}
    second = {'final_info': {'x': np.array([3.5])}, '_final_info': np.array([True]),
              'final_obs': np.array([None], object)}
    joined = join_infos([first, second], [2, 1])
    assert joined['x'].tolist() == [1, 2, 0] and joined['x'].dtype == int
    assert joined['_x'].tolist() == [True, True, False]
    assert joined['final_info']['x'].tolist() == [0.0, 0.0, 3.5]
    assert joined['_final_info'].tolist() == [False, False, True]
    assert joined['final_obs'].tolist() == [None] * 3
    assert join_infos([{}, {}], [2, 1]) == {}
