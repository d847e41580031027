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

"""The flight recorder of a control loop: its side of it, which costs microseconds per tick.

The loop only copies numbers into a ring of shared memory; another process writes the file
(:mod:`.flight_writer`). A thread would not do: whenever it runs, the control thread may wait for
the interpreter's lock, and a crash or a kill of the node would take the newest ticks with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import math
import mmap
import os
from pathlib import Path
import subprocess
import sys
import threading
import time
from typing import Sequence

import numpy as np

from dpg_robot.contract.observation import Fault
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

LEVELS = {'INFO': 20, 'WARN': 30, 'ERROR': 40}
STATES = ('unknown', 'waiting', 'running', 'recovering', 'safe', 'estop')
LEAST_BYTES = 2**20

# How many seconds of ticks the ring holds: the start of the writer, or a disk that is busy.
_RING_S, _LEAST_ROWS = 8.0, 256
# A write to a pipe is whole or not at all up to this size.
_LONGEST_LINE, _LONGEST_TEXT = 4096, 1000
_NAN = math.nan


class Ring:
    """Rows of numbers in shared memory, from one process to another, without a lock.

    ``words`` (integers) are counters, and ``rows``, shape (num_rows, width), hold a tick each:
    :data:`SCALARS`, then the parts of ``places``.
    """

    HEAD, DROPPED, TAIL, RECORDED, BYTES, LOST = range(6)
    SCALARS = ('wall_time_s', 'control_time_s', 'tick_us', 'state_to_command_us', 'driven',
               'faults', 'state', 'model', 'dropped', 'parts')
    PARTS = ('observation', 'eps', 'action', 'command')
    _WORDS, _TEXT_AT, _TEXT_SIZE = 16, 128, 1024

    def __init__(self, descriptor: int, spec: PolicySpec, rate_factor: float = 1.0):
        """Map a file of :attr:`size` bytes.

        :param rate_factor: how much faster than the spec's the ticks are.
        """
        self.num_rows = max(
            _LEAST_ROWS, math.ceil(_RING_S * spec.control_rate_hz * rate_factor))
        sizes = (spec.obs_dim, spec.eps_dim, spec.action_dim, spec.action_dim)
        ends = np.cumsum((len(self.SCALARS), *sizes)).tolist()
        self.places = {part: slice(*ends[i:i + 2]) for i, part in enumerate(self.PARTS)}
        self.width = ends[-1]
        start = self._TEXT_AT + self._TEXT_SIZE
        self.size = start + 8 * self.num_rows * self.width
        if os.fstat(descriptor).st_size < self.size:
            os.ftruncate(descriptor, self.size)
        self._map = mmap.mmap(descriptor, self.size)
        self.words = memoryview(self._map)[:self._TEXT_AT].cast('q')
        self.rows = np.frombuffer(
            self._map, np.float64, self.num_rows * self.width, start
        ).reshape(self.num_rows, self.width)

    @property
    def problem(self) -> str:
        """Return what keeps the writer from writing; empty if nothing does."""
        size = min(self.words[self._WORDS - 1], self._TEXT_SIZE)
        text = bytes(self._map[self._TEXT_AT:self._TEXT_AT + size])
        return text.decode(errors='replace')

    @problem.setter
    def problem(self, text: str) -> None:
        data = text.encode()[:self._TEXT_SIZE]
        self._map[self._TEXT_AT:self._TEXT_AT + len(data)] = data
        self.words[self._WORDS - 1] = len(data)


class FlightRecorder:
    """Record every tick of a policy, and events, in MCAP files in a folder of its own.

    The folder is bounded: it holds segments of an eighth of ``max_bytes``, each readable alone,
    and the oldest goes when there is no room for the next. It outlives the node: a recording that
    begins later goes on in the same folder, under the same bound (docs/flight_recorder.md).

    Use::

        recorder = FlightRecorder(folder, policy.spec, policy.content_hash, model_path=path)
        recorder.step(now_s, observation, action, command, state='running', ...)  # each tick
        recorder.event('WARN', 'the robot was pushed')  # any thread
        recorder.status()                                # for diagnostics, now and then
        recorder.close()                                 # after the last tick

    Make it where waiting is allowed, such as in ``configure``, and before a thread is pinned to a
    core: it starts a process, which inherits that. :meth:`step` is for one thread at a time; it
    and :meth:`event` neither block nor raise: what cannot be recorded is dropped and counted.
    """

    def __init__(self, folder: str | os.PathLike, spec: PolicySpec, content_hash: str,
                 max_bytes: int = 2**28, *, model_path: str | os.PathLike = '',
                 retry_s: float = 10.0, rate_factor: float = 1.0):
        """Start the writing process.

        :param folder: of the recordings, made if it is not there; for one recorder at a time.
        :param content_hash: of the model that has command.
        :param max_bytes: bound of all recordings in the folder, at least 1 MiB.
        :param model_path: file of that model, for replay.
        :param retry_s: how long to wait before trying again, when the disk is full.
        :param rate_factor: how much faster than the spec's the ticks are.
        :raises SpecError: if the folder cannot be used, or the package mcap is not there.
        """
        if max_bytes < LEAST_BYTES:
            raise SpecError(f'max_bytes must be at least {LEAST_BYTES}, got {max_bytes}')
        if importlib.util.find_spec('mcap') is None:
            raise SpecError('flight recorder: the package mcap is not installed: see '
                            'requirements/runtime.txt')
        self.folder, self.spec = Path(folder).expanduser().resolve(), spec
        self._lock = _lock(self.folder)
        ring = os.memfd_create('flight')
        self._ring = Ring(ring, spec, rate_factor)
        self._rows, self._words = self._ring.rows, self._ring.words
        self._rows[:] = 0.0  # no page may be missing when the loop runs
        self._num_rows = self._ring.num_rows
        self._observation, self._eps, self._action, self._command = self._ring.places.values()
        try:
            self._process = _start(ring, self._lock)
        except OSError as error:
            os.close(self._lock)
            raise SpecError('flight recorder: its writing process does not start: '
                            f'{error.strerror}') from error
        finally:
            os.close(ring)
        self._pipe, self._pipe_lock = self._process.stdin.fileno(), threading.Lock()
        self._models, self._model = {}, 0
        self._state, self._kinds, self._num_lines_lost, self._is_open = '', (), 0, True
        self._write_all({'ring': ring, 'folder': str(self.folder), 'max_bytes': max_bytes,
                         'spec': spec.to_json(), 'retry_s': retry_s,
                         'rate_factor': rate_factor})
        os.set_blocking(self._pipe, False)
        self.use_model(content_hash, model_path)

    def use_model(self, content_hash: str, model_path: str | os.PathLike = '') -> None:
        """Note that steps from now on rest on this model, another one of the same contract."""
        if content_hash not in self._models:
            self._models[content_hash] = len(self._models)
            path = os.fsencode(os.path.abspath(model_path) if model_path else '')
            self._send({'model': self._models[content_hash], 'content_hash': content_hash,
                        'path': path.decode(errors='replace')})
        self._model = self._models[content_hash]

    def step(self, now_s: float, observation: np.ndarray | None, action: np.ndarray | None,
             command: np.ndarray, *, eps: np.ndarray | None = None, is_driven: bool = True,
             faults: Sequence[Fault] = (), state: str = 'running', tick_s: float = _NAN,
             latency_s: float = _NAN) -> None:
        """Record a tick. Changes of ``state``, or of what is faulty, become events too.

        :param now_s: time of the tick on the control's clock.
        :param observation: what the policy read, shape (obs_dim,); None if it was not run.
        :param action: what it answered, shape (action_dim,), before any limit; None likewise.
        :param command: what was sent, shape (action_dim,); NaN where nothing was.
        :param eps: the policy's noise, shape (eps_dim,); None for the deterministic policy.
        :param is_driven: whether the command is the policy's.
        :param state: one of :data:`STATES`.
        :param tick_s: time from waking to published [s].
        :param latency_s: time from the state's stamp to published [s].
        """
        words, head = self._words, self._words[0]
        if head - words[2] >= self._num_rows or not self._is_open:
            words[1] += 1
            return
        try:
            row, parts = self._rows[head % self._num_rows], 8
            row[self._command] = command
            if observation is not None:
                row[self._observation] = observation
                parts += 1
            if eps is not None:
                row[self._eps] = eps
                parts += 2
            if action is not None:
                row[self._action] = action
                parts += 4
            # Not struct.pack_into: behind a sleep, with cold caches, it takes three times longer.
            row[_SCALARS] = (
                time.time(), now_s, tick_s * 1e6, latency_s * 1e6, is_driven, len(faults),
                _STATE_INDEX.get(state, 0), self._model, words[1], parts)
            words[0] = head + 1
            if faults or self._kinds or state != self._state:
                self._note_change(state, faults)
        except Exception:  # a wrong shape, say; nothing here may stop a robot
            words[1] += 1

    def _note_change(self, state, faults):
        kinds = tuple((fault.term, fault.kind) for fault in faults)
        if state == self._state and kinds == self._kinds:
            return
        self._state, self._kinds = state, kinds
        level = 'INFO' if not faults else 'ERROR' if state in ('safe', 'estop') else 'WARN'
        self.event(level, ': '.join(filter(None, (state, '; '.join(map(str, faults))))))

    def event(self, level: str, text: str) -> None:
        """Record a line of text; from any thread.

        :param level: 'INFO', 'WARN' or 'ERROR'.
        """
        self._send({'time_ns': time.time_ns(), 'level': LEVELS.get(level, LEVELS['ERROR']),
                    'text': text.encode(errors='replace')[:_LONGEST_TEXT].decode(
                        errors='ignore')})

    def _send(self, line):
        # Each character as its own bytes: those who call have replaced what is none.
        data = json.dumps(line, ensure_ascii=False).encode() + b'\n'
        with self._pipe_lock:  # a closed descriptor could be somebody else's by now
            try:
                if not self._is_open or len(data) > _LONGEST_LINE:
                    raise BlockingIOError
                os.write(self._pipe, data)
            except OSError:  # the pipe is full, or the writer is gone
                self._num_lines_lost += 1

    def _write_all(self, line):
        with contextlib.suppress(OSError):  # a writer that did not start: see problem
            self._process.stdin.write(json.dumps(line).encode() + b'\n')
            self._process.stdin.flush()

    @property
    def problem(self) -> str:
        """Return why nothing is recorded, in one line; empty if all is well."""
        if self._is_open and self._process.poll() is not None:
            return f'the writing process ended with exit status {self._process.returncode}'
        return self._ring.problem

    def status(self) -> dict:
        """Return numbers for diagnostics; may be called by any thread."""
        words, ring = self._words, self._ring
        problem = self.problem
        return {'state': 'off' if problem else 'recording' if self._is_open else 'closed',
                'problem': problem, 'folder': str(self.folder), 'ticks': words[ring.RECORDED],
                'dropped': words[ring.DROPPED] + words[ring.LOST],
                'events_dropped': self._num_lines_lost, 'bytes': words[ring.BYTES]}

    def close(self, timeout_s: float = 5.0) -> None:
        """Have everything written; does nothing the second time."""
        with self._pipe_lock:
            if not self._is_open:
                return
            self._is_open = False
            with contextlib.suppress(OSError):
                os.write(self._pipe, b'{"end": true}\n')
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)  # if not in time, it still goes on alone
        os.close(self._lock)


_SCALARS = slice(len(Ring.SCALARS))
_STATE_INDEX = {state: index for index, state in enumerate(STATES)}


def _lock(folder, patience_s=2.0):
    """Make a folder, and keep other recorders out until the returned descriptor is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise SpecError(f'flight recorder: folder {folder} cannot be used: '
                        f'{error.strerror}') from error
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            # The writer of a node that was killed needs a moment to finish.
            if time.monotonic() > end:
                os.close(descriptor)
                raise SpecError(f'flight recorder: folder {folder} is in use by another '
                                'recorder') from error
            time.sleep(0.05)


def _start(ring, lock):
    # A session of its own: Ctrl-C ends the node, and the end of the node ends the writer.
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    return subprocess.Popen(
        [sys.executable, '-m', 'dpg_robot.runtime.flight_writer'], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, pass_fds=(ring, lock), start_new_session=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})
