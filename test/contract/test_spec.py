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

"""Tests of the PolicySpec."""

import dataclasses
import json

from hypothesis import given, strategies
import numpy as np
from policy_files import joint_spec, pose_spec
import pytest

from dpg_robot.contract.spec import PolicySpec, TrainingRecord
from dpg_robot.contract.strict import SpecError


def changed(path, value, spec=pose_spec):
    """Return a spec's JSON with one value replaced; a path like 'action.0.scale'."""
    data = json.loads(spec().to_json())
    *parents, key = [int(part) if part.isdigit() else part for part in path.split('.')]
    target = data
    for part in parents:
        target = target[part]
    target[key] = value
    return json.dumps(data)


def test_sizes():
    spec = joint_spec()
    assert (spec.obs_dim, spec.action_dim, spec.eps_dim) == (4, 2, 2)
    assert spec.control_dt == 0.02


def test_normalised_actions_have_a_scale_and_an_offset():
    term, = joint_spec().action
    shifted = dataclasses.replace(term, name='shifted', topic='b', offset=(0.5, -1.0))
    spec = joint_spec(action=(term, shifted))
    assert spec.action_scale == (2.0, 2.0, 2.0, 2.0)
    assert spec.action_offset == (0.0, 0.0, 0.5, -1.0)
    action = np.array([1.0, -1.0, 0.25, 0.5])
    assert spec.physical(action).tolist() == [2.0, -2.0, 1.0, 0.0]
    assert spec.normalised(spec.physical(action)).tolist() == action.tolist()
    commands = np.array([[1.0, 0.0, 1.5, -1.0], [0.0, -2.0, 0.5, -3.0]])
    assert spec.normalised(commands).tolist() == [[0.5, 0.0, 0.5, 0.0], [0.0, -1.0, 0.0, -1.0]]


def test_a_document_from_before_offsets_still_loads():
    data = json.loads(pose_spec().to_json())
    del data['action'][0]['offset']
    assert PolicySpec.from_json(json.dumps(data)) == pose_spec()


@pytest.mark.parametrize('spec', [pose_spec(), joint_spec()])
def test_json_there_and_back(spec):
    assert PolicySpec.from_json(spec.to_json()) == spec


@given(strategies.floats(1e-300, 1e300))
def test_json_keeps_full_precision(rate):
    spec = pose_spec(control_rate_hz=rate, observation=tuple(
        dataclasses.replace(term, max_age_s=2.0 / rate) for term in pose_spec().observation))
    assert PolicySpec.from_json(spec.to_json()).control_rate_hz == rate


def test_the_training_record_travels_with_the_spec():
    record = TrainingRecord('denoising', 1000, 7, {'task': 'reach'}, {'success': 1.0})
    spec = pose_spec().with_training(record)
    assert PolicySpec.from_json(spec.to_json()).training == record


@pytest.mark.parametrize('path, value, message', [
    ('spec_version', 2, 'spec_version must be 1, got 2'),
    ('control_rate_hz', 0.0, 'control_rate_hz must be greater than 0, got 0.0'),
    ('observation', [], 'observation must have at least one term'),
    ('observation.1.name', 'hand', 'observation term names must differ, got hand twice'),
    ('observation.1.topic', 'hand/pose', None),
    ('observation.0.type', 'PoseStamped', r'observation\[0\].type must look like'),
    ('observation.0.topic', '', r'observation\[0\].topic must not be empty'),
    ('observation.0.fields', [], r'observation\[0\].fields must name at least one'),
    ('observation.0.fields.1', 'pose position', r'observation\[0\].fields\[1\] must look like'),
    ('observation.0.max_age_s', 0, r'observation\[0\].max_age_s must be greater than 0'),
    ('observation.1.max_age_s', 0.029,
     r'observation\[1\].max_age_s must be at least 1.5 control periods \(0.03 s\), got 0.029'),
    ('observation.1.max_age_s', 0.03, None),
    ('observation.0.lower', [0.0], r'observation\[0\].lower must have one value for each'),
    ('observation.0.lower.2', 3.0, r'observation\[0\].lower\[2\] must be below upper\[2\]'),
    ('action.0.scale', [1.0], r'action\[0\].scale must have one value for each field \(3\)'),
    ('action.0.scale.0', 0.0, r'action\[0\].scale\[0\] must be greater than 0'),
    ('action.0.safe.0', 0.6, r'action\[0\].safe\[0\] must lie within lower and upper'),
    ('action.0.safe.0', -0.6, r'action\[0\].safe\[0\] must lie within lower and upper'),
    ('action.0.acceleration_limit', [1.0], r'acceleration_limit must have one value for each'),
    ('action.0.acceleration_limit', [0.0, 1.0, 1.0],
     r'action\[0\].acceleration_limit\[0\] must be greater than 0 or null, got 0.0'),
    ('action.0.rate_limit.0', 0.0, r'action\[0\].rate_limit\[0\] must be greater than 0'),
    ('action.0.joints', ['a'], r'action\[0\].joints must have one value for each'),
    ('action.0.offset', [0.1], r'action\[0\].offset must have one value for each field \(3\)'),
    ('action.0.safe.0', None, None)])
def test_rules(path, value, message):
    text = changed(path, value)
    if message is None:
        assert PolicySpec.from_json(text) != pose_spec()
        return
    with pytest.raises(SpecError, match=message):
        PolicySpec.from_json(text)


def test_one_topic_has_one_type():
    text = changed('observation.1.type', 'sensor_msgs/msg/Imu', joint_spec)
    with pytest.raises(SpecError, match='one message type, got .* on joint_states'):
        PolicySpec.from_json(text)


def test_what_is_not_json_is_refused():
    with pytest.raises(SpecError, match='must be JSON'):
        PolicySpec.from_json('{')


def test_two_actions_in_one_field_are_refused():
    """The writer could send only one of them, and its limits."""
    term = joint_spec().action[0]
    twice = dataclasses.replace(term, fields=('data[0]', 'data[0]'))
    message = r'action fields must differ, got data\[0\] on effort/commands twice'
    with pytest.raises(SpecError, match=message):
        PolicySpec.from_json(dataclasses.replace(joint_spec(), action=(twice,)).to_json())
    twice = dataclasses.replace(term, fields=('data[0]', 'data[00]'))
    with pytest.raises(SpecError, match=message):
        PolicySpec.from_json(dataclasses.replace(joint_spec(), action=(twice,)).to_json())
    other = dataclasses.replace(term, name='other')
    with pytest.raises(SpecError, match=message):
        PolicySpec.from_json(dataclasses.replace(joint_spec(), action=(term, other)).to_json())
