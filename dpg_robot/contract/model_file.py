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

"""The seal of a model file: one hash over every byte, stored inside the file itself.

The hash is the SHA-256 of the whole file with the 64 hexadecimal digits of the hash replaced by
zeros. It finds any change to weights, graph or spec before a byte reaches the ONNX runtime. It
proves integrity, not authorship: somebody who rewrites the file can also seal it again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
import re

from dpg_robot.contract.strict import SpecError

SPEC_KEY = 'dpg_robot.policy_spec'
HASH_KEY = 'dpg_robot.content_hash'
HASH_PLACEHOLDER = '0' * 64

# A protobuf string map entry: key field, then tag 0x12 and length 64 of the value field.
_SEAL = re.compile(re.escape(HASH_KEY).encode() + rb'\x12\x40([0-9a-f]{64})')


def content_hash(data: bytes) -> str:
    """Return the SHA-256 of a model file's bytes with its own seal blanked, as hex digits.

    :raises SpecError: if the bytes hold no seal, or more than one.
    """
    seals = list(_SEAL.finditer(data))
    if len(seals) != 1:
        raise SpecError(
            f'a model file must hold exactly one {HASH_KEY}, found {len(seals)}; '
            'was it written by dpg-robot export, and arrived whole?')
    start, end = seals[0].span(1)
    return hashlib.sha256(data[:start] + HASH_PLACEHOLDER.encode() + data[end:]).hexdigest()


def seal(data: bytes) -> bytes:
    """Return the bytes of a model file with the right hash in place of the one it has."""
    digest = content_hash(data).encode()
    start, end = _SEAL.search(data).span(1)
    return data[:start] + digest + data[end:]


def read_sealed(path: str | os.PathLike) -> tuple[bytes, str]:
    """Read a model file and prove that nothing in it changed since it was exported.

    :return: the file's bytes, and its content hash.
    :raises SpecError: if the file cannot be read, holds no seal, or does not match it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f'model file {path} cannot be read: {error.strerror}') from error
    try:
        digest = content_hash(data)
    except SpecError as error:
        raise SpecError(f'model file {path} refused: {error}') from error
    stored = _SEAL.search(data).group(1).decode()
    if stored != digest:
        raise SpecError(
            f'model file {path} refused: its content hash must be {stored[:12]}..., got '
            f'{digest[:12]}...; the file was changed after export')
    return data, digest


def file_signature(path: str | os.PathLike) -> tuple[int, ...] | None:
    """Return what changes with a file; None if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
