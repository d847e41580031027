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

"""Rounds of every learner on a device that is not there: tensors with a place and no values.

An operation on tensors of two devices fails here as it does on a GPU, and so does what asks for a
value. As a program, since torch knows one such device and keeps it: prints what went wrong with
each learner, None if nothing did, and then with each of ``FAULTS``, which must not pass.
"""

import contextlib
import json
from pathlib import Path
import sys
import tempfile
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# What a network would do to its input.
FAULTS = (lambda x: x + torch.ones(1), lambda x: x if x.sum() > 0 else -x,
          lambda x: x * torch.tensor(2.0), lambda x: x.cpu().to(x.device))
NETS = {'hidden': (8,), 'denoiser_hidden': (8,)}


class _Absent(backend_registration._DummyBackendModule):
    """A backend whose kernels are never called."""

    def is_available(self):
        return False


class _NothingOfTheHost(TorchDispatchMode):
    """Refuse tensors of the host, single numbers too: a graph would keep the first one's value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for what, tensors in (('takes', (args, kwargs)), ('makes', result)):
            if any(torch.is_tensor(x) and x.device.type == 'cpu' for x in tree_leaves(tensors)):
                raise AssertionError(f'{func} {what} a tensor of the host')
        return result


def _to(module, device):
    """Do what nn.Module.to does, which cannot exchange tensors without values."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = nn.Parameter(parameter.detach().to(device))
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)
    return module


@contextlib.contextmanager
def without_values():
    """Make all tensors without values; what is copied deeply stays of the same mode."""
    with FakeTensorMode(), mock.patch.object(nn.Module, 'to', _to), mock.patch.object(
            FakeTensorMode, '__deepcopy__', lambda mode, memo: mode, create=True):
        yield


def rounds(algorithm, learner, device, folder):
    """Act at random, update, store and restore everything, and go on, in turns."""
    from bandit_worlds import BanditsOnDevice, BanditsOnHost
    from test_device import ALGORITHMS

    from dpg_robot.learn.trainer import Trainer, TrainerConfig
    config = TrainerConfig(algorithm=algorithm, device='cuda', num_worlds=8, env_steps=10**6,
                           warmup_steps=16, updates_per_step=1 / 8, eval_every_steps=0)
    more = {'gradient_hidden': (8,), 'batch_size': 8} if algorithm == 'off_policy' \
        else {'horizon': 2, 'minibatches': 2, 'num_epochs': 1}
    settings = ALGORITHMS[algorithm](**NETS | more | learner)
    trainer = Trainer(config, settings, BanditsOnDevice(8, device), BanditsOnHost(4), folder, {})
    for _ in range(4):  # what is new as the third ends is shown in the fourth
        with _NothingOfTheHost():
            trainer.round()
            trainer.round()
        state = tree_map(lambda x: x.cpu() if torch.is_tensor(x) else x,
                         trainer.algorithm.state_dict())
        trainer.algorithm.load_state_dict(state)
    assert trainer.updates == 7
    assert all(x.device == device for x in tree_leaves(trainer.learner.optimizer.state_dict())
               if torch.is_tensor(x))


def _outcome(algorithm, learner):
    """Return what went wrong."""
    with tempfile.TemporaryDirectory() as folder, without_values():
        try:
            rounds(algorithm, learner, torch.device('absent:0'), Path(folder))
        except Exception as error:
            return f'{type(error).__name__}: {error}'.partition('\n')[0]


def main():
    """Go through all learners, and through all faults."""
    from test_device import LEARNERS

    from dpg_robot.learn.networks import EnsembleMLP
    backend_registration._setup_privateuseone_for_python_backend(
        'absent', backend_module=_Absent())
    found, forward = [_outcome(*each) for each in LEARNERS], EnsembleMLP.forward
    for fault in FAULTS:
        with mock.patch.object(EnsembleMLP, 'forward', lambda net, x: forward(net, fault(x))):
            found.append(_outcome('off_policy', {'estimator': 'denoising'}))
    print(json.dumps(found))


if __name__ == '__main__':
    sys.path += map(str, Path(__file__).parents[:2])  # a safe path has not even the first
    main()
