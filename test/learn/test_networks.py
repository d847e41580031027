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
import pytest
import torch
from torch import nn

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.networks import EnsembleMLP, polyak_update, RunningNorm, set_products


def member_as_linears(ensemble, member):
    layers = []
    for weight, bias in zip(ensemble.weights, ensemble.biases):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight.data[member].T.clone()
        linear.bias.data = bias.data[member, 0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize('out_dim', [1, 2])
def test_each_member_equals_a_stack_of_linear_layers(out_dim):
    ensemble = EnsembleMLP(3, (5, 4), out_dim, num_members=3)
    x = torch.randn(7, 3)
    out = ensemble(x)
    assert out.shape == (3, 7, out_dim)
    for member in range(3):
        torch.testing.assert_close(out[member], member_as_linears(ensemble, member)(x))
    assert (out[0] - out[1]).abs().max() > 0.01


@pytest.mark.parametrize('out_dim', [1, 2])
def test_gradients_of_a_member_equal_those_of_its_linear_layers(out_dim):
    ensemble = EnsembleMLP(3, (5,), out_dim, num_members=2)
    x = torch.randn(7, 3)
    stack = member_as_linears(ensemble, 1)
    ensemble(x)[1].square().sum().backward()
    stack(x).square().sum().backward()
    for i, weight in enumerate(ensemble.weights):
        torch.testing.assert_close(weight.grad[1], stack[2 * i].weight.grad.T)
        assert not weight.grad[0].any()


@pytest.mark.parametrize('hidden', [(), (5,), (64, 48), (16, 8, 4)])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_slope_is_the_gradient_of_the_members_mean(hidden, precision):
    ensemble, x = EnsembleMLP(7, hidden, 1, num_members=3), torch.randn(50, 7)
    set_products(ensemble, precision)
    values, slope = ensemble.slope(x, 4)
    at = x.clone().requires_grad_()
    out = ensemble(at)[..., 0]
    expected, = torch.autograd.grad(out.mean(0).sum(), at)
    assert torch.equal(values, out)
    tolerance = 1e-6 if precision == 'float32' else 1e-4  # both are as narrow
    assert slope.shape == (50, 4) and not slope.requires_grad
    assert relative(slope, expected[:, 3:]) < tolerance


def test_the_way_back_of_a_slope_is_narrow_while_training(monkeypatch):
    ensemble, x = EnsembleMLP(7, (64, 48), 1, num_members=3), torch.randn(50, 7)
    set_products(ensemble, 'bfloat16')
    relu, active = torch.relu_, []
    monkeypatch.setattr(torch, 'relu_', lambda h: (active.append(h > 0), relu(h))[1])

    def error():
        active.clear()
        _, slope = ensemble.slope(x, 4)
        first, second, last = ensemble.weights
        exact = last.transpose(1, 2) / 3 * active[1]  # of the same activations
        exact = torch.bmm(torch.bmm(exact, second.transpose(1, 2)) * active[0],
                          first.transpose(1, 2))
        return relative(slope, exact.sum(0)[:, 3:])

    assert error() > 1e-4
    ensemble.eval()
    assert error() < 1e-6


def test_initial_weights_follow_the_fan_in():
    ensemble = EnsembleMLP(100, (25,), 400, num_members=2)
    for weight, bias, fan_in in zip(ensemble.weights, ensemble.biases, (100, 25)):
        bound = 1 / math.sqrt(fan_in)
        assert weight.abs().max() <= bound and bias.abs().max() <= bound
        # A uniform variable on (-b, b) has standard deviation b / sqrt(3); 5000 draws or more.
        assert abs(weight.std().item() * math.sqrt(3) / bound - 1) < 0.05


def relative(got, expected):
    """Return the error of a tensor relative to its size."""
    return ((got - expected).norm() / expected.norm()).item()


def in_both(ensemble, x):
    """Return outputs and gradients, of the input first, with narrow products and without."""
    for precision in ('bfloat16', 'float32'):
        set_products(ensemble, precision)
        at = x.clone().requires_grad_()
        out = ensemble(at)
        yield out.detach(), torch.autograd.grad(out.square().sum(), [at, *ensemble.parameters()])


@pytest.mark.parametrize('hidden', [(64, 64), (64, 64, 64)])
def test_narrow_products_of_hidden_layers_are_close_while_training(hidden):
    (out, grads), (exact, exact_grads) = in_both(
        EnsembleMLP(10, hidden, 3, 2), torch.randn(50, 10))
    rounding = 2.0 ** -8
    assert 0.05 * rounding < relative(out, exact) < 2 * rounding
    for grad, exact_grad in zip(grads, exact_grads):
        assert grad.dtype == torch.float32
        # Of the activations near nought some few switch, which counts by its root.
        assert 0.05 * rounding < relative(grad, exact_grad) < 0.1


def test_the_way_back_is_narrow_between_hidden_layers_alone():
    ensemble = EnsembleMLP(10, (64, 64, 64), 3, 2)
    (_, grads), _ = in_both(ensemble, torch.randn(50, 10))
    rounded = {name for (name, _), grad in zip(ensemble.named_parameters(), grads[1:])
               if torch.equal(grad, grad.bfloat16().float())}
    assert rounded == {'weight1', 'weight2'}


def test_first_and_last_layer_have_no_narrow_products():
    # Inputs that bfloat16 cannot tell apart.
    (out, grads), (exact, exact_grads) = in_both(
        EnsembleMLP(64, (64,), 64), 1 + 1e-4 * torch.randn(64, 64))
    assert len(out.unique()) > 64
    assert torch.equal(out, exact)
    assert all(torch.equal(*both) for both in zip(grads, exact_grads))


def test_an_evaluation_has_no_narrow_products():
    (out, grads), (exact, exact_grads) = in_both(
        EnsembleMLP(64, (64, 64), 64, 2).eval(), torch.randn(64, 64))
    assert torch.equal(out, exact)
    assert all(torch.equal(*both) for both in zip(grads, exact_grads))


@pytest.mark.parametrize('capabilities, narrow', [
    ({'avx512_bf16': True, 'cpu_name': 'Intel Xeon Processor'}, False),
    ({'avx512_bf16': True, 'cpu_name': 'AMD EPYC'}, True), ({'avx512_bf16': True}, False),
    ({'avx512_bf16': False, 'cpu_name': 'AMD EPYC'}, False),
    ({'amx_bf16': True, 'avx512_bf16': True}, True), ({'bf16': True}, True),
    ({'avx2': True, 'amx_bf16': False}, False), ({}, False), (None, False)])
def test_narrow_products_are_taken_where_the_processor_gains_by_them(
        monkeypatch, capabilities, narrow):
    if capabilities is None:  # a torch that cannot say
        monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    else:
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    ensemble = EnsembleMLP(10, (64, 64), 3)
    set_products(nn.Sequential(ensemble), 'auto')
    assert ensemble.narrow is narrow
    with pytest.raises(SpecError, match='precision must be auto or float32 .* bfloat16 on cuda'):
        set_products(nn.Sequential(ensemble), 'bfloat16', 'cuda')
    set_products(nn.Sequential(ensemble), 'auto', 'cuda')
    assert ensemble.narrow is False


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
