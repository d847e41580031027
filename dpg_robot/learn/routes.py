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

"""From replayed transitions to theta without an amortised gradient: invert alpha for eps."""

from __future__ import annotations

import torch

from dpg_robot.learn.action_gradient import ActionGradient
from dpg_robot.learn.policy import SquashedGaussianPolicy
from dpg_robot.learn.replay import Batch


def sample_gradient(source: ActionGradient, batch: Batch) -> torch.Tensor:
    """Return each transition's own estimate of g(s, a), shape (B, action_dim), detached.

    With a denoiser it is noisy, and right on average over outcomes; otherwise the learned function
    at the replayed action.
    """
    if source.estimator.correction is None:
        return source(batch.obs, batch.action)
    sample, _ = source.per_sample(batch)
    estimate = source.estimator.correction(sample)
    if source.estimator.leans:
        estimate = estimate + torch.tensordot(sample.lean, sample.guides, 1)
    return source.scale * estimate.detach()


def importance_weights(policy: SquashedGaussianPolicy, batch: Batch,
                       cap: float, check: bool = True) -> torch.Tensor:
    """Return min(cap, pi(a | s) / p(a | s)), p the behaviour that acted, shape (B,).

    Truncation bounds the variance; what it cuts off is a bias towards what the behaviour did.

    :param check: whether to look at the densities, which waits for a device.
    :raises ValueError: if the behaviour's density was not recorded.
    """
    if check and not torch.isfinite(batch.log_prob).all():
        raise ValueError('log_prob of every transition must be finite for the inverted route, '
                         'got some that are not')
    trains = policy.training
    with torch.no_grad():
        # As precisely as when it acted: the same policy has weight 1.
        log_ratio = policy.eval().log_prob(batch.obs, batch.action) - batch.log_prob
        policy.train(trains)
        return log_ratio.exp().clamp(max=cap)


def inverted_ascent(policy: SquashedGaussianPolicy, source: ActionGradient, batch: Batch,
                    cap: float, metrics: dict[str, torch.Tensor]
                    ) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w g . alpha(s, eps; theta), shape (B,), and w g, with eps from the replayed action.

    ``eps`` and the weights w are constants: the gradient goes through alpha only.

    :param metrics: figures of the weights are added to it.
    """
    weight = importance_weights(policy, batch, cap, check=source.waits)
    gradient = weight[:, None] * sample_gradient(source, batch)
    with torch.no_grad():
        eps = policy.invert(batch.obs, batch.action)
    metrics['route/weight'] = weight.mean()
    metrics['route/truncated'] = (weight == cap).float().mean()
    return (gradient * policy(batch.obs, eps)).sum(-1), gradient
