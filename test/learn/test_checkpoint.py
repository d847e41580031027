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

"""Checkpoints: whole or not there, whatever happens; and a resumed run equals any other."""

import errno
import json
import multiprocessing
import os
from pathlib import Path
import pickle
import resource
import signal
import time

import numpy as np
import pytest
from small_training import assert_same_parameters, stop_after, tiny_config, train
import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.checkpoint import load_checkpoint, save_checkpoint, write_atomic

# At least so many in all, and so many of them while a file was being written.
NUM_KILLS, NUM_IN_WRITING = 20, 5
# A checkpoint after every step of the worlds, so that many kills land in one.
CAMPAIGN = ('trainer.env_steps=600', 'trainer.checkpoint_every_steps=2')
# What a clock decides.
TIMES = ('steps_per_second', 'remaining_s', 'train_seconds')


def _train_in_child(run_dir, num_rounds=None):
    limit = {'should_stop': stop_after(num_rounds)} if num_rounds else {}
    train(tiny_config(*CAMPAIGN), run_dir, **limit)


def _start(forks, *args):
    child = forks.Process(target=_train_in_child, args=args)
    child.start()
    return child


def _seconds_to_start(forks, tmp_path):
    for name in ('first', 'second'):  # the first one starts the fork server
        started = time.monotonic()
        _start(forks, tmp_path / name, 1).join()
    return time.monotonic() - started


def _new_partials(run_dir, seen):
    """Return which files were being written when the process died, each counted once."""
    partials = {(path.name, path.stat().st_ino, path.stat().st_mtime_ns)
                for path in run_dir.glob('*.partial')}
    new = partials - seen
    seen |= new
    return sorted(name for name, *_ in new)


def _rows(run_dir):
    rows = [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.fixture(scope='module')
def forks():
    """Return a context whose processes start with everything imported."""
    context = multiprocessing.get_context('forkserver')
    # torch imports its compiler when the first optimiser is made.
    context.set_forkserver_preload(
        ['dpg_robot.experiment', 'torch._dynamo', 'torch.utils.tensorboard'])
    return context


def test_killed_at_random_instants(forks, tmp_path, capsys):
    started = time.monotonic()
    rng = np.random.default_rng(0)
    whole = train(tiny_config(*CAMPAIGN), tmp_path / 'whole')
    startup_s = _seconds_to_start(forks, tmp_path)
    num_kills, num_in_writing, num_finished, seen = 0, 0, 0, set()
    enough = False
    while not enough:
        run_dir = tmp_path / f'run-{num_finished}'
        enough = num_kills >= NUM_KILLS and num_in_writing >= NUM_IN_WRITING
        child = _start(forks, run_dir)
        child.join(None if enough else startup_s * rng.uniform(0.5, 2.2))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            num_kills += 1
            num_in_writing += bool(_new_partials(run_dir, seen))
        else:
            assert child.exitcode == 0
            num_finished += 1
            _check_finished(run_dir, whole)
    with capsys.disabled():
        print(f'\n{num_kills} kills in {time.monotonic() - started:.0f} s (start-up '
              f'{startup_s:.2f} s), {num_in_writing} while a file was being written; '
              f'{num_finished} runs finished')


def _check_finished(run_dir, whole):
    assert not list(run_dir.glob('*.partial'))
    resumed = train(None, run_dir)
    assert resumed.finished
    assert_same_parameters(whole, resumed)
    assert _rows(run_dir) == _rows(whole.run_dir)
    assert [row['env_steps'] for row in _rows(run_dir)] == list(range(20, 601, 20))


@pytest.fixture
def path(tmp_path):
    """Return the path of a good checkpoint."""
    path = tmp_path / 'checkpoint.pt'
    save_checkpoint(path, {'weights': torch.arange(1000.0), 'step': 7})
    return path


def test_round_trip(path):
    state = load_checkpoint(path)
    assert state['step'] == 7
    assert torch.equal(state['weights'], torch.arange(1000.0))
    assert [file.name for file in path.parent.iterdir()] == ['checkpoint.pt']


def test_missing(tmp_path):
    with pytest.raises(SpecError, match='^checkpoint .*/nothing.pt does not exist$'):
        load_checkpoint(tmp_path / 'nothing.pt')


@pytest.mark.parametrize('size', [0, 1, 100, 2000, -1])
def test_truncated(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SpecError, match='^checkpoint .*checkpoint.pt cannot be read; it must be '
                       'a whole file') as caught:
        load_checkpoint(path)
    assert '\n' not in str(caught.value)


class _Gone:
    """Something whose class the reader does not have."""


@pytest.mark.parametrize('garbage', [
    b'garbage', b'\x80\x04garbage', b'PK\x03\x04garbage',
    pickle.dumps(_Gone()).replace(b'_Gone', b'_Lost'), bytes(range(256)) * 40],
    ids=('word', 'pickle', 'zip', 'class', 'bytes'))
def test_garbage(path, garbage):
    path.write_bytes(garbage)
    with pytest.raises(SpecError, match='^checkpoint .*checkpoint.pt cannot be read'):
        load_checkpoint(path)


@pytest.mark.parametrize('content, version', [
    ({'checkpoint_version': 0}, 0), ({}, None), ([1, 2], None)])
def test_other_version(path, content, version):
    torch.save(content, path)
    with pytest.raises(SpecError, match=f'^checkpoint .*checkpoint.pt must have version 10, '
                       f'got {version}$'):
        load_checkpoint(path)


def test_disk_full_leaves_the_old_checkpoint(path, monkeypatch):
    before = path.read_bytes()

    def save(state, file):
        file.write(b'half of it')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save_checkpoint(path, {'step': 8})
    monkeypatch.undo()
    assert path.read_bytes() == before
    save_checkpoint(path, {'step': 9})
    assert load_checkpoint(path)['step'] == 9
    assert [file.name for file in path.parent.iterdir()] == ['checkpoint.pt']


def test_a_full_disk_is_told_though_torch_hides_it(path):
    before, soft, hard = path.read_bytes(), *resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write itself fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            save_checkpoint(path, {'weights': torch.randn(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ['checkpoint.pt']


def _write_for_a_while(path, letter):
    ends = time.monotonic() + 2.0  # from here: the server of forks may take longer to start
    while time.monotonic() < ends:
        write_atomic(path, lambda file: [file.write(letter * 10_000) for _ in range(10)],
                     alone=False)


def test_two_writers_leave_whole_files(forks, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'a' * 100_000)
    writers = [forks.Process(target=_write_for_a_while, args=(path, letter))
               for letter in (b'a', b'b')]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == 100_000 and len(set(content)) == 1
        seen.add(content[:1])
    assert seen == {b'a', b'b'} and [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def test_write_atomic_shows_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = Path(tmp_path, 'file')
    path.write_bytes(b'old')

    def write(file):
        file.write(b'new')
        file.flush()
        assert path.read_bytes() == b'old'
    write_atomic(path, write)
    assert path.read_bytes() == b'new'
