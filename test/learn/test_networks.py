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

import math

import numpy as np
import torch
from torch import nn

from dpg_robot.learn.networks import EnsembleMLP, polyak_update, RunningNorm


def member_as_linears(ensemble, member):
    layers = []
    for weight, bias in zip(ensemble.weights, ensemble.biases):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight.data[member].T.clone()
        linear.bias.data = bias.data[member, 0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_each_member_equals_a_stack_of_linear_layers():
    ensemble = EnsembleMLP(3, (5, 4), 2, num_members=3)
    x = torch.randn(7, 3)
    out = ensemble(x)
    assert out.shape == (3, 7, 2)
    for member in range(3):
        torch.testing.assert_close(out[member], member_as_linears(ensemble, member)(x))
    assert (out[0] - out[1]).abs().max() > 0.01


def test_gradients_of_a_member_equal_those_of_its_linear_layers():
    ensemble = EnsembleMLP(3, (5,), 2, num_members=2)
    x = torch.randn(7, 3)
    stack = member_as_linears(ensemble, 1)
    ensemble(x)[1].square().sum().backward()
    stack(x).square().sum().backward()
    for i, weight in enumerate(ensemble.weights):
        torch.testing.assert_close(weight.grad[1], stack[2 * i].weight.grad.T)
        assert not weight.grad[0].any()


def test_initial_weights_follow_the_fan_in():
    ensemble = EnsembleMLP(100, (25,), 400, num_members=2)
    for weight, bias, fan_in in zip(ensemble.weights, ensemble.biases, (100, 25)):
        bound = 1 / math.sqrt(fan_in)
        assert weight.abs().max() <= bound and bias.abs().max() <= bound
        # A uniform variable on (-b, b) has standard deviation b / sqrt(3); 5000 draws or more.
        assert abs(weight.std().item() * math.sqrt(3) / bound - 1) < 0.05


def awkward_data():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((400, 5)) * [1.0, 1e-3, 50.0, 1.0, 1.0] + [0.0, 2.0, 0.0, 1e3, 0.0]
    data[:, 4] = 0.1
    return data


def normaliser_of(data, sizes):
    norm = RunningNorm(data.shape[1])
    for part in np.split(data, np.cumsum(sizes)):
        norm.update(torch.tensor(part))
    return norm


def test_running_norm_equals_numpy_over_all_data():
    data = awkward_data()
    norm = normaliser_of(data, (1, 1, 17, 100))
    expected = (data - data.mean(0)) / np.where(np.arange(5) == 4, 1.0, data.std(0))
    np.testing.assert_allclose(norm.mean, data.mean(0), rtol=1e-12)
    # float64 in, so that the data's own rounding does not enter.
    got = norm(torch.tensor(data)).numpy()
    np.testing.assert_allclose(got[:, :3], expected[:, :3], rtol=1e-4, atol=1e-4)
    # The shift is stored in float32: 1e3 is held to 3e-5 standard deviations.
    np.testing.assert_allclose(got[:, 3], expected[:, 3], atol=1e-4)


def test_a_constant_element_is_centred_and_keeps_its_unit():
    norm = normaliser_of(awkward_data(), (3, 50))
    x = torch.tensor(awkward_data()[:2])
    x[1, 4] += 0.5
    np.testing.assert_allclose(norm(x)[:, 4], [0.0, 0.5], atol=1e-7)


def test_running_norm_is_the_identity_before_data_and_clips():
    norm = RunningNorm(2, clip=4.0)
    torch.testing.assert_close(norm(torch.tensor([[1.5, -9.0]])), torch.tensor([[1.5, -4.0]]))


def test_running_norm_continues_from_its_state():
    data = awkward_data()
    whole = normaliser_of(data, (150,))
    half, resumed = RunningNorm(5), RunningNorm(5)
    half.update(torch.tensor(data[:150]))
    resumed.load_state_dict(half.state_dict())
    resumed.update(torch.tensor(data[150:]))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_polyak_update_moves_the_target_only():
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((target, 1.0), (source, 3.0)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    polyak_update(target, source, 0.25)
    assert [p.item() for p in target.parameters()] == [1.5, 1.5]
    assert [p.item() for p in source.parameters()] == [3.0, 3.0]
