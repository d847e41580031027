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

"""Tests of the seal of model files."""

import hashlib

from hypothesis import given, settings, strategies
from policy_files import model_bytes, pose_spec, reach_weights
import pytest

from dpg_robot.contract.model_file import (
    content_hash,
    HASH_PLACEHOLDER,
    read_sealed,
    seal,
)
from dpg_robot.contract.strict import SpecError

UNSEALED = model_bytes(pose_spec(), reach_weights())
SEALED = seal(UNSEALED)


def test_the_hash_is_that_of_the_unsealed_file():
    assert content_hash(SEALED) == hashlib.sha256(UNSEALED).hexdigest()


def test_sealing_changes_nothing_else_and_may_be_repeated():
    assert SEALED.replace(content_hash(SEALED).encode(), HASH_PLACEHOLDER.encode()) == UNSEALED
    assert seal(SEALED) == SEALED


def test_a_sealed_file_is_read(tmp_path):
    path = tmp_path / 'model.onnx'
    path.write_bytes(SEALED)
    assert read_sealed(path) == (SEALED, content_hash(SEALED))


@settings(max_examples=60, deadline=None)
@given(strategies.integers(0, len(SEALED) - 1), strategies.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory, position, change):
    data = bytearray(SEALED)
    data[position] ^= change
    path = tmp_path_factory.getbasetemp() / 'tampered.onnx'
    path.write_bytes(data)
    with pytest.raises(SpecError, match='tampered.onnx refused'):
        read_sealed(path)


def test_a_changed_spec_is_refused_by_name(tmp_path):
    path = tmp_path / 'model.onnx'
    path.write_bytes(SEALED.replace(b'"control_rate_hz":50.0', b'"control_rate_hz":90.0'))
    with pytest.raises(SpecError, match='the file was changed after export'):
        read_sealed(path)


@pytest.mark.parametrize('data', [b'', SEALED[:200], SEALED + SEALED])
def test_a_file_without_exactly_one_seal_is_refused(tmp_path, data):
    path = tmp_path / 'model.onnx'
    path.write_bytes(data)
    with pytest.raises(SpecError, match='exactly one dpg_robot.content_hash'):
        read_sealed(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(SpecError, match='cannot be read: No such file'):
        read_sealed(tmp_path / 'none.onnx')
