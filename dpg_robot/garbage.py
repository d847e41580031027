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

"""When Python collects garbage: in no control period, and in no recording of a GPU graph."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import gc


def quiet_garbage_collector() -> None:
    """Take the collector out of the control loop; :func:`collect_garbage` is its replacement.

    A full collection takes tens of milliseconds with all libraries loaded, at a time of its own
    choosing. What is alive now stays alive, so it is set aside, until the next call.
    """
    gc.unfreeze()  # parts of what was set aside before may be dead by now
    gc.collect()
    gc.freeze()
    gc.disable()


def collect_garbage() -> None:
    """Collect what messages and services left behind; for the slack between two ticks."""
    gc.collect()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage: memory of older worlds and graphs, given back, breaks a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
