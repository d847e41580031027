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

"""Tests of the observation assembler, on messages that are plain objects."""

from array import array
import dataclasses
from types import SimpleNamespace

import numpy as np
from policy_files import joint_spec, pose_spec
import pytest

from dpg_robot.contract.observation import Fault, ObservationAssembler


def joints(name=('shoulder', 'elbow'), position=(1.0, 2.0), velocity=(3.0, 4.0)):
    return SimpleNamespace(name=list(name), position=array('d', position),
                           velocity=array('d', velocity))


def pose(x, y, z):
    return SimpleNamespace(
        pose=SimpleNamespace(position=SimpleNamespace(x=x, y=y, z=z)))


def assemble(message, received_s=10.0, now_s=10.01, stamp_s=None):
    assembler = ObservationAssembler(joint_spec())
    assembler.update('joint_states', message, received_s, stamp_s)
    return assembler.assemble(now_s)


def test_the_vector_follows_the_spec():
    vector, faults = assemble(joints())
    assert faults == ()
    assert vector.dtype == np.float32
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_order_of_the_joints_in_the_message_does_not_matter():
    message = joints(('wheel', 'elbow', 'shoulder'), (9.0, 2.0, 1.0), (9.0, 4.0, 3.0))
    assert assemble(message)[0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_newest_message_counts():
    assembler = ObservationAssembler(joint_spec())
    for value, time in ((1.0, 10.0), (2.0, 10.01)):
        assembler.update('joint_states', joints(position=(value, value)), time)
    assert assembler.assemble(10.02)[0].tolist() == [2.0, 2.0, 3.0, 4.0]
    assert assembler.newest_s == 10.01


def test_ages_are_in_the_seconds_of_the_simulation():
    slow, fast = (ObservationAssembler(joint_spec(), rate_factor) for rate_factor in (0.1, 10.0))
    age_s = joint_spec().observation[0].max_age_s
    for assembler, real_s in ((slow, 10.0 * age_s), (fast, 0.1 * age_s)):
        assembler.update('joint_states', joints(), 100.0)
        assert assembler.assemble(100.0 + 0.99 * real_s)[0] is not None
        assert assembler.valid_until_s == pytest.approx(100.0 + real_s)
        assert assembler.assemble(100.0 + 1.01 * real_s)[0] is None


def test_nothing_received():
    vector, faults = ObservationAssembler(joint_spec()).assemble(0.0)
    assert vector is None
    assert [(fault.term, fault.kind) for fault in faults] == [
        ('position', 'never received'), ('velocity', 'never received')]


@pytest.mark.parametrize('message, kinds, words', [
    (joints(('shoulder', 'wrist')), {'position': 'missing', 'velocity': 'missing'},
     'joint elbow must appear once'),
    (joints(position=(1.0,)), {'position': 'size'}, 'position must have one element for each'),
    (joints(velocity=()), {'velocity': 'size'}, 'velocity must have one element for each'),
    (joints(position=(np.nan, 1.0)), {'position': 'not finite'}, 'position[shoulder] is nan'),
    (joints(velocity=(0.0, -np.inf)), {'velocity': 'not finite'}, 'velocity[elbow] is -inf'),
    (joints(velocity=(5.5, 0.0)), {'velocity': 'range'},
     'velocity[shoulder] must lie within -5 and 5 rad/s, got 5.5'),
    (joints(position=(1e300, 0.0)), {'position': 'range'}, 'got 1e+300'),
    (SimpleNamespace(name=[]), {'position': 'missing', 'velocity': 'missing'}, 'no attribute')])
def test_a_bad_message_names_its_terms(message, kinds, words):
    vector, faults = assemble(message)
    assert vector is None
    assert {fault.term: fault.kind for fault in faults} == kinds
    assert words in str(faults[0])
    assert str(faults[0]).startswith(faults[0].term)


def test_bounds_belong_to_the_range():
    assert assemble(joints(velocity=(5.0, -5.0)))[1] == ()


@pytest.mark.parametrize('received_s, stamp_s, is_stale', [
    (10.0, None, False), (9.91, None, False), (9.89, None, True),
    (9.99, 9.95, False), (9.99, 9.89, True),  # arrived just now, measured long ago
    (9.89, 11.0, True),  # a stamp from the future does not make it fresh
    (9.89, 10.04, True),  # nor does one slightly ahead make it younger than its arrival
    (10.05, None, False), (10.2, None, True)])  # received before the clock was set back
def test_age(received_s, stamp_s, is_stale):
    _, faults = assemble(joints(), received_s, 10.0, stamp_s)
    assert [fault.kind for fault in faults] == ['stale', 'stale'] * is_stale
    if is_stale:
        assert 'joint_states must be at most 0.1 s old' in faults[0].detail


def test_each_term_has_its_own_age():
    assembler = ObservationAssembler(pose_spec())
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.5)
    assembler.update('hand/pose', pose(1.0, 2.0, 3.0), 9.98, 9.97)
    vector, _ = assembler.assemble(10.0)
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert assembler.newest_s == 9.97
    assert assembler.ages_s(10.0) == pytest.approx({'hand': 0.03, 'goal': 0.5})
    _, faults = assembler.assemble(10.2)
    assert [(fault.term, fault.kind) for fault in faults] == [('hand', 'stale')]


def test_the_clock_is_the_fastest_term():
    assembler = ObservationAssembler(pose_spec())
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.99)
    assert assembler.arrival_s() == (float('-inf'),) * 2
    assembler.update('hand/pose', pose(1.0, 2.0, 3.0), 9.98)
    assert assembler.arrival_s() == (9.98, 9.98)


def test_a_state_of_two_parts_arrives_from_the_first_to_the_last():
    hand, goal = pose_spec().observation
    assembler = ObservationAssembler(dataclasses.replace(pose_spec(), observation=(
        hand, dataclasses.replace(goal, max_age_s=hand.max_age_s))))
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.99)
    assert assembler.arrival_s() == (float('-inf'), 9.99)
    assembler.update('hand/pose', pose(1.0, 2.0, 3.0), 9.98)
    assert assembler.arrival_s() == (9.98, 9.99)


def test_it_recovers_when_the_messages_do():
    assembler = ObservationAssembler(joint_spec())
    assembler.update('joint_states', joints(('a', 'b')), 10.0)
    assert assembler.assemble(10.0)[0] is None
    assembler.update('joint_states', joints(), 10.01)
    assert assembler.assemble(10.01)[0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_fault_is_one_line():
    assert str(Fault('goal', 'stale', 'old')) == 'goal: stale, old'


def test_a_refusal_explains_the_fault_it_leads_to():
    assembler = ObservationAssembler(joint_spec())
    assembler.refuse('joint_states', 'future, its stamp is 2 s ahead')
    _, faults = assembler.assemble(0.0)
    assert faults[0].detail.endswith('yet; the last message was refused: future, its stamp is 2 s '
                                     'ahead')
    assembler.update('joint_states', joints(), 1.0)
    assert assembler.assemble(1.0)[1] == ()
    _, faults = assembler.assemble(2.0)
    assert 'refused' not in faults[0].detail


def test_a_doubted_topic_is_a_fault_until_then():
    assembler = ObservationAssembler(joint_spec())
    assembler.update('joint_states', joints(), 1.0)
    assembler.doubt('joint_states', 'two send', 1.05)
    _, faults = assembler.assemble(1.04)
    assert [str(fault) for fault in faults] == [
        f'{term}: publishers, joint_states: two send' for term in ('position', 'velocity')]
    assert assembler.assemble(1.05)[1] == ()


def test_until_when_it_is_valid():
    assembler = ObservationAssembler(pose_spec())
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.5)
    assembler.update('hand/pose', pose(1.0, 2.0, 3.0), 9.98)
    assembler.assemble(10.0)
    assert assembler.valid_until_s == pytest.approx(10.08)  # the hand may be 0.1 s old
    assembler.assemble(10.05)
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.06)
    assembler.assemble(10.05)
    assert assembler.valid_until_s == pytest.approx(10.06)


def test_what_is_forgotten_was_never_received():
    assembler = ObservationAssembler(joint_spec())
    assembler.update('joint_states', joints(), 1.0)
    assembler.forget()
    assert {fault.kind for fault in assembler.assemble(1.0)[1]} == {'never received'}
    assert assembler.arrival_s()[0] == float('-inf')


def test_an_observation_is_valid_from_its_stamps_on():
    assembler = ObservationAssembler(pose_spec())
    assembler.update('goal/pose', pose(4.0, 5.0, 6.0), 9.5)
    assembler.update('hand/pose', pose(1.0, 2.0, 3.0), 9.98, 9.93)
    assembler.assemble(10.0)
    assert assembler.valid_until_s == pytest.approx(10.03)


def test_doubts_are_forgotten_with_the_clock():
    assembler = ObservationAssembler(joint_spec())
    assembler.doubt('joint_states', 'two send', 100.0)
    assembler.forget()
    assembler.update('joint_states', joints(), 1.0)
    assert assembler.assemble(1.0)[1] == ()
