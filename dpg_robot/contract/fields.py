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

"""Field paths of a spec ('pose.position.x', 'data[3]', 'position[elbow_joint]') in messages.

Messages are duck-typed: anything with the right attributes will do, so this needs no ROS.
"""

from __future__ import annotations

from array import array
from numbers import Real
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import numpy as np

from dpg_robot.contract.strict import SpecError


class Field(NamedTuple):
    """A parsed field: the attribute path and, for an array, which element."""

    path: str
    index: int | None = None
    element: str | None = None

    @property
    def is_scalar(self) -> bool:
        """Return whether the field is no element of an array."""
        return self.index is None and self.element is None

    def __str__(self) -> str:
        """Return it as a spec writes it."""
        key = self.index if self.element is None else self.element
        return self.path if key is None else f'{self.path}[{key}]'


class FieldFault(Exception):
    """A message lacks what a field asks for; ``kind`` is 'missing' or 'size'."""

    def __init__(self, kind: str, detail: str):
        """Keep the kind beside the message."""
        super().__init__(detail)
        self.kind = kind


def parse_field(text: str) -> Field:
    """Split a field of a spec into its parts; the spec has checked its form already."""
    path, _, key = text.rstrip(']').partition('[')
    if not key:
        return Field(path)
    is_index = key.isascii() and key.isdigit()
    return Field(path, index=int(key)) if is_index else Field(path, element=key)


class FieldReader:
    """Read the fields of one term from messages of one topic."""

    def __init__(self, fields: tuple[str, ...]):
        """Prepare the getters, one for each run of fields in the same array."""
        self._parts = []
        for position, field in enumerate(map(parse_field, fields)):
            if field.is_scalar:
                self._parts.append(_ScalarPart(field.path, position))
                continue
            by_name = field.element is not None
            last = self._parts[-1] if self._parts else None
            if not isinstance(last, _ArrayPart) or \
                    (last.path, last.by_name) != (field.path, by_name):
                self._parts.append(_ArrayPart(field.path, position, by_name))
            self._parts[-1].keys.append(field.element if by_name else field.index)

    def read(self, message: Any, out: np.ndarray) -> None:
        """Copy the fields into ``out``, shape (number of fields,).

        :raises FieldFault: if the message lacks an element, or an array has the wrong size.
        """
        for part in self._parts:
            part.read(message, out)


class _ScalarPart:

    def __init__(self, path, start):
        self.path, self.start = path, start
        self._get = attrgetter(path)

    def read(self, message, out):
        try:
            out[self.start] = self._get(message)
        except (AttributeError, TypeError, ValueError) as error:
            raise FieldFault('missing', f'{self.path} is not a number here ({error})') from error


class _ArrayPart:

    def __init__(self, path, start, by_name):
        self.path, self.start, self.by_name, self.keys = path, start, by_name, []
        self._get = attrgetter(path)
        self._names, self._pick = None, None

    def read(self, message, out):
        try:
            values = self._get(message)
            pick = self._find(message, values) if self.by_name else self._pick or self._use(
                self.keys)
            out[self.start:self.start + len(self.keys)] = pick(values)
        except IndexError as error:
            raise FieldFault('size', f'{self.path} must have at least {max(self.keys) + 1} '
                             f'elements, got {len(values)}') from error
        except (AttributeError, TypeError, ValueError) as error:
            raise FieldFault('missing', f'{self.path} is not an array of numbers here '
                             f'({error})') from error

    def _use(self, indices):
        self._pick = itemgetter(*indices)
        return self._pick

    def _find(self, message, values):
        # Comparing the names takes far less time than looking each one up again.
        if message.name != self._names:
            self._use(self._look_up(list(message.name)))
            self._names = list(message.name)
        if len(values) != len(self._names):
            raise FieldFault('size', f'{self.path} must have one element for each name '
                             f'({len(self._names)}), got {len(values)}')
        return self._pick

    def _look_up(self, names):
        for joint in self.keys:
            if names.count(joint) != 1:
                raise FieldFault('missing', f'joint {joint} must appear once in name, found '
                                 f'{names.count(joint)} in {names}')
        return [names.index(joint) for joint in self.keys]


class FieldWriter:
    """Write a vector into one message, which is filled again and again."""

    def __init__(self, fields: tuple[str, ...], message: Any, name: str):
        """Size the message's arrays: by the largest index, or one element for each joint.

        :param message: an empty message; it is kept, and :meth:`write` fills it.
        :param name: what to call the topic in errors.
        :raises SpecError: if the message lacks a field, or holds integers there, if an array
            would keep a gap that no field fills, or if two fields are one element.
        """
        self.message = message
        check_fields(fields, message, name, is_written=True)
        self._scalars, self._arrays, arrays = [], [], {}
        parsed = [parse_field(text) for text in fields]
        joints = list(dict.fromkeys(f.element for f in parsed if f.element is not None))
        for position, field in enumerate(parsed):
            if field.is_scalar:
                self._scalars.append((*_parent(message, field.path), position))
            else:
                index = field.index if field.element is None else joints.index(field.element)
                places = arrays.setdefault(field.path, {})
                if index in places:
                    raise SpecError(f'{name}: fields must be different elements, got '
                                    f'{fields[places[index]]} and {fields[position]}')
                places[index] = position
        for path, places in arrays.items():
            by_name = any(f.path == path and f.element is not None for f in parsed)
            size = len(joints) if by_name else max(places) + 1
            _check_no_gap(path, places, size, name)
            self._arrays.append((_view(_sized_array(message, path, size, name)),
                                 np.array(list(places)), np.array(list(places.values()))))
        if joints:
            message.name = joints

    def write(self, values: np.ndarray) -> Any:
        """Fill the message and return it.

        :param values: shape (number of fields,), finite.
        """
        for parent, leaf, position in self._scalars:
            setattr(parent, leaf, float(values[position]))
        for target, indices, positions in self._arrays:
            target[indices] = values[positions]
        return self.message


def _check_no_gap(path, places, size, name):
    missing = [index for index in range(size) if index not in places]
    if missing:
        raise SpecError(f'{name}: every element of {path} must be named by a field, '
                        f'missing element {missing[0]} of {size}')


def _parent(message, path):
    head, _, leaf = path.rpartition('.')
    return (attrgetter(head)(message) if head else message), leaf


def _sized_array(message, path, size, name):
    parent, leaf = _parent(message, path)
    current = getattr(parent, leaf)
    if isinstance(current, array):
        # Assigning an array.array spares rclpy a check of every element.
        setattr(parent, leaf, array(current.typecode, [0] * size))
    elif size > len(current):
        raise SpecError(f'{name}: {path} must have at most {len(current)} elements, got {size}')
    return getattr(parent, leaf)


def _view(target):
    """Return numpy's view of an array, which writes to that array itself."""
    return target if isinstance(target, np.ndarray) else np.frombuffer(target, target.typecode)


def check_fields(fields: tuple[str, ...], message: Any, name: str,
                 is_written: bool = False) -> None:
    """Check that a message type has the fields, on an empty message of that type.

    :param name: what to call the term in errors.
    :param is_written: whether they are to be written: no integer holds a command, or a state.
    :raises SpecError: naming the field that the type lacks.
    """
    for text in fields:
        field = parse_field(text)
        try:
            value = attrgetter(field.path)(message)
        except AttributeError:
            value = None
        wanted = Real if field.is_scalar else (array, np.ndarray)
        if not isinstance(value, wanted) or isinstance(value, bool) or (
                field.element is not None and not hasattr(message, 'name')):
            kind = 'a number' if field.is_scalar else 'an array of numbers'
            raise SpecError(f'{name}: {type(message).__name__} must have {kind} at {text}')
        if is_written and not _is_floating(value):
            raise SpecError(f'{name}: {type(message).__name__} must have floating-point numbers '
                            f'at {text}, got integers')


def _is_floating(value):
    if isinstance(value, array):
        return value.typecode in 'fd'
    return value.dtype.kind == 'f' if isinstance(value, np.ndarray) else isinstance(value, float)
