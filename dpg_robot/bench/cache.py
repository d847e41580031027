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

"""What a stopped benchmark goes on from: finished parts, by the settings and code they rest on."""

from __future__ import annotations

from collections.abc import Callable
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from dpg_robot.learn.checkpoint import load_checkpoint, save_checkpoint


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """Return what lies in a file, after making it and storing it there if it does not.

    :param make: returns tensors and plain data.
    :raises SpecError: if the file cannot be read.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {'content': make()}, alone=False)
    return load_checkpoint(path)['content']


def digest(plain: Any) -> str:
    """Return a short name for plain data."""
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:10]


@functools.cache  # the files may be edited while we run, but what was imported stays
def source(*places: Path) -> list[str]:
    """Return the code in some files and folders, so that no older one's results are taken."""
    return [path.read_text() for place in places
            for path in (sorted(place.glob('*.py')) if place.is_dir() else [place])]
