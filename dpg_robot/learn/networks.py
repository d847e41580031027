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

"""Small networks: ensembles evaluated in one batched product, and running normalisers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from dpg_robot.contract.strict import SpecError


class EnsembleMLP(nn.Module):
    """``num_members`` independent multilayer perceptrons of one shape, evaluated together.

    With ``narrow``, the products between hidden layers are computed in bfloat16 while training,
    forward and backward: factors and results are rounded to eight significant bits, sums are not.
    Those of inputs and outputs, and all of an evaluation, are in float32.
    """

    narrow = False

    def __init__(self, in_dim: int, hidden: tuple[int, ...], out_dim: int, num_members: int = 1):
        """Create the members, each with torch.nn.Linear's initial distribution."""
        super().__init__()
        sizes = (in_dim, *hidden, out_dim)
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:])):
            bound = 1.0 / math.sqrt(fan_in)
            weight = torch.empty(num_members, fan_in, fan_out).uniform_(-bound, bound)
            bias = torch.empty(num_members, 1, fan_out).uniform_(-bound, bound)
            self.register_parameter(f'weight{i}', nn.Parameter(weight))
            self.register_parameter(f'bias{i}', nn.Parameter(bias))

    @property
    def weights(self) -> list[nn.Parameter]:
        """Return those of each layer, shape (num_members, fan_in, fan_out)."""
        return list(self._parameters.values())[::2]

    @property
    def biases(self) -> list[nn.Parameter]:
        """Return those of each layer, shape (num_members, 1, fan_out)."""
        return list(self._parameters.values())[1::2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate every member on the same inputs.

        :param x: inputs, shape (B, in_dim).
        :return: outputs, shape (num_members, B, out_dim).
        """
        return self._layers(x, self._factors)[-1]

    @torch.no_grad()
    def slope(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate members that have one output each, and differentiate their mean.

        By hand: neither a graph nor the gradient of any parameter is made on the way.

        :param x: inputs, shape (B, in_dim).
        :param count: the gradient is with respect to so many of the inputs, the last ones.
        :return: outputs, shape (num_members, B), and the gradient, shape (B, count).
        """
        weights = self._factors
        layers = self._layers(x, weights)
        gradient = weights[-1].transpose(1, 2) / len(weights[-1])
        for i in reversed(range(len(weights) - 1)):
            h = layers[i + 1]
            gradient = torch.ops.aten.threshold_backward(gradient.expand_as(h), h, 0)  # of relu
            if i:
                factor = weights[i].transpose(1, 2)
                gradient = torch.bmm(gradient.to(factor.dtype), factor).to(gradient.dtype)
            else:  # this way round, since few columns may take thrice as long as few rows
                wanted = weights[0][:, -count:]
                gradient = torch.bmm(wanted, gradient.transpose(1, 2)).transpose(1, 2)
        return layers[-1][..., 0], gradient.sum(0)[:, -count:].expand(len(x), count)

    @property
    def _factors(self):
        """Return the weights, those between hidden layers in the precision of their products."""
        weights = self.weights
        if self.narrow and self.training:
            weights[1:-1] = [weight.bfloat16() for weight in weights[1:-1]]
        return weights

    def _layers(self, x, weights):
        """Return the inputs, what each hidden layer makes of them, and the outputs."""
        layers, last = [x.expand(len(weights[0]), *x.shape)], len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, self.biases)):
            h = layers[-1]
            if weight.dtype == torch.bfloat16:
                h = torch.bmm(h.bfloat16(), weight).float().add_(bias)
            elif i == last and weight.shape[-1] == 1 < len(weight):
                # A batch of products with one column each may take four times as long.
                h = (h * weight.transpose(1, 2)).sum(-1, keepdim=True) + bias
            elif i == last and len(weight) > 1:
                h = _FewColumns.apply(h, weight) + bias
            else:
                h = torch.baddbmm(bias, h, weight)
            layers.append(torch.relu_(h) if i < last else h)
        return layers


class _FewColumns(torch.autograd.Function):
    """h @ weight by products with few rows: those with few columns may take four times as long."""

    @staticmethod
    def forward(ctx, h, weight):
        ctx.save_for_backward(h, weight)
        rows = weight.transpose(1, 2).contiguous()  # as a view, they may take ten times as long
        return torch.bmm(rows, h.transpose(1, 2)).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        h, weight = ctx.saved_tensors
        of_weight = torch.bmm(gradient.transpose(1, 2), h).transpose(1, 2)
        return torch.bmm(gradient, weight.transpose(1, 2)), of_weight.contiguous()


def set_products(module: nn.Module, precision: str, device: str = 'cpu') -> None:
    """Choose whether all networks inside have narrow products while training.

    :param precision: ``float32``, ``bfloat16`` for narrow ones, or ``auto`` for these on a
        processor that is faster with them.
    :param device: ``cpu``; elsewhere none are narrow.
    :raises SpecError: if they are asked for elsewhere.
    """
    if precision == 'bfloat16' and device != 'cpu':
        raise SpecError('learner.precision must be auto or float32 on any device but a CPU, '
                        f'got bfloat16 on {device}')
    narrow = precision == 'bfloat16' or \
        precision == 'auto' and device == 'cpu' and _has_bfloat16()
    for network in module.modules():
        if isinstance(network, EnsembleMLP):
            network.narrow = narrow


def _has_bfloat16():
    capabilities = getattr(torch.cpu, 'get_capabilities', dict)()
    if any(capabilities.get(name) for name in ('amx_bf16', 'bf16')):
        return True
    # AMD's AVX-512 multiplies twice as many as of float32; with Intel's, on the Xeon that was
    # measured, updates took half as long again.
    return bool(capabilities.get('avx512_bf16')) and 'AMD' in capabilities.get('cpu_name', '')


class RunningNorm(nn.Module):
    """Shift and scale by the mean and standard deviation of all data seen so far."""

    def __init__(self, dim: int, clip: float = 10.0):
        """Create the identity.

        :param clip: normalised values are clipped to plus and minus this.
        """
        super().__init__()
        self.clip = clip
        self.register_buffer('count', torch.zeros((), dtype=torch.float64))
        self.register_buffer('mean', torch.zeros(dim, dtype=torch.float64))
        self.register_buffer('m2', torch.zeros(dim, dtype=torch.float64))
        self.register_buffer('shift', torch.zeros(dim))
        self.register_buffer('scale', torch.ones(dim))

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Take in a batch, shape (B, dim), by Chan's parallel variance formula."""
        x = x.double()
        count = self.count + x.shape[0]
        delta = x.mean(0) - self.mean
        self.m2 += x.var(0, unbiased=False) * x.shape[0] \
            + delta.square() * self.count * x.shape[0] / count
        self.mean += delta * x.shape[0] / count
        self.count.copy_(count)
        std = (self.m2 / count).sqrt()
        # An element that never changes carries nothing: it is centred, not blown up.
        constant = std <= 1e-6 * (1.0 + self.mean.abs())
        self.shift.copy_(self.mean)
        self.scale.copy_(torch.where(constant, 1.0, 1.0 / std.clamp(min=1e-12)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, shape (..., dim)."""
        return ((x - self.shift) * self.scale).clamp(-self.clip, self.clip)

    def invert(self, normalised: torch.Tensor) -> torch.Tensor:
        """Return physical values, shape (..., dim)."""
        return normalised / self.scale + self.shift


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the target's parameters towards the source's by ``rate``."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
