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

"""Tests of the strict loader."""

from dataclasses import dataclass, field

import pytest

from dpg_robot.contract.strict import bounded, dump, load, SpecError


@dataclass(frozen=True)
class Inner:
    gain: float = bounded(minimum=0, maximum=10)


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = bounded(1, above=0)
    kind: str = bounded('a', choices=('a', 'b'))
    on: bool = False
    limits: tuple[float | None, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner(1.0))
    noise: dict[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = bounded((), above=0)

    def check(self, name):
        if self.name == 'bad':
            raise SpecError(f'{name}.name must not be bad')


def test_dump_is_the_inverse_of_load():
    data = {'name': 'x', 'count': 3, 'kind': 'b', 'on': True, 'limits': [1.0, None],
            'inner': {'gain': 0.1 + 0.2}, 'noise': {'p': 0.5}, 'rates': [1.5]}
    assert dump(load(Outer, data)) == data


def test_an_integer_is_a_number():
    gain = load(Outer, {'name': 'x', 'inner': {'gain': 2}}).inner.gain
    assert gain == 2.0 and isinstance(gain, float)


@pytest.mark.parametrize('change, message', [
    ({'nmae': 'x'}, 'world.nmae is not a known key; known keys: name, count'),
    ({'name': None}, 'world.name must be a string, got None'),
    ({'count': 0}, 'world.count must be greater than 0, got 0'),
    ({'count': 1.5}, 'world.count must be an integer, got 1.5'),
    ({'count': True}, 'world.count must be an integer, got True'),
    ({'on': 1}, 'world.on must be true or false, got 1'),
    ({'kind': 'c'}, 'world.kind must be one of a, b; got c'),
    ({'limits': 3.0}, 'world.limits must be a list, got 3.0'),
    ({'limits': [None, 'x']}, r"world.limits\[1\] must be a number, got 'x'"),
    ({'limits': [float('nan')]}, r'world.limits\[0\] must be finite, got nan'),
    ({'limits': [10 ** 400]}, r'world.limits\[0\] must be finite, got 1000'),
    ({'inner': 3}, 'world.inner must be a mapping, got 3'),
    ({'inner': {}}, 'world.inner.gain is required and missing'),
    ({'inner': {'gain': -0.1}}, 'world.inner.gain must be at least 0, got -0.1'),
    ({'inner': {'gain': 11}}, 'world.inner.gain must be at most 10, got 11'),
    ({'noise': {'p': 'x'}}, "world.noise.p must be a number, got 'x'"),
    ({'rates': [1, 0]}, r'world.rates\[1\] must be greater than 0, got 0.0'),
    ({'name': 'bad'}, 'world.name must not be bad')])
def test_errors_name_key_rule_and_value(change, message):
    with pytest.raises(SpecError, match=message):
        load(Outer, {'name': 'x', **change}, 'world')


def test_the_document_must_be_a_mapping():
    with pytest.raises(SpecError, match='the document must be a mapping, got None'):
        load(Outer, None)


@pytest.mark.parametrize('text, value', [('1e-3', 1e-3), ('2E4', 2e4)])
def test_a_number_that_yaml_reads_as_a_string(text, value):
    assert load(Outer, {'name': 'x', 'limits': [text]}).limits == (value,)


@pytest.mark.parametrize('text', ['nan', 'inf', '-inf'])
def test_a_string_that_is_no_finite_number_is_refused(text):
    with pytest.raises(SpecError, match='world.limits.0. must be finite'):
        load(Outer, {'name': 'x', 'limits': [text]}, 'world')
