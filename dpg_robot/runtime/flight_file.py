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

"""What is in a file of the flight recorder, and how it is written.

Everything is a stock ROS message in CDR, so that every viewer opens the file and ``ros2 bag``
plays it: numbers as sensor_msgs/JointState, because it carries the name of each element and
PlotJuggler plots it by that name (a Float64MultiArray would show numbers without names), and
events as rcl_interfaces/Log, which Foxglove's log panel shows.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
import struct
from typing import Iterable

from mcap.writer import Writer
import numpy as np

from dpg_robot.contract.fields import parse_field
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.runtime.recorder import Ring

PATTERN = f'flight_{6 * "[0-9]"}_*.mcap'
TOPIC = '/flight/'
FLIGHT, MODEL, SPEC = 'dpg_robot.flight', 'dpg_robot.model', 'policy_spec.json'
TICK, EVENTS, LOGGER = 'tick', 'events', 'flight'
VERSION = '1'

_TIME = '=' * 80 + '\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n'
_JOINT_STATE = ('std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\n'
                'float64[] effort\n' + '=' * 80 + '\nMSG: std_msgs/Header\n'
                'builtin_interfaces/Time stamp\nstring frame_id\n' + _TIME)
_LOG = ('uint8 DEBUG=10\nuint8 INFO=20\nuint8 WARN=30\nuint8 ERROR=40\nuint8 FATAL=50\n'
        'builtin_interfaces/Time stamp\nuint8 level\nstring name\nstring msg\nstring file\n'
        'string function\nuint32 line\n' + _TIME)
# What the library adds to each message: its own record, and its place in the index.
_RECORD_BYTES = 31 + 16
_NO_MORE = bytes(8)  # velocity and effort of a JointState, both empty


def part_names(spec: PolicySpec) -> dict[str, tuple[str, ...]]:
    """Return the names of the elements of each topic."""
    observation = tuple(f'{term.name}.{parse_field(field).element or field}'
                        for term in spec.observation for field in term.fields)
    action = tuple(f'{term.name}.{parse_field(name).element or name}'
                   for term in spec.action for name in term.joints or term.fields)
    eps = tuple(f'eps.{i}' for i in range(spec.eps_dim))
    return {'observation': observation, 'eps': eps, 'action': action, 'command': action}


class _Cdr:
    """Bytes of a message, each number aligned to its size."""

    def __init__(self):
        self.data = bytearray()

    def number(self, form, value):
        size = struct.calcsize(form)
        self.data += bytes(-len(self.data) % size) + struct.pack(f'<{form}', value)

    def string(self, text):
        encoded = text.encode() + b'\0'
        self.number('I', len(encoded))
        self.data += encoded

    def stamp(self, time_ns):
        self.number('i', time_ns // 10**9 & 0x7fffffff)
        self.number('I', time_ns % 10**9)


_HEAD = b'\0\1\0\0'  # CDR, little endian


class NamedNumbers:
    """A JointState whose names stay: only its stamp and its positions are written each time."""

    def __init__(self, names: Iterable[str]):
        """Prepare the bytes that stay."""
        names, cdr = list(names), _Cdr()
        cdr.string('')
        cdr.number('I', len(names))
        for name in names:
            cdr.string(name)
        cdr.number('I', len(names))
        # The stamp before this has 8 bytes, so the alignment stays.
        self._middle = bytes(cdr.data) + bytes(-len(cdr.data) % 8)

    def write(self, time_ns: int, values: np.ndarray) -> bytes:
        """Return a message; ``values`` are float64, one for each name."""
        stamp = struct.pack('<iI', time_ns // 10**9 & 0x7fffffff, time_ns % 10**9)
        return b''.join((_HEAD, stamp, self._middle, values.tobytes(), _NO_MORE))

    @staticmethod
    def read(data: bytes, size: int) -> np.ndarray:
        """Return the values of a message that has so many."""
        end = len(data) - len(_NO_MORE)
        return np.frombuffer(data, '<f8', size, end - 8 * size)


def _log(time_ns, level, text):
    cdr = _Cdr()
    cdr.stamp(time_ns)
    cdr.number('B', level)
    for value in (LOGGER, text, '', ''):
        cdr.string(value)
    cdr.number('I', 0)
    return _HEAD + bytes(cdr.data)


class Segment:
    """One file of a recording, complete in itself. All methods raise OSError if it is not so."""

    def __init__(self, path: Path, spec: PolicySpec, recording: str, models: Iterable[dict]):
        """Begin a file, which is not there yet.

        :param recording: what all segments of one recording share.
        :param models: as for :meth:`add_model`.
        """
        self.path, self.pending_bytes, self._whole_bytes = path, 0, 0
        # Unbuffered, so that nothing is left to write when it is abandoned.
        self._file = open(path, 'xb', buffering=0)
        # Chunks end where flush says so: between two ticks.
        self._writer = Writer(self._file, chunk_size=2**31)
        try:
            self._begin(spec, recording, models)
            self.flush()
        except OSError:
            self.abandon()
            raise

    def _begin(self, spec, recording, models):
        self._writer.start(profile='ros2', library='dpg_robot')
        self._writer.add_metadata(FLIGHT, {
            'version': VERSION, 'recording': recording, 'task': spec.task, 'robot': spec.robot,
            'control_rate_hz': repr(spec.control_rate_hz)})
        self._writer.add_attachment(0, 0, SPEC, 'application/json', spec.to_json().encode())
        for model in models:
            self.add_model(model)
        numbers, log = (self._writer.register_schema(name, 'ros2msg', text.encode())
                        for name, text in (('sensor_msgs/msg/JointState', _JOINT_STATE),
                                           ('rcl_interfaces/msg/Log', _LOG)))
        names = part_names(spec)
        self._tick = self._topic(TICK, numbers, Ring.SCALARS)
        self._parts = [self._topic(part, numbers, names[part]) for part in Ring.PARTS]
        self._events = self._writer.register_channel(TOPIC + EVENTS, 'cdr', log)

    def _topic(self, name, schema, names):
        return self._writer.register_channel(TOPIC + name, 'cdr', schema), NamedNumbers(names)

    def add_model(self, model: dict) -> None:
        """Note a model.

        :param model: its number in ticks (``model``), its ``content_hash`` and its ``path``.
        """
        self._writer.add_metadata(MODEL, {key: str(value) for key, value in model.items()})

    def add_tick(self, number: int, row: np.ndarray, places: dict) -> None:
        """Add a row of a :class:`.recorder.Ring`, and where its parts are.

        :param number: of the tick since the recording began.
        """
        # Whole microseconds: that is what a float of today's date can tell.
        time_ns, parts = round(row[0] * 1e6) * 1000, int(row[len(Ring.SCALARS) - 1])
        for i, place in enumerate(places.values()):
            if parts >> i & 1:
                channel, message = self._parts[i]
                self._add(channel, time_ns, message.write(time_ns, row[place]), number)
        channel, message = self._tick
        self._add(channel, time_ns, message.write(time_ns, row[:len(Ring.SCALARS)]), number)

    def add_event(self, time_ns: int, level: int, text: str) -> None:
        """Add a line of text, with a level of the Python standard."""
        self._add(self._events, time_ns, _log(time_ns, level, text), 0)

    def _add(self, channel, time_ns, data, number):
        self._writer.add_message(channel, time_ns, data, time_ns, number & 0xffffffff)
        self.pending_bytes += len(data) + _RECORD_BYTES

    def flush(self) -> int:
        """Have all on the disk, and return the size of the file."""
        if not self.path.exists():  # bytes of a deleted file would go nowhere
            raise FileNotFoundError(errno.ENOENT, 'the file was deleted')
        self._writer.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        if self.pending_bytes:
            self.pending_bytes, self._whole_bytes = 0, size
        return size

    def close(self) -> None:
        """Write the index at the end of the file."""
        self._writer.finish()
        self._writer.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Leave the file as it was after the last flush, because no more can be written.

        One without any message is removed.
        """
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), self._whole_bytes)
        with contextlib.suppress(OSError):
            self._file.close()
            if not self._whole_bytes:
                self.path.unlink()
