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

"""Tests of messages for topics, on messages that are plain objects."""

from array import array
from types import SimpleNamespace

import numpy as np
from policy_files import joint_spec
import pytest

from dpg_robot.contract.messages import group_by_topic, message_class, MessageWriter
from dpg_robot.contract.spec import ActionTerm
from dpg_robot.contract.strict import SpecError


def joints(name=(), position=(), velocity=()):
    """Return something like a JointState."""
    return SimpleNamespace(
        name=list(name), position=array('d', position), velocity=array('d', velocity),
        header=SimpleNamespace(frame_id='', stamp=None))


def test_group_by_topic_keeps_places():
    groups = group_by_topic(joint_spec().observation)
    assert list(groups) == ['joint_states']
    assert groups['joint_states'].places.tolist() == [0, 1, 2, 3]


def action_terms(frames=('base', 'base')):
    return [ActionTerm(name, topic, 'test_msgs/msg/Joints', (field,), 'rad', (1.0,), (-1.0,),
                       (1.0,), (None,), (None,), frame_id=frame)
            for name, topic, field, frame in (
                ('a', 'one', 'position[a]', frames[0]), ('b', 'two', 'position[b]', 'base'),
                ('c', 'one', 'velocity[a]', frames[1]))]


def test_one_message_for_each_topic_with_stamp_and_frame():
    writer = MessageWriter(action_terms(), lambda name: joints())
    (one, first), (two, second) = writer.write(np.array([1.0, 2.0, 3.0]), 'now')
    assert (one, two) == ('one', 'two')
    assert (first.position[0], first.velocity[0], second.position[0]) == (1.0, 3.0, 2.0)
    assert (first.header.stamp, first.header.frame_id) == ('now', 'base')


def test_a_topic_that_is_not_finite_is_left_out():
    writer = MessageWriter(action_terms(), lambda name: joints())
    assert [topic for topic, _ in writer.write(np.array([1.0, 2.0, np.nan]), 'now')] == ['two']


def test_one_topic_has_one_frame():
    with pytest.raises(SpecError, match='topic one: .* one frame_id, got base, tool'):
        MessageWriter(action_terms(('base', 'tool')), lambda name: joints())


def test_message_class():
    pose = message_class('geometry_msgs/msg/PoseStamped')()
    assert pose.pose.orientation.w == 1.0


@pytest.mark.parametrize('name', ['none_msgs/msg/Pose', 'geometry_msgs/msg/None'])
def test_a_message_type_that_is_not_installed(name):
    with pytest.raises(SpecError, match=f'message type {name} is not installed'):
        message_class(name)
