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

"""Per-sample estimates of g(s, a~) = grad_a~ E[y | s, a~] (docs/mathematics.md).

``y = r + gamma * (1 - terminated) * V(s')`` is the one-step target, ``a~`` the noised action,
``b(s, a~)`` a baseline, ``score = grad_a~ log p(o | s, a~)`` the denoiser's, ``h`` the gradient of
a critic. An estimate is ``c h + correction``: the correction is noisy, sample by sample, and
is regressed on (s, a~); h is already a function of (s, a~).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Sample(NamedTuple):
    """What an estimator may use, for a batch of transitions.

    :param advantage: y - b(s, a~), shape (B,).
    :param score: estimated grad_a~ log p(o | s, a~), shape (B, action_dim).
    :param critic_grad: h = grad_a~ Q(s, a~), shape (B, action_dim).
    :param fisher: F = E[score score^T], shape (action_dim, action_dim).
    :param lean: coefficient of the control variate, scalar; see :func:`best_lean`.
    """

    advantage: torch.Tensor
    score: torch.Tensor
    critic_grad: torch.Tensor
    fisher: torch.Tensor
    lean: torch.Tensor


class Estimator(NamedTuple):
    """How one estimator is put together.

    :param correction: its per-sample correction, shape (B, action_dim); None if it has none.
    :param uses_critic: whether h is part of its answer.
    """

    correction: Callable[[Sample], torch.Tensor] | None
    uses_critic: bool


def denoising(sample: Sample) -> torch.Tensor:
    """Return (y - b) score: the score-function identity, without a model or a critic."""
    return sample.advantage[:, None] * sample.score


def recovered_disturbance(score: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """Return xi = F^-1 score: what the world added to the action, read from the outcome.

    Of all functions of the outcome whose mean moves by one with the action, xi has the least
    variance (the Cramer-Rao bound).

    :return: disturbances, shape (B, action_dim), in normalised action units.
    """
    return torch.linalg.solve(fisher, score.T).T


def doubly_robust(sample: Sample) -> torch.Tensor:
    """Return (y - b - c h . xi) score, the correction to c h.

    ``c h + correction`` has the mean E[(y - b) score] for any h and any c, since
    E[xi score^T] = I: a critic cannot bias it. If h is right, c = 1 leaves only the part of y - b
    that h . xi does not explain. One F for all states, as here, moves the mean by
    c (I - F(s) F^-1) h; a wrong score biases it as it biases :func:`denoising`.
    """
    disturbance = recovered_disturbance(sample.score, sample.fisher)
    explained = sample.lean * (sample.critic_grad * disturbance).sum(-1)
    return (sample.advantage - explained)[:, None] * sample.score


def best_lean(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numerator and denominator of the coefficient c that least disturbs the correction.

    c = <(y - b) score, (h . xi) score> / <(h . xi) score, (h . xi) score>, the regression
    coefficient of a control variate, averaged over batches before it is divided.
    """
    disturbance = recovered_disturbance(sample.score, sample.fisher)
    explained = (sample.critic_grad * disturbance).sum(-1)
    weight = sample.score.square().sum(-1)
    return (sample.advantage * explained * weight).mean(), (explained.square() * weight).mean()


ESTIMATORS = {
    'denoising': Estimator(denoising, uses_critic=False),
    'critic': Estimator(None, uses_critic=True),
    'doubly_robust': Estimator(doubly_robust, uses_critic=True),
}
