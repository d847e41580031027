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

"""Raise at every operation for which the host would have to wait for a GPU; found on a CPU."""

import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Reading a value, sizes that depend on values, and tensors made from numbers of the host: copies
# from its pageable memory wait.
WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'equal', 'is_nonzero',
           'lift_fresh', '_linalg_check_errors', 'randperm')
BY_PYTHON = ('numpy', 'tolist', 'item', 'cpu', '__bool__', '__float__', '__int__', '__index__')
# What makes tensors on the host if it is not told where.
MAKERS = {getattr(torch, name) for name in (
    'arange', 'as_tensor', 'empty', 'eye', 'from_numpy', 'full', 'linspace', 'ones', 'rand',
    'randint', 'randn', 'scalar_tensor', 'tensor', 'zeros')}


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        if name in WAITING or name.startswith('_unique'):
            raise AssertionError(f'{name} waits for the device')
        if name in ('index', 'index_put', 'index_put_'):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise AssertionError(f'{name} with a mask waits for the device')
        return func(*args, **(kwargs or {}))


def _refuse(name):
    def refused(self, *args, **kwargs):
        raise AssertionError(f'{name} waits for the device')
    return refused


@contextlib.contextmanager
def never_waiting():
    """Raise an AssertionError at what would wait."""
    with contextlib.ExitStack() as stack:
        for name in BY_PYTHON:
            stack.enter_context(mock.patch.object(torch.Tensor, name, _refuse(name)))
        stack.enter_context(_Watch())
        yield


class HostTensors(TorchFunctionMode):
    """Follow tensors that were made without a device, on a machine where all are on the host.

    On a GPU an operation on one of these and on others fails, or waits.

    :ivar found: those that are alive, as keys; not what code in C++ made by itself.
    :ivar refused: whether to raise an AssertionError at the next one.
    """

    def __init__(self):
        """Know none."""
        super().__init__()
        self.found, self.refused = WeakIdKeyDictionary(), False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function of torch."""
        kwargs, name = kwargs or {}, getattr(func, '__name__', '')
        given = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        is_host = any(x in self.found for x in given) and name not in ('__get__', '__set__') \
            or func in MAKERS and kwargs.get('device') is None and not given
        if is_host and self.refused:
            raise AssertionError(f'{name} takes or makes a tensor of the host')
        result = func(*args, **kwargs)
        if is_host and name != 'to':
            self.found.update((x, True) for x in tree_leaves(result) if torch.is_tensor(x))
        return result
