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

"""Tests of OnnxPolicy, on small models made here."""

import numpy as np
import onnx
from policy_files import (
    model_bytes,
    pose_spec,
    reach_weights,
    write_model,
)
import pytest

from dpg_robot.contract import model_file
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.onnx_policy import OnnxPolicy


@pytest.fixture
def policy(tmp_path):
    return OnnxPolicy(write_model(tmp_path / 'model.onnx', pose_spec(), reach_weights()))


def test_spec_and_hash_come_from_the_file(policy, tmp_path):
    assert policy.spec == pose_spec()
    assert policy.content_hash == model_file.content_hash(
        (tmp_path / 'model.onnx').read_bytes())


def test_one_observation(policy):
    action = policy(np.array([1.0, 2.0, 3.0, 3.0, 3.0, 3.0]))
    assert action.dtype == np.float32
    assert action.tolist() == [2.0, 1.0, 0.0]


def test_eps_is_used_and_forgotten(policy):
    observation = np.zeros(6)
    np.testing.assert_allclose(policy(observation, np.ones(3)), np.full(3, 0.3), rtol=1e-6)
    assert policy(observation).tolist() == [0.0, 0.0, 0.0]


def test_an_action_survives_the_next_call(policy):
    first = policy(np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    policy(np.zeros(6))
    assert first.tolist() == [1.0, 1.0, 1.0]


def test_a_batch_is_the_same_as_its_rows(policy):
    rng = np.random.default_rng(0)
    observations, eps = rng.standard_normal((7, 6)), rng.standard_normal((7, 3))
    rows = [policy(o, e) for o, e in zip(observations, eps)]
    np.testing.assert_allclose(policy(observations, eps), rows, rtol=1e-5, atol=1e-6)
    assert policy(observations[:1]).shape == (1, 3)


def test_a_policy_without_noise(tmp_path):
    spec = pose_spec(eps_dim=0)
    policy = OnnxPolicy(write_model(tmp_path / 'model.onnx', spec, reach_weights()))
    assert policy(np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize('options, message', [
    ({'names': ('state', 'eps', 'action')}, 'inputs observation and eps and output action'),
    ({'names': ('observation', 'eps', 'command')}, 'output action, got .* and command'),
    ({'metadata': {model_file.HASH_KEY: model_file.HASH_PLACEHOLDER}},
     'must hold dpg_robot.policy_spec in its metadata'),
    ({'metadata': {model_file.HASH_KEY: model_file.HASH_PLACEHOLDER,
                   model_file.SPEC_KEY: '{}'}}, 'spec_version is required')])
def test_a_file_that_breaks_the_contract_is_refused(tmp_path, options, message):
    path = write_model(tmp_path / 'model.onnx', pose_spec(), reach_weights(), **options)
    with pytest.raises(SpecError, match=f'model file .*model.onnx .*{message}'):
        OnnxPolicy(path)


@pytest.mark.parametrize('changes, weights, sizes, message', [
    ({}, np.zeros((7, 3)), (7, 3, 3), r'observation must have shape \(B, 6\)'),
    ({'eps_dim': 2}, reach_weights(), (6, 3, 3), r'eps must have shape \(B, 2\)'),
    ({}, np.zeros((6, 2)), (6, 3, 2), r'action must have shape \(B, 3\)')])
def test_sizes_follow_the_spec(tmp_path, changes, weights, sizes, message):
    path = write_model(tmp_path / 'model.onnx', pose_spec(**changes), weights, sizes=sizes)
    with pytest.raises(SpecError, match=message):
        OnnxPolicy(path)


def double_model(spec):
    """Return an unsealed model of float64: action = observation @ weights, in numpy's default."""
    model = onnx.load_from_string(model_bytes(spec, reach_weights()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(float)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def failing_model(spec):
    """Return an unsealed model whose graph fits, but cannot run on one observation."""
    model = onnx.load_from_string(model_bytes(spec, reach_weights()))
    for node in model.graph.node:
        node.input[:] = ['seven' if name == 'mean' else name for name in node.input]
    shape = onnx.numpy_helper.from_array(np.array([7, 3]), 'shape')
    model.graph.initializer.append(shape)
    model.graph.node.insert(1, onnx.helper.make_node('Reshape', ['mean', 'shape'], ['seven']))
    return model.SerializeToString()


def nan_model(spec):
    """Return an unsealed model that answers nothing but NaN."""
    return model_bytes(spec, np.full((6, 3), np.nan))


@pytest.mark.parametrize('make, message', [
    (nan_model, r'its actions must be finite, got \[nan nan nan\]'),
    (double_model, r'observation must be a float32 tensor, got tensor\(double\)'),
    (failing_model, 'it must run on one observation')])
def test_a_model_that_no_robot_could_call_is_refused_when_it_is_loaded(tmp_path, make, message):
    path = tmp_path / 'model.onnx'
    path.write_bytes(model_file.seal(make(pose_spec())))
    with pytest.raises(SpecError, match=f'model file .*model.onnx refused: {message}'):
        OnnxPolicy(path)


def test_the_runtime_has_one_thread(policy):
    options = policy._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_a_changed_file_never_reaches_the_runtime(tmp_path, monkeypatch):
    data = bytearray(model_file.seal(model_bytes(pose_spec(), reach_weights())))
    data[data.index(b'reach')] ^= 1
    path = tmp_path / 'model.onnx'
    path.write_bytes(data)
    monkeypatch.setattr('onnxruntime.InferenceSession', None)
    with pytest.raises(SpecError, match='changed after export'):
        OnnxPolicy(path)


def test_sealed_garbage_is_refused_in_one_line(tmp_path):
    whole = model_bytes(pose_spec(), reach_weights())
    garbage = whole[whole.index(model_file.HASH_KEY.encode()):]
    path = tmp_path / 'model.onnx'
    path.write_bytes(model_file.seal(garbage))
    with pytest.raises(SpecError, match='the runtime cannot load it') as caught:
        OnnxPolicy(path)
    assert '\n' not in str(caught.value)
