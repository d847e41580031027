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

"""Rollouts of many worlds, and generalised advantages over them, also where they are cut off."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Rollout(NamedTuple):
    """T steps of N worlds: obs, next_obs (T, N, obs_dim); eps, action (T, N, action_dim); (T, N).

    ``next_obs`` is the true next observation, also where an episode ended.
    """

    obs: torch.Tensor
    eps: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    next_obs: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor


def generalised_advantage(difference: torch.Tensor, terminated: torch.Tensor,
                          truncated: torch.Tensor, gamma: float, lam: float,
                          corrected: bool = False) -> torch.Tensor:
    """Return GAE(lambda) (Schulman et al. 2016), shape (T, N).

    It averages k-step advantages with the weights (1 - lambda) lambda^(k-1). Where the sum is cut
    off after n steps, these add to 1 - lambda^n only. Plain GAE then gives all that is missing to
    the n-step advantage, the noisiest; ``corrected`` divides the weights by their sum. With
    Z_n = 1 + lambda Z_(n-1), Z_0 = 0, that is 1 - 1 / Z_n in place of lambda. Termination cuts
    nothing off: all longer sums equal that one.

    :param difference: r + gamma (1 - terminated) V(s') - V(s), shape (T, N).
    :param terminated: 1 where the episode ended, shape (T, N); ``truncated`` where it was cut off.
    """
    advantage, total = torch.zeros_like(difference), torch.zeros_like(difference[0])
    weight = torch.zeros_like(total)  # Z
    whole = 1 / (1 - lam) if lam < 1 else math.inf
    for t in reversed(range(len(difference))):
        ends = terminated[t] > 0
        goes_on = ~ends & ~(truncated[t] > 0)
        weight = 1 + lam * torch.where(goes_on, weight, torch.where(ends, whole, 0.0)) \
            if lam else torch.ones_like(weight)
        share = 1 - 1 / weight if corrected else lam
        total = difference[t] + gamma * share * torch.where(goes_on, total, 0.0)
        advantage[t] = total
    return advantage
