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

"""Where a training computes: which device, whether it fits there, and CUDA graphs on it."""

from __future__ import annotations

from collections.abc import Callable
import os
from typing import Any

import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.garbage import uncollected

# On cpu the worlds are those of C MuJoCo; warp_cpu has those of a GPU, and nothing waits there
# either, so that tests need no GPU.
DEVICES = ('cpu', 'cuda', 'warp_cpu')
NUM_WARM_UP = 3
# What a training takes beside its stored transitions must find room as well.
USABLE = 0.8


def find_device(name: str) -> torch.device:
    """Return torch's device for one of :data:`DEVICES`, and set torch up for it.

    :raises SpecError: if this machine has none.
    """
    if name != 'cuda':
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise SpecError('trainer.device must be cpu or warp_cpu where torch finds no NVIDIA GPU, '
                        f'got cuda (torch {torch.__version__})')
    # Products with eleven significant bits, three more than bfloat16 has; on the GPU only, since
    # an export proves its parity on the CPU.
    # Not by fp32_precision alone: torch's profiler asks for this one, and fails if they differ.
    torch.backends.cuda.matmul.allow_tf32 = True
    return torch.device('cuda', torch.cuda.current_device())


def check_memory(key: str, count: int, row_bytes: int, device: torch.device) -> None:
    """Check that so many rows fit into memory, before anything is allocated.

    :param key: the setting to name; ``count`` is its value.
    :raises SpecError: naming the key, what it needs and what there is.
    """
    if device.type == 'cuda':
        free, where = torch.cuda.mem_get_info(device)[0], 'are free on the GPU'
    else:
        free, where = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'), 'this machine has'
    needed = count * row_bytes
    if needed > USABLE * free:
        most = int(USABLE * free / row_bytes)
        raise SpecError(f'{key} must be at most {most} for the {free / 2**30:.1f} GiB that '
                        f'{where}, got {count}, which need {needed / 2**30:.1f} GiB')


class Captured:
    """A function of tensors as one CUDA graph, on a GPU; elsewhere the function itself.

    A small network's update is hundreds of kernels that each take longer to launch than to run;
    a graph launches them at once. The first calls run as they are, which makes the optimiser's
    state and the libraries ready; the next is recorded, and from then on replayed. Each shape of
    the arguments has a graph of its own. What a call returns is overwritten by the next one.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, wanted: bool = True):
        """Prepare a function that allocates nothing lasting and never asks for a value.

        :param wanted: False to run the function as it is, on a GPU, too.
        """
        self.function, self.device = function, device
        self.wanted = wanted and device.type == 'cuda'
        # To warm up and to record on one stream: what libraries prepare belongs to a stream.
        self._stream = torch.cuda.Stream(device) if self.wanted else None
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, tuple] = {}

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Call the function, or replay it on these values.

        :raises SpecError: if it cannot be recorded.
        """
        if not self.wanted:
            return self.function(*tensors)
        key = tuple(x.shape for x in tensors)
        if key not in self._graphs:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= NUM_WARM_UP:
                return self._aside(tensors)
            try:
                with uncollected():
                    self._graphs[key] = self._record(tensors)
            except torch.OutOfMemoryError:  # a RuntimeError, but no fault of recording
                raise
            except RuntimeError as error:
                # No going on without: torch leaves stream and generator as they are in recording,
                # and what it says last is only that the recording cannot be ended.
                first = error
                while isinstance(first.__context__, RuntimeError):
                    first = first.__context__
                reason = str(first).partition('\n')[0]
                raise SpecError('trainer.cuda_graphs must be false here, since recording an '
                                f'update failed, got true: {reason}') from error
        graph, inputs, result = self._graphs[key]
        with torch.no_grad():
            for place, tensor in zip(inputs, tensors):
                place.copy_(tensor)
        graph.replay()
        return result

    def _aside(self, tensors):
        """Run on a stream other than the default one, which nothing recorded later may meet."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self.function(*tensors)
        current.wait_stream(self._stream)
        return result

    def _record(self, tensors):
        inputs = [x.clone() for x in tensors]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = self.function(*inputs)
        return graph, inputs, result
