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

"""Flights replayed through models: what is found equal, and what is found different."""

import json
import shutil
import time

import numpy as np
from policy_files import joint_spec, write_model
import pytest
from ros_harness import values
from sensor_msgs.msg import JointState

from dpg_robot.cli import main
from dpg_robot.contract.strict import SpecError
from dpg_robot.replay_flight import replay, report
from dpg_robot.runtime import flight_reader
from dpg_robot.runtime.flight_reader import read_flight
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.runtime.recorder import FlightRecorder

SPEC = joint_spec()
WEIGHTS = np.array([[0.7, -0.1], [0.3, 0.2], [-0.4, 0.9], [0.05, -0.6]])


def fly(folder, model, num=40, sampled=False, change=None, recorder=None):
    """Record what a model answers; ``change`` may change the answer of a tick."""
    policy, rng = OnnxPolicy(model), np.random.default_rng(1)
    own = recorder is None
    recorder = recorder or FlightRecorder(folder, SPEC, policy.content_hash, model_path=model)
    for k in range(num):
        observation = rng.standard_normal(4).astype(np.float32)
        eps = rng.standard_normal(2).astype(np.float32) if sampled else None
        action = policy(observation, eps)
        if change:
            action = change(k, action)
        recorder.step(0.02 * k, observation, action, np.clip(action, -2, 2), eps=eps)
    if own:
        recorder.close()
    return folder


@pytest.fixture
def model(tmp_path):
    """Return a model file."""
    return write_model(tmp_path / 'model.onnx', SPEC, WEIGHTS)


@pytest.mark.parametrize('sampled', [False, True])
def test_the_recorded_model_answers_the_same(tmp_path, model, sampled):
    result = replay(fly(tmp_path / 'flight', model, sampled=sampled))
    assert result['is_same'] and result['max_difference'] == 0.0
    assert (result['ticks'], result['ticks_compared'], result['ticks_missing']) == (40, 40, 0)
    assert result['ticks_sampled'] == 40 * sampled
    entry, = result['models']
    assert entry['is_recorded'] and entry['path'] == str(model) and entry['ticks'] == 40
    assert 'the recorded model' in report(result)


@pytest.mark.parametrize('mode', ['deterministic', 'sampled'])
def test_what_a_node_records_can_be_replayed(ros, tmp_path, model, mode):
    publisher = ros.node.create_publisher(JointState, 'joint_states', 1)
    folder = tmp_path / 'flight'
    process = ros.start('policy_node', model=model, mode=mode, record_folder=folder)
    rng = np.random.default_rng(0)

    def num_driven(report):
        return int(report['ticks']) - int(report['safe_ticks'])

    def publish():
        message = JointState(name=['elbow', 'shoulder'], position=rng.uniform(-1, 1, 2).tolist(),
                             velocity=rng.uniform(-1, 1, 2).tolist())
        message.header.stamp = ros.node.get_clock().now().to_msg()
        publisher.publish(message)
        time.sleep(0.01)
        return next((status for status in ros.diagnostics
                     if status.name == 'policy_node: control' and status.message == 'running'
                     and num_driven(values(status)) > 20), None)
    ros.diagnostics.clear()
    ros.wait(publish, timeout=30.0, what='twenty commands of a recorded policy')
    assert ros.stop(process) == 0
    result = replay(folder)
    assert result['is_same'] and result['max_difference'] == 0.0
    assert result['ticks_compared'] > 20 and result['ticks_missing'] == 0
    assert result['ticks_sampled'] == (result['ticks_compared'] if mode == 'sampled' else 0)
    assert result['models'][0]['path'] == str(model)
    texts = [text for _, _, text in read_flight(folder).events]
    assert any('running' in text for text in texts)


def test_another_model_is_compared_in_units_of_the_range(tmp_path, model):
    other = write_model(tmp_path / 'other.onnx', SPEC, WEIGHTS, bias=[0.4, 0.0])
    result = replay(fly(tmp_path / 'flight', model), other)
    # A bias of 0.4 in a range from -2 to 2.
    shoulder, elbow = result['elements']['torque.shoulder'], result['elements']['torque.elbow']
    assert shoulder['max'] == pytest.approx(0.1, abs=1e-6)
    assert shoulder['mean'] == pytest.approx(0.1, abs=1e-6)
    assert elbow == {'max': 0.0, 'mean': 0.0}
    assert result['ticks_that_differ'] == 40
    assert result['mean_difference'] == pytest.approx(0.05, abs=1e-6)
    assert result['is_same']  # nothing is claimed of another model
    assert 'not the recorded model' in report(result)


def test_other_answers_of_the_same_model_end_with_status_1(tmp_path, model, capsys):
    def change(k, action):
        return action + [0.0, 0.004] if k == 7 else action
    folder = fly(tmp_path / 'flight', model, change=change)
    file = tmp_path / 'result.json'
    with pytest.raises(SystemExit) as stopped:
        main(['replay', str(folder), '--json', str(file)])
    assert stopped.value.code == 1
    assert 'THE SAME MODEL GAVE OTHER ACTIONS' in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result['ticks_that_differ'] == 1 and not result['is_same']
    assert result['elements']['torque.elbow']['max'] == pytest.approx(0.001, rel=1e-3)
    assert result['elements']['torque.shoulder']['max'] == 0.0


def test_the_same_model_by_name_is_held_to_the_same(tmp_path, model, capsys):
    folder = fly(tmp_path / 'flight', model)
    moved = shutil.copy(model, tmp_path / 'moved.onnx')
    model.unlink()
    with pytest.raises(SpecError, match='is not here; name one with --model'):
        replay(folder)
    main(['replay', str(next(folder.glob('*.mcap'))), '--model', str(moved)])
    assert '0 of 40 ticks differ' in capsys.readouterr().out


def test_ticks_without_the_policy_are_counted_but_not_compared(tmp_path, model):
    policy = OnnxPolicy(model)
    recorder = FlightRecorder(tmp_path / 'flight', SPEC, policy.content_hash, model_path=model)
    for _ in range(5):
        recorder.step(0.0, None, None, np.zeros(2), is_driven=False, state='waiting')
    fly(None, model, num=3, recorder=recorder)
    recorder.close()
    result = replay(tmp_path / 'flight')
    assert (result['ticks'], result['ticks_compared'], result['ticks_not_driven']) == (8, 3, 5)


def test_a_flight_without_the_policy_is_an_error(tmp_path, model):
    recorder = FlightRecorder(tmp_path / 'flight', SPEC, OnnxPolicy(model).content_hash)
    recorder.step(0.0, None, None, np.zeros(2), is_driven=False, state='waiting')
    recorder.close()
    with pytest.raises(SpecError, match='was not run in any of its 1 ticks'):
        replay(tmp_path / 'flight')


def test_each_model_answers_for_its_own_ticks(tmp_path, model):
    other = write_model(tmp_path / 'other.onnx', SPEC, WEIGHTS, bias=[0.4, 0.0])
    policy = OnnxPolicy(model)
    recorder = FlightRecorder(tmp_path / 'flight', SPEC, policy.content_hash, model_path=model)
    fly(None, model, num=4, recorder=recorder)
    recorder.use_model(OnnxPolicy(other).content_hash, other)
    fly(None, other, num=6, recorder=recorder)
    recorder.close()
    result = replay(tmp_path / 'flight')
    assert [entry['ticks'] for entry in result['models']] == [4, 6]
    assert result['max_difference'] == 0.0
    result = replay(tmp_path / 'flight', model)
    assert result['ticks_that_differ'] == 6 and result['is_same']


def test_ticks_of_a_model_that_is_gone_are_left_out_and_counted(tmp_path, model):
    first = write_model(tmp_path / 'latest.onnx', SPEC, WEIGHTS, bias=[0.4, 0.0])
    recorder = FlightRecorder(tmp_path / 'flight', SPEC, OnnxPolicy(first).content_hash,
                              model_path=first)
    fly(None, first, num=4, recorder=recorder)
    recorder.use_model(OnnxPolicy(model).content_hash, model)
    fly(None, model, num=6, recorder=recorder)
    recorder.close()
    write_model(first, SPEC, WEIGHTS, bias=[0.5, 0.0])
    result = replay(tmp_path / 'flight')
    assert (result['ticks'], result['ticks_compared'], result['is_same']) == (10, 6, True)
    assert [gone['ticks'] for gone in result['models_gone']] == [4]
    assert 'NOT COMPARED: 4 ticks; ' in report(result) and 'another model now' in report(result)
    model.unlink()
    with pytest.raises(SpecError, match='latest.onnx is another model now'):
        replay(tmp_path / 'flight')


def test_not_a_number_equals_only_itself(tmp_path, model, monkeypatch):
    folder = fly(tmp_path / 'flight', model,
                 change=lambda k, action: np.array([np.nan, action[1]]) if k == 3 else action)
    result = replay(folder)
    assert result['max_difference'] is None and not result['is_same']
    assert result['elements']['torque.elbow']['max'] == 0.0
    assert json.loads(json.dumps(result, allow_nan=False))
    assert 'not finite' in report(result)
    # Stands for a model that answers so to some observations alone: the others are refused.
    monkeypatch.setattr(OnnxPolicy, '_warm_up', lambda policy, path: None)
    broken = write_model(tmp_path / 'broken.onnx', SPEC, WEIGHTS, bias=[np.nan, np.nan])
    assert replay(fly(tmp_path / 'nan', broken))['max_difference'] == 0.0


@pytest.mark.parametrize('part', [0.6, 0.97])
def test_a_cut_off_file_is_read_as_far_as_it_goes(tmp_path, model, part):
    policy = OnnxPolicy(model)
    recorder = FlightRecorder(tmp_path / 'flight', SPEC, policy.content_hash, max_bytes=2**20,
                              model_path=model)
    fly(None, model, num=300, recorder=recorder)
    recorder.close()
    path, = (tmp_path / 'flight').glob('*.mcap')
    whole = path.read_bytes()
    path.write_bytes(whole[:int(part * len(whole))])
    result = replay(path)
    assert result['damaged_files'] == [path.name]
    assert 0 < result['ticks_compared'] <= 300
    assert result['max_difference'] == 0.0
    assert 'does not end as it should' in report(result)
    path.write_bytes(whole[:2000])
    with pytest.raises(SpecError, match='holds no tick'):
        replay(path)


@pytest.mark.parametrize('content, message', [
    (None, 'cannot be read: No such file'),
    (b'', 'is no recording of a policy, or was cut off'),
    (b'something else entirely', 'is not an MCAP file'),
])
def test_what_is_no_recording_is_one_line_and_status_2(tmp_path, capsys, content, message):
    path = tmp_path / 'flight.mcap'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(['replay', str(path)])
    line, = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and message in line


def test_a_recording_of_another_version_is_refused(tmp_path, model, monkeypatch):
    folder = fly(tmp_path / 'flight', model)
    monkeypatch.setattr(flight_reader, 'VERSION', '2')
    with pytest.raises(SpecError, match='its version must be 2, got 1'):
        replay(folder)


def test_models_that_do_not_fit_are_refused(tmp_path, model):
    with pytest.raises(SpecError, match='holds no recording'):
        replay(tmp_path)
    folder = fly(tmp_path / 'flight', model)
    fast = write_model(tmp_path / 'fast.onnx', joint_spec(control_rate_hz=100.0), WEIGHTS)
    with pytest.raises(SpecError, match='does not fit the recording: control_rate_hz must be 50'):
        replay(folder, fast)
    write_model(model, SPEC, 2 * WEIGHTS)
    with pytest.raises(SpecError, match='model.onnx is another model now: its content hash must'):
        replay(folder)
