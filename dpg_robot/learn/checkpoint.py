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

"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dpg_robot.contract.strict import SpecError

CHECKPOINT_VERSION = 10


def write_atomic(path: Path, write, alone: bool = True) -> None:
    """Replace a file in one step: a reader, or a crash at any instant, sees the old or the new.

    :param write: called with the open binary file.
    :param alone: whether no other process writes the same file meanwhile. Then what a process
        that was killed leaves behind is overwritten by the next one.
    """
    own = '' if alone else f'.{os.getpid()}'
    temporary = path.with_name(f'{path.name}{own}.partial')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # a full disk is not to be filled further
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # as when it could not be opened
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def save_checkpoint(path: Path, state: dict[str, Any], alone: bool = True) -> None:
    """Write a training state atomically.

    :param alone: as in :func:`write_atomic`.
    :raises OSError: if it cannot be written; the file that was there stays.
    """
    state = {'checkpoint_version': CHECKPOINT_VERSION, **state}

    def write(file):
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch closes its archive, and hides this
                raise error.__context__ from None
            raise
    write_atomic(path, write, alone)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; the file must come from a trusted place.

    :raises SpecError: if there is no such file, or it is not a checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location='cpu', weights_only=False)
    except FileNotFoundError as error:
        raise SpecError(f'checkpoint {path} does not exist') from error
    except Exception as error:  # what unpickling garbage raises has no narrower base
        reason = str(error).partition('\n')[0]
        raise SpecError(f'checkpoint {path} cannot be read; it must be a whole file written by '
                        f'this package: {type(error).__name__}: {reason}') from error
    version = state.get('checkpoint_version') if isinstance(state, dict) else None
    if version != CHECKPOINT_VERSION:
        raise SpecError(f'checkpoint {path} must have version {CHECKPOINT_VERSION}, got {version}')
    return state
