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

import copy

import pytest
import torch

from dpg_robot.learn.optimizer import AdamW


def make(kind, **rest):
    """Return parameters, of which the last two will have no gradients, and their optimiser."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator))
                  for shape in ((2, 5, 3), (3,), (), (4,), (2,))]
    groups = [{'params': parameters[:1], 'lr': 1e-2, 'weight_decay': 0.5},
              {'params': parameters[1:4], 'lr': 1e-3, 'weight_decay': 0.0},
              {'params': parameters[4:], 'lr': 1.0, 'weight_decay': 0.0}]
    return parameters, kind(groups, **rest)


def take(parameters, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters[:3]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.param_groups[0]['lr'] *= 0.9


def assert_same(ours, theirs):
    for one, other in zip(ours[0], theirs[0]):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    mine, yours = (optimizer.state_dict() for _, optimizer in (ours, theirs))
    assert mine['state'].keys() == yours['state'].keys() == {0, 1, 2}
    for index, state in yours['state'].items():
        assert mine['state'][index].keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(mine['state'][index][name], value), name


def test_steps_are_those_of_torch():
    ours, theirs = make(AdamW), make(torch.optim.AdamW, fused=True)
    for _ in range(3):
        take(*ours, range(4))
        take(*theirs, range(4))
        assert_same(ours, theirs)


@pytest.mark.parametrize('steps', [0, 1, 3])
def test_a_restored_state_goes_on_as_the_old_one_would(steps):
    old, new, theirs = make(AdamW), make(AdamW), make(torch.optim.AdamW, fused=True)
    take(*new, range(50, 55))  # what was must be forgotten
    take(*old, range(steps))
    take(*theirs, range(steps + 4))
    for parameter, value in zip(new[0], old[0]):
        parameter.data.copy_(value.data)
    new[1].load_state_dict(copy.deepcopy(old[1].state_dict()))
    take(*new, range(steps, steps + 4))
    assert_same(new, theirs)


def test_a_copy_goes_its_own_way():
    ours, theirs = make(AdamW), make(torch.optim.AdamW, fused=True)
    take(*ours, range(3))
    take(*theirs, range(3))
    copies = copy.deepcopy(ours), copy.deepcopy(theirs)
    for one in copies:
        take(*one, range(7, 9))
    take(*ours, range(3, 5))
    take(*theirs, range(3, 5))
    assert_same(ours, theirs)
    assert_same(*copies)


def test_a_gradient_that_comes_later_is_an_error():
    parameters, optimizer = make(AdamW)
    take(parameters, optimizer, range(2))
    before = [p.detach().clone() for p in parameters]
    parameters[3].grad = torch.ones(4)
    with pytest.raises(RuntimeError, match='a gradient at every step or at none'):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before))
