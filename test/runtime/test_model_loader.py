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

"""Tests of models that are loaded beside the running one."""

import dataclasses
import queue
import threading

from policy_files import joint_spec, pose_spec, reach_weights, write_model
import pytest

from dpg_robot.contract.model_file import file_signature
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime import model_loader
from dpg_robot.runtime.model_loader import check_same_contract, ModelLoader
from dpg_robot.runtime.onnx_policy import OnnxPolicy


@pytest.fixture
def bench(tmp_path):
    """Return the running file, the loader, and queues of what was accepted and told."""
    path = write_model(tmp_path / 'model.onnx', pose_spec(), reach_weights())
    accepted, told, loaders = queue.Queue(), queue.Queue(), []

    def make(watch=False):
        loaders.append(ModelLoader(OnnxPolicy(path), str(path), watch, accepted.put,
                                   lambda *words: told.put(words)))
        return loaders[-1]
    yield path, make, accepted, told
    for loader in loaders:
        loader.close()


def replace(path, weights, **options):
    """Write a model as exporters do: aside, then renamed."""
    write_model(path.with_suffix('.new'), pose_spec(), weights, **options).rename(path)


def test_a_good_model_is_accepted(bench, tmp_path):
    path, make, accepted, told = bench
    loader = make()
    other = write_model(tmp_path / 'other.onnx', pose_spec(task='further'),
                        2 * reach_weights())
    loader.request(str(other))
    policy = accepted.get(timeout=20)
    assert policy.spec.task == 'further'
    assert told.get(timeout=20) == (True, f'model {other} ({policy.content_hash[:12]})')
    assert (loader.path, loader.refusal, loader.num_loaded) == (str(other), '', 1)


def test_a_bad_model_is_refused_and_a_good_one_forgives(bench, tmp_path):
    path, make, accepted, told = bench
    loader = make()
    bad = tmp_path / 'bad.onnx'
    bad.write_bytes(path.read_bytes()[:-9])
    loader.request(str(bad))
    is_accepted, line = told.get(timeout=20)
    assert not is_accepted and accepted.empty()
    assert f'model file {bad} refused' in line == loader.refusal
    assert (loader.path, loader.num_refused) == (str(path), 1)
    loader.request(str(path))
    assert told.get(timeout=20)[0]
    assert loader.refusal == ''


def test_a_watched_file_is_loaded_when_it_changes(bench):
    path, make, accepted, told = bench
    loader = make(watch=True)
    replace(path, 3 * reach_weights())
    first = accepted.get(timeout=20)
    assert told.get(timeout=20)[0]
    path.write_bytes(b'half a file')
    assert not told.get(timeout=20)[0]
    replace(path, 4 * reach_weights())
    assert accepted.get(timeout=20).content_hash != first.content_hash
    assert (loader.num_loaded, loader.num_refused) == (2, 1)


def test_a_change_since_the_file_was_read_is_noticed(bench):
    path, _, accepted, told = bench
    seen, policy = file_signature(path), OnnxPolicy(path)
    replace(path, 3 * reach_weights())
    loader = ModelLoader(policy, str(path), True, accepted.put, lambda *words: told.put(words),
                         seen)
    assert accepted.get(timeout=20).content_hash != policy.content_hash
    loader.close()


def test_a_file_that_is_not_watched_may_change(bench):
    path, make, accepted, _ = bench
    make()
    replace(path, 3 * reach_weights())
    with pytest.raises(queue.Empty):
        accepted.get(timeout=0.6)


@pytest.mark.parametrize('candidate, words', [
    (joint_spec(), 'observation must have the terms of the running policy .hand, goal.'),
    (pose_spec(robot='fetch'), 'robot must be test_arm'),
    (pose_spec(eps_dim=2), 'eps_dim must be 3 .* got 2'),  # a recorder's rows have room for 3
    (pose_spec(control_rate_hz=25.0), 'control_rate_hz must be 50.0 .* got 25.0'),
    (pose_spec(action=(dataclasses.replace(pose_spec().action[0], safe=(0.1,) * 3),)),
     'action hand_velocity.safe must be .0.0, 0.0, 0.0.'),
    (pose_spec(observation=tuple(dataclasses.replace(term, max_age_s=0.3)
                                 for term in pose_spec().observation)),
     'observation hand.max_age_s must be 0.1')])
def test_another_contract(candidate, words):
    with pytest.raises(SpecError, match=words):
        check_same_contract(pose_spec(), candidate)


def test_the_task_may_differ():
    check_same_contract(pose_spec(), pose_spec(task='reach_further'))


def test_a_listener_that_raises_does_not_end_the_thread(bench, caplog):
    path, _, accepted, told = bench

    def tell(*words):
        told.put(words)
        raise ZeroDivisionError('told')
    loader = ModelLoader(OnnxPolicy(path), str(path), False, accepted.put, tell)
    for _ in range(2):
        loader.request(str(path))
        assert told.get(timeout=20)[0]
    loader.close()
    loader._thread.join(timeout=20)
    assert accepted.qsize() == 2 and 'ZeroDivisionError: told' in caplog.text


def test_a_closed_loader_says_nothing_more(bench, monkeypatch):
    path, make, accepted, told = bench
    loader = make()
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(path):
        has_begun.set()
        assert may_end.wait(timeout=20)
        return OnnxPolicy(path)
    monkeypatch.setattr(model_loader, 'OnnxPolicy', slow)
    loader.request(str(path))
    assert has_begun.wait(timeout=20)
    loader.close()
    may_end.set()
    loader._thread.join(timeout=20)
    assert loader.num_loaded == 1 and accepted.empty() and told.empty()


def test_only_the_newest_request_counts(bench, tmp_path, monkeypatch):
    path, make, accepted, told = bench
    has_begun, may_end, read = threading.Event(), threading.Event(), []

    def slow(path):
        read.append(path)
        has_begun.set()
        assert may_end.wait(timeout=20)
        return OnnxPolicy(path)
    loader = make()
    monkeypatch.setattr(model_loader, 'OnnxPolicy', slow)
    last = write_model(tmp_path / 'last.onnx', pose_spec(), 2 * reach_weights())
    loader.request(str(path))
    assert has_begun.wait(timeout=20)
    loader.request(str(tmp_path / 'none.onnx'))
    loader.request(str(last))
    may_end.set()
    assert told.get(timeout=20)[0] and told.get(timeout=20)[0]
    assert read == [str(path), str(last)] and loader.num_refused == 0


def test_a_refused_file_is_told_once(bench):
    path, make, _, told = bench
    make(watch=True)
    path.write_bytes(b'half a file')
    assert not told.get(timeout=20)[0]
    with pytest.raises(queue.Empty):
        told.get(timeout=0.7)


def test_a_file_that_is_gone_is_no_news(bench):
    path, make, accepted, told = bench
    make(watch=True)
    path.unlink()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.7)
    write_model(path, pose_spec(), 2 * reach_weights())
    assert told.get(timeout=20)[0]


def test_a_change_while_loading_is_not_missed(bench, monkeypatch):
    path, make, accepted, told = bench
    weights = [3 * reach_weights()]

    def racing(name):
        policy = OnnxPolicy(name)
        if weights:  # an exporter is as quick
            replace(path, weights.pop())
        return policy
    loader = make(watch=True)
    monkeypatch.setattr(model_loader, 'OnnxPolicy', racing)
    loader.request(str(path))
    first = accepted.get(timeout=20)
    assert accepted.get(timeout=5).content_hash != first.content_hash


@pytest.mark.parametrize('key, value', [
    ('rate_limit', (1.0,) * 3), ('acceleration_limit', (9.0,) * 3), ('frame_id', 'tool'),
    ('joints', ('a', 'b', 'c')), ('offset', (0.1,) * 3)])
def test_every_part_of_the_contract_of_a_command_is_compared(key, value):
    term, = pose_spec().action
    with pytest.raises(SpecError, match=f'action hand_velocity.{key} must be '):
        check_same_contract(pose_spec(), pose_spec(action=(
            dataclasses.replace(term, **{key: value}),)))
