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

"""Tests of field paths, on messages that are plain objects."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from dpg_robot.contract.fields import (
    check_fields,
    Field,
    FieldFault,
    FieldReader,
    FieldWriter,
    parse_field,
)
from dpg_robot.contract.strict import SpecError


def joints(name=(), position=(), velocity=()):
    """Return something like a JointState."""
    return SimpleNamespace(
        name=list(name), position=array('d', position), velocity=array('d', velocity),
        header=SimpleNamespace(frame_id='', stamp=None))


def pose(x=0.0, y=0.0, z=0.0):
    """Return something like a Pose with covariance."""
    return SimpleNamespace(
        pose=SimpleNamespace(position=SimpleNamespace(x=x, y=y, z=z)), covariance=np.zeros(4))


def read(fields, message):
    out = np.zeros(len(fields))
    FieldReader(fields).read(message, out)
    return out.tolist()


@pytest.mark.parametrize('text, field', [
    ('pose.position.x', Field('pose.position.x')),
    ('data[12]', Field('data', index=12)),
    ('a.data[0]', Field('a.data', index=0)),
    ('position[elbow_joint]', Field('position', element='elbow_joint')),
    ('position[arm/joint 1]', Field('position', element='arm/joint 1')),
    ('position[\u00b2]', Field('position', element='\u00b2'))])
def test_parse(text, field):
    assert parse_field(text) == field
    assert str(field) == text


def test_read_in_the_order_of_the_fields():
    assert read(('pose.position.z', 'pose.position.x'), pose(1.0, 2.0, 3.0)) == [3.0, 1.0]
    assert read(('data[2]', 'data[0]'), SimpleNamespace(data=[1.0, 2.0, 3.0])) == [3.0, 1.0]


def test_joints_are_found_by_name_and_again_when_the_order_changes():
    reader = FieldReader(('position[b]', 'position[a]', 'velocity[b]'))
    out = np.zeros(3)
    reader.read(joints('ab', [1, 2], [3, 4]), out)
    assert out.tolist() == [2, 1, 4]
    reader.read(joints('xba', [9, 2, 1], [9, 4, 3]), out)
    assert out.tolist() == [2, 1, 4]


@pytest.mark.parametrize('fields, message, kind, words', [
    (('position[c]',), joints('ab', [1, 2]), 'missing', 'joint c must appear once in name'),
    (('position[a]',), joints('aa', [1, 2]), 'missing', 'joint a .* found 2'),
    (('velocity[a]',), joints('ab', [1, 2]), 'size', r'velocity .* each name \(2\), got 0'),
    (('position[a]',), joints('ab', [1, 2, 3]), 'size', r'position .* each name \(2\), got 3'),
    (('position[2]',), joints('ab', [1, 2]), 'size', 'at least 3 elements, got 2'),
    (('twist.x',), pose(), 'missing', 'twist.x is not a number'),
    (('pose.position',), pose(), 'missing', 'pose.position is not a number'),
    (('effort[0]',), joints(), 'missing', 'effort is not an array')])
def test_faults(fields, message, kind, words):
    with pytest.raises(FieldFault, match=words) as caught:
        read(fields, message)
    assert caught.value.kind == kind


def test_write_scalars_and_arrays():
    message = pose()
    FieldWriter(('pose.position.y', 'covariance[1]', 'covariance[0]'), message, 'topic').write(
        np.array([1.0, 2.0, 3.0]))
    assert message.pose.position.y == 1.0
    assert message.covariance.tolist() == [3.0, 2.0, 0.0, 0.0]


def test_write_joints_with_their_names():
    message = joints()
    FieldWriter(('position[b]', 'position[a]', 'velocity[a]', 'velocity[b]'), message,
                'topic').write(np.array([1.0, 2.0, 3.0, 4.0]))
    assert message.name == ['b', 'a']
    assert message.position == array('d', [1, 2])
    assert message.velocity == array('d', [4, 3])


@pytest.mark.parametrize('fields, words', [
    (('position[0]', 'position[2]'), 'topic: every element of position .* element 1 of 3'),
    (('position[a]', 'position[b]', 'velocity[b]'), 'every element of velocity'),
    (('position[0]', 'position[a]'), r'different elements, got position\[0\] and position\[a\]'),
    (('torque',), 'topic: SimpleNamespace must have a number at torque'),
    (('name[0]',), r'must have an array of numbers at name\[0\]')])
def test_what_cannot_be_written(fields, words):
    with pytest.raises(SpecError, match=words):
        FieldWriter(fields, joints(), 'topic')


@pytest.mark.parametrize('value, field', [
    (3, 'data'), (array('B'), 'data[0]'), (np.zeros(2, np.int32), 'data[1]')])
def test_integers_hold_no_command(value, field):
    message = SimpleNamespace(data=value)
    check_fields((field,), message, 'position')
    with pytest.raises(SpecError, match='topic: .* floating-point numbers at .* got integers'):
        FieldWriter((field,), message, 'topic')


def test_a_fixed_array_cannot_grow():
    with pytest.raises(SpecError, match='covariance must have at most 4 elements, got 5'):
        FieldWriter(tuple(f'covariance[{i}]' for i in range(5)), pose(), 'topic')


def test_check_fields_wants_names_for_joints():
    with pytest.raises(SpecError, match=r'position: .* at data\[elbow\]'):
        check_fields(('data[elbow]',), SimpleNamespace(data=array('d')), 'position')
