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

"""What happened next: the outcome that a denoiser is told, and the one-step target y."""

from __future__ import annotations

import torch
from torch import nn

from dpg_robot.learn.gradient_config import GradientConfig
from dpg_robot.learn.replay import Batch


@torch.no_grad()
def one_step_target(config: GradientConfig, norm: nn.Module, value: nn.Module,
                    reward: torch.Tensor, next_obs: torch.Tensor,
                    terminated: torch.Tensor) -> torch.Tensor:
    """Return ``y = reward_scale r + gamma (1 - terminated) V(s')``, shape (B,).

    :param norm: normaliser of observations; ``value`` is V, from normalised observations.
    :param reward: shape (B,), likewise ``terminated``; ``next_obs`` is (B, obs_dim), physical.
    """
    bootstrap = value(norm(next_obs))[0, :, 0]
    return config.reward_scale * reward + config.gamma * (1 - terminated) * bootstrap


def change_and_reward(batch: Batch) -> torch.Tensor:
    """Return what happened next: s' - s and the reward, shape (B, obs_dim + 1)."""
    return torch.cat([batch.next_obs - batch.obs, batch.reward[:, None]], -1)


def outcome_places(obs_dim: int, achieved_goal: tuple[int, ...]) -> torch.Tensor:
    """Return where the achieved goal's changes and the reward are in what happened next."""
    return torch.tensor([*achieved_goal, obs_dim])


def choose_outcome(kind: str, changes: torch.Tensor, target: torch.Tensor,
                   places: torch.Tensor) -> torch.Tensor:
    """Return what the denoiser is told, shape (B, outcome_dim).

    :param kind: as in :class:`GradientConfig`.
    :param changes: of the observation, and the reward, normalised, shape (B, obs_dim + 1).
    :param target: the normalised target, shape (B,).
    :param places: of :func:`outcome_places`.
    """
    if kind == 'value':
        return target[:, None]
    if kind == 'reward':
        return changes[:, -1:]
    return changes.index_select(1, places) if kind == 'achieved_goal' else changes
