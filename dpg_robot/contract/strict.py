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

"""A strict loader from plain data (YAML, JSON) to frozen dataclasses, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from typing import Any


class SpecError(ValueError):
    """Bad input; the message names the thing, the rule and the value."""


def bounded(default=dataclasses.MISSING, *, minimum=None, maximum=None, above=None, choices=None):
    """Declare a dataclass field whose value, or each of its elements, the loader bounds.

    :param minimum: smallest value allowed.
    :param maximum: largest value allowed.
    :param above: the value must be strictly larger than this.
    :param choices: the only values allowed.
    """
    rules = {'minimum': minimum, 'maximum': maximum, 'above': above, 'choices': choices}
    return dataclasses.field(
        default=default, metadata={k: v for k, v in rules.items() if v is not None})


def load(cls: type, data: Any, name: str = ''):
    """Build the dataclass ``cls`` from nested plain data, refusing anything unexpected.

    Afterwards ``cls.check(self, name)`` is called where the class has one, for rules that span
    fields.

    :param cls: a dataclass; its fields may be bool, int, float, str, None unions, dict, tuple
        of any of these, or further dataclasses.
    :param data: a mapping.
    :param name: dotted name of ``data``, used in messages.
    :raises SpecError: naming the key, the rule and the value.
    """
    if not isinstance(data, dict):
        raise SpecError(f'{name or "the document"} must be a mapping, got {data!r}')
    prefix = f'{name}.' if name else ''
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            known = ', '.join(fields)
            raise SpecError(f'{prefix}{key} is not a known key; known keys: {known}')
    hints = typing.get_type_hints(cls)
    values = {}
    for key, field in fields.items():
        if key in data:
            values[key] = _convert(hints[key], data[key], prefix + key)
            _check_rules(values[key], field.metadata, prefix + key)
        elif field.default is dataclasses.MISSING and \
                field.default_factory is dataclasses.MISSING:
            raise SpecError(f'{prefix}{key} is required and missing')
    result = cls(**values)
    if hasattr(cls, 'check'):
        result.check(name)
    return result


def dump(value: Any) -> Any:
    """Turn a dataclass (or any value inside one) into plain data that :func:`load` takes back."""
    if dataclasses.is_dataclass(value):
        return {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [dump(item) for item in value]
    return value


def _convert(hint, value, name):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, name)
    if dataclasses.is_dataclass(hint):
        return load(hint, value, name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f'{name} must be a list, got {value!r}')
        return tuple(_convert(args[0], v, f'{name}[{i}]') for i, v in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise SpecError(f'{name} must be a mapping, got {value!r}')
        item = args[1] if args else Any
        return {str(k): _convert(item, v, f'{name}.{k}') for k, v in value.items()}
    return _convert_scalar(hint, value, name)


def _convert_scalar(hint, value, name):
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3, without a dot, as a string.
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # of an integer that no float holds
            if math.isfinite(value):
                return float(value)
        raise SpecError(f'{name} must be finite, got {value}')
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    words = {float: 'a number', int: 'an integer', bool: 'true or false', str: 'a string'}
    raise SpecError(f'{name} must be {words[hint]}, got {value!r}')


def _check_rules(value, rules, name):
    if isinstance(value, (tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _check_rules(item, rules, f'{name}.{key}' if isinstance(value, dict)
                         else f'{name}[{key}]')
        return
    if value is None:
        return
    if 'minimum' in rules and value < rules['minimum']:
        raise SpecError(f'{name} must be at least {rules["minimum"]}, got {value}')
    if 'maximum' in rules and value > rules['maximum']:
        raise SpecError(f'{name} must be at most {rules["maximum"]}, got {value}')
    if 'above' in rules and value <= rules['above']:
        raise SpecError(f'{name} must be greater than {rules["above"]}, got {value}')
    if 'choices' in rules and value not in rules['choices']:
        choices = ', '.join(map(str, rules['choices']))
        raise SpecError(f'{name} must be one of {choices}; got {value}')
