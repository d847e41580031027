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

"""mujoco_warp's own loop beside ours: the physics of the same worlds, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import mujoco_warp
import warp


def own_loop(worlds) -> Callable[[], None]:
    """Return a function that advances the physics of all worlds by one control period.

    As mujoco_warp's ``testspeed``: one step captured as a CUDA graph and launched again and again,
    but without waiting for each. It works on the worlds' own arrays, so that model, room for
    contacts and memory are the same; commands stay as they are.

    :param worlds: of :func:`dpg_robot.sim.world.make_device_vector`.
    """
    physics = worlds.physics
    device, model, data = physics._warp_device, physics._model, physics._data

    def step():
        mujoco_warp.step(model, data)
    if device.is_cuda:
        with warp.ScopedDevice(device):
            step()
            warp.synchronize_device(device)
            with warp.ScopedCapture(device) as capture:
                mujoco_warp.step(model, data)

        def step():
            warp.capture_launch(capture.graph)

    def period():
        with warp.ScopedDevice(device):
            for _ in range(physics._sim_steps):
                step()
    return period
