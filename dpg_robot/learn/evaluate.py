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

"""Evaluation: many episodes of one policy, with an honest interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Results over episodes.

    :param success: fraction of episodes that ended in success; None if the task knows none.
    :param success_low: lower end of its 95 % Wilson interval, or None; likewise
        ``success_high``.
    :param return_mean: mean undiscounted return; ``return_std`` its standard deviation.
    """

    episodes: int
    success: float | None
    success_low: float | None
    success_high: float | None
    return_mean: float
    return_std: float
    seed: int


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % score interval of a success rate (Wilson 1927)."""
    rate, shrink = successes / trials, 1 + z * z / trials
    center = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, center - half), min(1.0, center + half)


def evaluate(act: Callable[[np.ndarray], np.ndarray], envs, episodes: int,
             seed: int) -> Evaluation:
    """Run a policy for a number of episodes.

    Each world contributes the same number of episodes, give or take one, decided beforehand, so
    that short episodes are not over-counted. World i is seeded with ``seed + i``.

    :param act: from physical observations (num_envs, obs_dim) to normalised actions.
    :param envs: a gymnasium vector environment that resets in the same step.
    :raises ValueError: if episodes is not positive.
    """
    if episodes < 1:
        raise ValueError(f'episodes must be at least 1, got {episodes}')
    each, left = divmod(episodes, envs.num_envs)
    quota = each + (np.arange(envs.num_envs) < left)
    done = np.zeros(envs.num_envs, int)
    totals = np.zeros(envs.num_envs)
    returns, successes = [], []
    obs, _ = envs.reset(seed=[seed + i for i in range(envs.num_envs)])
    while (done < quota).any():
        obs, reward, terminated, truncated, info = envs.step(act(obs))
        totals += reward
        for i in np.flatnonzero(terminated | truncated):
            if done[i] < quota[i]:
                returns.append(totals[i])
                if 'is_success' in info['final_info']:
                    successes.append(bool(info['final_info']['is_success'][i]))
            done[i] += 1
            totals[i] = 0.0
    success, low, high = None, None, None
    if successes:
        success = sum(successes) / len(successes)
        low, high = wilson_interval(sum(successes), len(successes))
    return Evaluation(len(returns), success, low, high,
                      float(np.mean(returns)), float(np.std(returns)), seed)
