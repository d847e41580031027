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

"""The writing process of the flight recorder: from the ring to segments on the disk.

It ends when its standard input does, which happens however the node ends, and takes what is left
in the ring with it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
import signal
import sys
import time
from typing import Callable

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.runtime.flight_file import PATTERN, Segment
from dpg_robot.runtime.recorder import LEVELS, Ring

_POLL_S, _FLUSH_S = 0.05, 1.0
# Of the bound: what one segment, one flush and the indices may take; and what stays when the disk
# is full, because others may eat whatever room is made.
_SEGMENT, _FLUSH, _SPARE, _STAYS = 1 / 8, 1 / 32, 1 / 32, 1 / 4
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Store:
    """The segments in a folder: the newest that fit, whatever the disk does.

    When the disk is full, the oldest segments make room, down to a quarter of the bound. When
    that does not help, nothing is written, ``problem`` says why, and it tries again ``retry_s``
    later.
    """

    def __init__(self, folder: Path, spec: PolicySpec, max_bytes: int, retry_s: float):
        """Take over a folder; nothing is written yet."""
        self.problem, self.bytes, self.num_lost = '', 0, 0
        self._folder, self._spec, self._max_bytes = folder, spec, max_bytes
        self._retry_s, self._retry_at_s = retry_s, float('-inf')
        self._recording, self._models = str(time.time_ns()), []
        self._segment: Segment | None = None
        self._num_pending = self._num_gap = 0

    def add_model(self, model: dict) -> None:
        """Note a model in this segment and in all that follow."""
        self._models.append(model)
        if self._segment:
            self._attempt(lambda segment: segment.add_model(model))

    def add_event(self, time_ns: int, level: int, text: str) -> None:
        """Write an event, if possible."""
        self._attempt(lambda segment: segment.add_event(time_ns, level, text))

    def add_tick(self, *tick) -> None:
        """Write a tick, see :meth:`Segment.add_tick`, or count it as lost."""
        if self._attempt(lambda segment: segment.add_tick(*tick)):
            self._num_pending += 1
            if self._segment.pending_bytes >= self._max_bytes * _FLUSH:
                self.flush()
        else:
            self._lose(1)

    def flush(self) -> None:
        """Have all on the disk, and begin the next segment when this one is full."""
        segment = self._segment
        if segment is None:
            return
        self._make_room(segment.pending_bytes)
        try:
            size = segment.flush()
            self._num_pending = 0
            if size >= self._max_bytes * _SEGMENT:
                self._segment = None
                segment.close()
        except OSError as error:
            self._fail(segment, error)

    def close(self) -> None:
        """End the segment."""
        self.flush()
        if self._segment:
            try:
                self._segment.close()
            except OSError as error:
                self._fail(self._segment, error)
        self._segment = None

    def _attempt(self, write: Callable[[Segment], None]) -> bool:
        while segment := self._segment or self._open():
            try:
                write(segment)
                return True
            except OSError as error:
                self._fail(segment, error)
        return False

    def _open(self):
        while time.monotonic() >= self._retry_at_s:
            self._make_room(0)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._segment = Segment(
                    self._next_path(), self._spec, self._recording, self._models)
            except OSError as error:
                self._fail(None, error)
                continue
            if self.problem:
                self._segment.add_event(
                    time.time_ns(), LEVELS['WARN'],
                    f'recording again; {self._num_gap} ticks are lost: {self.problem}')
            self.problem, self._num_gap = '', 0
            return self._segment
        return None

    def _next_path(self):
        # A number first: the clock of a robot may be wrong.
        files = self._files()
        number = int(files[-1].name.split('_')[1]) + 1 if files else 1
        return self._folder / time.strftime(f'flight_{number:06}_%Y%m%dT%H%M%SZ.mcap',
                                            time.gmtime())

    def _fail(self, segment, error):
        """Leave a segment that cannot be written; make room, or wait before the next attempt."""
        self._segment = None
        if segment:
            segment.abandon()
            self._lose(self._num_pending)
            self._num_pending = 0
        self.problem = f'{self._folder}: {error.strerror}'
        files = self._files()
        if error.errno in _FULL and sum(map(_size, files[1:])) >= self._max_bytes * _STAYS:
            _remove(files[0])
        else:
            self._retry_at_s = time.monotonic() + self._retry_s

    def _lose(self, number):
        self.num_lost += number
        self._num_gap += number

    def _make_room(self, num_bytes):
        files = self._files()
        sizes = [_size(path) for path in files]
        limit = self._max_bytes * (1 - _SPARE) - num_bytes
        while sum(sizes) > limit and len(files) > (self._segment is not None):
            _remove(files.pop(0))
            sizes.pop(0)
        self.bytes = sum(sizes)

    def _files(self):
        return sorted(self._folder.glob(PATTERN))


def _size(path):
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()


class _Lines:
    """Lines of JSON from a pipe, as they come."""

    def __init__(self, descriptor):
        self.is_ended, self._descriptor, self._rest = False, descriptor, b''

    def first(self):
        """Wait for the first line, and return it; None if there is none."""
        while b'\n' not in self._rest:
            data = os.read(self._descriptor, 2**16)
            if not data:
                return None
            self._rest += data
        os.set_blocking(self._descriptor, False)
        line, _, self._rest = self._rest.partition(b'\n')
        return json.loads(line)

    def read(self):
        """Return the lines that have come."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, 2**16):
                self._rest += data
            self.is_ended = True
        *lines, self._rest = self._rest.split(b'\n')
        return [json.loads(line) for line in lines]


class Writing:
    """From a ring and a pipe to a store."""

    def __init__(self, lines: _Lines, ring: Ring, store: Store):
        """Connect them."""
        self._lines, self._ring, self._store = lines, ring, store
        self._has_end, self._seen = False, 0
        self._flush_at_s = time.monotonic() + _FLUSH_S

    def run(self) -> None:
        """Write until the lines end."""
        while not self._lines.is_ended:
            time.sleep(_POLL_S)
            self._poll()
        if not self._has_end:
            self._store.add_event(time.time_ns(), LEVELS['ERROR'],
                                  'the node ended without closing the recording')
        self._store.close()
        self._tell()

    def _poll(self):
        for line in self._lines.read():
            if 'model' in line:
                self._store.add_model(line)
            elif 'text' in line:
                self._store.add_event(line['time_ns'], line['level'], line['text'])
            self._has_end |= 'end' in line
        # Other processors may see the head before the row it stands for, but not a poll later.
        head = self._ring.words[Ring.HEAD]
        self._drain(head if self._lines.is_ended else self._seen)
        self._seen = head
        if time.monotonic() >= self._flush_at_s:
            self._store.flush()
            self._flush_at_s = time.monotonic() + _FLUSH_S
        self._tell()

    def _drain(self, head):
        ring, words = self._ring, self._ring.words
        for number in range(words[Ring.TAIL], head):
            self._store.add_tick(number, ring.rows[number % ring.num_rows], ring.places)
            words[Ring.TAIL] = number + 1

    def _tell(self):
        words, store = self._ring.words, self._store
        words[Ring.LOST], words[Ring.BYTES] = store.num_lost, store.bytes
        words[Ring.RECORDED] = words[Ring.TAIL] - store.num_lost
        if self._ring.problem != store.problem:
            self._ring.problem = store.problem


def main() -> None:
    """Write what the process that started this one records."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the node ends this, and has last words
    with contextlib.suppress(OSError):
        os.nice(5)  # never before the control loop
    lines = _Lines(sys.stdin.fileno())
    setup = lines.first()
    if setup is None:
        return
    spec = PolicySpec.from_json(setup['spec'])
    store = Store(Path(setup['folder']), spec, setup['max_bytes'], setup['retry_s'])
    Writing(lines, Ring(setup['ring'], spec, setup['rate_factor']), store).run()


if __name__ == '__main__':
    main()
