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

"""Read what the flight recorder wrote, whole or cut off."""

from __future__ import annotations

from array import array
import os
from pathlib import Path
import struct
from typing import NamedTuple, Sequence

from mcap.exceptions import InvalidMagic, McapError
from mcap.records import Attachment, Channel, Message, Metadata
from mcap.stream_reader import StreamReader
import numpy as np
import zstandard

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.flight_file import (
    EVENTS,
    FLIGHT,
    LOGGER,
    MODEL,
    NamedNumbers,
    part_names,
    PATTERN,
    SPEC,
    TICK,
    TOPIC,
    VERSION,
)
from dpg_robot.runtime.recorder import Ring

# Errors of the library on bytes that are no longer a whole file.
_DAMAGE = (McapError, ValueError, struct.error, zstandard.ZstdError)
_NAN = struct.pack('d', float('nan'))


class Flight(NamedTuple):
    """What a recording holds, N ticks of it.

    ``times_ns`` is the wall clock, shape (N,), and ``numbers`` one such array for each of
    :data:`.recorder.Ring.SCALARS`. ``observation``, ``eps``, ``action`` and ``command`` have one
    row for each tick, NaN where it had none: ``has`` tells by name, bool, shape (N,).
    ``models`` are (content hash, path) by number. ``events`` are (time, level, text).
    ``num_missing`` ticks were dropped, or lost to a full disk, and ``damaged`` are the files that
    do not end as they should; what could be read of them is here.
    """

    spec: PolicySpec
    models: dict[int, tuple[str, str]]
    times_ns: np.ndarray
    numbers: dict[str, np.ndarray]
    observation: np.ndarray
    eps: np.ndarray
    action: np.ndarray
    command: np.ndarray
    has: dict[str, np.ndarray]
    events: list[tuple[int, int, str]]
    num_missing: int
    files: list[Path]
    damaged: list[Path]


def read_flight(path: str | os.PathLike) -> Flight:
    """Read one segment, or all segments of the newest recording in a folder.

    :raises SpecError: if there is no recording, or no tick in it.
    """
    path = Path(path)
    paths = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
    if not paths:
        raise SpecError(f'{path} holds no recording: there is no flight_*.mcap')
    files = []
    for each in reversed(paths):  # the newest first, until an older recording comes
        file = _File(each)
        if file.flight:
            if files and files[-1].flight['recording'] != file.flight['recording']:
                break
            files.append(file)
    if not files:
        raise SpecError(f'{path} is no recording of a policy, or was cut off at its very start')
    if not any(len(file.order) for file in files):
        raise SpecError(f'{path} holds no tick')
    return _join(files[::-1])


class _File:
    """What could be read of one file; ``flight`` is empty if that is nothing."""

    def __init__(self, path):
        self.path, self.is_damaged = path, False
        self.flight, self.spec, self.models, self.events = {}, None, {}, []
        self.order, self.times_ns = array('Q'), array('q')
        self.values = {name: bytearray() for name in (TICK, *Ring.PARTS)}
        self._sizes, self._parts = {TICK: len(Ring.SCALARS)}, {}
        topics = {}
        try:
            with open(path, 'rb') as stream:
                for record in StreamReader(stream, validate_crcs=True).records:
                    if isinstance(record, Channel):
                        topics[record.id] = record.topic.removeprefix(TOPIC)
                    elif isinstance(record, Message):
                        self._take(topics[record.channel_id], record)
                    else:
                        self._describe(record)
        except SpecError:  # whole, but not for this reader
            raise
        except OSError as error:
            raise SpecError(f'recording {path} cannot be read: {error.strerror}') from error
        except InvalidMagic as error:
            if not self.flight:
                raise SpecError(f'{path} is not an MCAP file') from error
            self.is_damaged = True
        except _DAMAGE:
            self.is_damaged = True
        if self.spec is None:
            self.flight = {}

    def _take(self, topic, record):
        if topic == EVENTS:
            self.events.append(_read_log(record.data))
        elif topic in self._sizes:
            self._parts[topic] = NamedNumbers.read(record.data, self._sizes[topic]).tobytes()
        if topic == TICK:  # the last of its tick
            self.order.append(record.sequence)
            self.times_ns.append(record.log_time)
            for name, size in self._sizes.items():
                self.values[name] += self._parts.get(name) or size * _NAN
            self._parts = {}

    def _describe(self, record):
        if isinstance(record, Metadata) and record.name == FLIGHT:
            if record.metadata.get('version') != VERSION:
                raise SpecError(f'recording {self.path}: its version must be {VERSION}, got '
                                f'{record.metadata.get("version")}')
            self.flight = record.metadata
        elif isinstance(record, Metadata) and record.name == MODEL:
            self.models[int(record.metadata['model'])] = (
                record.metadata['content_hash'], record.metadata['path'])
        elif isinstance(record, Attachment) and record.name == SPEC:
            self.spec = PolicySpec.from_json(record.data.decode())
            self._sizes |= {part: len(names) for part, names in part_names(self.spec).items()}

    def table(self, name):
        """Return what a topic tells, a row for each tick."""
        return np.frombuffer(self.values[name]).reshape(len(self.order), self._sizes[name])


def _read_log(data):
    seconds, nanoseconds, level = struct.unpack_from('<iIB', data, 4)
    start = 4 + 12 + 4 + len(LOGGER) + 1 + 1  # padded to 4
    size, = struct.unpack_from('<I', data, start)
    text = data[start + 4:start + 3 + size].decode()
    return seconds * 10**9 + nanoseconds, level, text


def _join(files: Sequence[_File]) -> Flight:
    def all_of(name):
        return np.concatenate([file.table(name) for file in files])
    numbers = dict(zip(Ring.SCALARS, all_of(TICK).T))
    parts, dropped = numbers['parts'].astype(int), numbers['dropped']
    order = np.concatenate([file.order for file in files])
    return Flight(
        files[-1].spec, {k: v for file in files for k, v in file.models.items()},
        np.concatenate([file.times_ns for file in files]), numbers,
        **{part: all_of(part) for part in Ring.PARTS},
        has={part: parts >> i & 1 > 0 for i, part in enumerate(Ring.PARTS)},
        events=[event for file in files for event in file.events],
        num_missing=int(dropped[-1] - dropped[0] + order[-1] - order[0]) + 1 - len(order),
        files=[file.path for file in files],
        damaged=[file.path for file in files if file.is_damaged])
