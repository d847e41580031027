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

"""What the host waits for in a training's rounds, where it should wait for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
import time
import traceback
from typing import Any

import torch

from dpg_robot.bench.throughput import rate, warm_up

# What the host waits in, or may, as when memory is taken; what reads from the device; and what is
# launched.
WAITS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'cudaMemcpy',
         'cuStreamSynchronize', 'cuCtxSynchronize', 'cuEventSynchronize', 'cudaMalloc', 'cudaFree',
         'cudaHostAlloc', 'aten::item', 'aten::_local_scalar_dense', 'aten::nonzero',
         'aten::is_nonzero', 'aten::equal')
LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx',
            'cudaGraphLaunch', 'cudaMemcpyAsync', 'cudaMemsetAsync')

PACKAGE = 'dpg_robot/'


def watched(trainer, write: Callable[[dict], None], rounds: int = 5) -> dict[str, Any]:
    """Return what the host waited for in some rounds; on a GPU a wait is an error.

    :param write: called with the figures before they are counted by the profiler, and after.
    :return: beside what :func:`counted` does, how far the device was behind the host [s], and
        ``error``, None or what torch says of the first wait.
    """
    started, on_gpu = time.monotonic(), trainer.worlds.device.type == 'cuda'
    warm_up(trainer)
    figures = {'warm_up_s': time.monotonic() - started, 'rounds': rounds,
               'checked_by_torch': on_gpu, 'error': None}
    if on_gpu:
        torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(rounds):
            trainer.round()
    except RuntimeError as problem:
        figures['error'] = f'{_origin(problem)}: ' + str(problem).partition('\n')[0]
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode('default')
    returned = time.monotonic()
    trainer.worlds.wait()
    figures['behind_the_host_s'] = time.monotonic() - returned
    figures['rounds_per_second'] = rate(trainer.round, 0.5, trainer.worlds.wait)
    write(figures)
    figures |= counted(trainer.round, rounds, on_gpu, lines=on_gpu)
    write(figures)
    return figures


def _origin(problem):
    """Return the innermost line of this package that an error came through."""
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__)
              if PACKAGE in frame.filename]
    return f'{frames[-1].filename.rpartition(PACKAGE)[2]}:{frames[-1].lineno}' if frames else ''


def counted(function: Callable[[], Any], times: int, on_gpu: bool = False,
            lines: bool = False) -> dict[str, Any]:
    """Return what a profiler saw of the host while a function was called so often.

    :param lines: whether to tell lines of this package; slow where physics is not a graph.
    :return: waits and launches by their names, ``where`` the host waited, and the number of
        torch's operations, which is 0 only if the profiler itself failed.
    """
    activities = [torch.profiler.ProfilerActivity.CPU] + (
        [torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])
    with torch.profiler.profile(activities=activities, with_stack=lines) as profile:
        with torch.profiler.record_function('counted'):
            for _ in range(times):
                function()
    events = [event for event in profile.events()
              if event.device_type == torch.autograd.DeviceType.CPU]
    # Its own end waits as well, and is not meant.
    inside = next(event.time_range for event in events if event.name == 'counted')
    events = [event for event in events
              if inside.start <= event.time_range.start <= inside.end]
    names = Counter(event.name for event in events)
    where = Counter(place for event in events if event.name in WAITS
                    if (place := _place(event)) is not None)
    return {'waits': {name: names[name] for name in WAITS if names[name]},
            'where': dict(where),
            'launches': {name: names[name] for name in LAUNCHES if names[name]},
            'operations': sum(names[name] for name in names if name.startswith('aten::'))}


def _place(event):
    """Return what a wait is a part of, with the line if it is known; None in another wait."""
    callers, caller = [], event.cpu_parent
    while caller is not None:
        callers.append(caller.name)
        caller = caller.cpu_parent
    operations = [name for name in callers if name.startswith('aten::')]
    if operations and operations[0] in WAITS:
        return None
    lines = [name[name.rindex(PACKAGE):] for name in callers if PACKAGE in name]
    return ' in '.join([event.name, *operations[:1], *lines[:1]])
