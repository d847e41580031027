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

from collections.abc import Iterator
from contextlib import contextmanager
import math

import torch
from torch import nn


class EnsembleMLP(nn.Module):
    """``num_members`` independent multilayer perceptrons of one shape, evaluated together.

    With ``narrow``, the products between hidden layers are narrow while training; see
    :func:`narrow_products`. Those of inputs and outputs, and all of an evaluation, are not; on
    the way backward whoever goes it decides, for all of them.
    """

    narrow = False

    def __init__(self, in_dim: int, hidden: tuple[int, ...], out_dim: int, num_members: int = 1):
        """Create the members, each with torch.nn.Linear's initial distribution."""
        super().__init__()
        sizes = (in_dim, *hidden, out_dim)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
            bound = 1.0 / math.sqrt(fan_in)
            weight = torch.empty(num_members, fan_in, fan_out).uniform_(-bound, bound)
            bias = torch.empty(num_members, 1, fan_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate every member on the same inputs.

        :param x: inputs, shape (B, in_dim).
        :return: outputs, shape (num_members, B, out_dim).
        """
        h = x.expand(len(self.weights[0]), *x.shape)
        for i in range(len(self.weights)):
            h = self._layer(i, h)
        return h

    @torch.no_grad()
    def slope(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate members that have one output each, and differentiate their mean.

        By hand: neither a graph nor the gradient of any parameter is made on the way.

        :param x: inputs, shape (B, in_dim).
        :param count: the gradient is with respect to so many of the inputs, the last ones.
        :return: outputs, shape (num_members, B), and the gradient, shape (B, count).
        """
        layers = [x.expand(len(self.weights[0]), *x.shape)]
        for i in range(len(self.weights)):
            layers.append(self._layer(i, layers[-1]))
        gradient = self.weights[-1].transpose(1, 2) / len(self.weights[0])
        for i in reversed(range(len(self.weights) - 1)):
            h = layers[i + 1]
            gradient = torch.ops.aten.threshold_backward(gradient.expand_as(h), h, 0)  # of relu
            weight = self.weights[i] if i else self.weights[i][:, -count:]
            with narrow_products(self._is_narrow(i)):
                gradient = torch.bmm(gradient, weight.transpose(1, 2))
        return layers[-1][..., 0], gradient.sum(0)[:, -count:].expand(len(x), count)

    def _layer(self, i, h):
        with narrow_products(self._is_narrow(i)):
            h = torch.baddbmm(self.biases[i], h, self.weights[i])
        return torch.relu(h) if i < len(self.weights) - 1 else h

    def _is_narrow(self, i):
        return self.narrow and self.training and 0 < i < len(self.weights) - 1


@contextmanager
def narrow_products(wanted: bool = True) -> Iterator[None]:
    """Let the processor round the factors of matrix products, not the sums, to bfloat16.

    Its numbers have eight significant bits. One without instructions for them may round nothing.
    It holds for all threads of the process: only one may train, or multiply, at a time.
    """
    if not wanted:
        yield
        return
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = 'bf16'
        yield
    finally:
        products.fp32_precision = before


def set_products(module: nn.Module, precision: str, device: str = 'cpu') -> bool:
    """Choose whether all networks inside have narrow products while training.

    :param precision: ``float32``, ``bfloat16`` for narrow ones, or ``auto`` for these on a
        processor that is faster with them.
    :param device: ``cpu``; elsewhere none are narrow.
    :return: whether they are, so that the step backward, too, is to have them.
    """
    narrow = device == 'cpu' and (
        precision == 'bfloat16' or precision == 'auto' and _has_bfloat16())
    for network in module.modules():
        if isinstance(network, EnsembleMLP):
            network.narrow = narrow
    return narrow


def _has_bfloat16():
    # Not avx512_bf16: on the Xeon that was measured, updates took half as long again with it.
    capabilities = getattr(torch.cpu, 'get_capabilities', dict)()
    return any(capabilities.get(name) for name in ('amx_bf16', 'bf16'))


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
