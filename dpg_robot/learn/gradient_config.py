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

"""Settings of the estimate of g(s, a)."""

from __future__ import annotations

from dataclasses import dataclass

from dpg_robot.contract.strict import bounded
from dpg_robot.learn.estimators import ESTIMATORS


@dataclass(frozen=True)
class GradientConfig:
    """Settings of the estimate of g(s, a); ``*_rate`` are Adam step sizes.

    :param estimator: how the policy's gradient is estimated.
    :param gamma: discount, for each control period.
    :param reward_scale: factor on rewards, not on the entropy.
    :param hidden: widths of the hidden layers of policy, V, critics and world model.
    :param denoiser_hidden: widths of those of each of the denoiser's two networks.
    :param gradient_hidden: widths of those of the amortised gradient.
    :param outcome: what the denoiser is told: the change of ``state`` and the reward, the same of
        the ``achieved_goal`` only, the ``reward``, or the one-step target y (``value``).
    :param sigma: standard deviation of the denoising noise, in normalised action units.
    :param sigma_ratio: above 1, each sample's is drawn from ``sigma / sigma_ratio`` to
        ``sigma * sigma_ratio``.
    :param lean_on: whose gradients doubly_robust adds to the denoised one.
    :param baseline: whose b(s, a) is subtracted from y, of the estimators with a denoiser.
    :param weigh_action: let critic and amortised gradient of denoising and doubly_robust, told
        the ``state``, see each element of the action by how certain it is that the outcome
        depends on it at all: for a robot many of whose actuators do nothing, and for no other
        (docs/benchmarks.md).
    :param num_critics: members of the critic's ensemble; V takes the least of them.
    :param critic_rate: step size of critics, world model and V.
    :param denoiser_rate: step size of the denoiser.
    :param denoiser_weight_decay: AdamW's weight decay of the denoiser, against over-fitting; fits
        to fixed transitions have none.
    :param gradient_rate: step size of the amortised gradient.
    :param gradient_weight_decay: AdamW's weight decay of the amortised gradient, against
        over-fitting.
    :param num_gradients: members of the amortised gradient's ensemble.
    """

    estimator: str = bounded('doubly_robust', choices=tuple(ESTIMATORS))
    gamma: float = bounded(0.95, minimum=0, maximum=0.9999)
    reward_scale: float = bounded(1.0, above=0)
    hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    denoiser_hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    gradient_hidden: tuple[int, ...] = bounded((256, 256), minimum=1)
    outcome: str = bounded('state', choices=('state', 'achieved_goal', 'reward', 'value'))
    sigma: float = bounded(0.2, above=0)
    sigma_ratio: float = bounded(1.0, minimum=1, maximum=10)
    lean_on: str = bounded('critic', choices=('critic', 'model', 'both'))
    baseline: str = bounded('critic', choices=('critic', 'model'))
    weigh_action: bool = False
    num_critics: int = bounded(2, minimum=2, maximum=10)
    critic_rate: float = bounded(1e-3, above=0)
    denoiser_rate: float = bounded(1e-3, above=0)
    denoiser_weight_decay: float = bounded(1.0, minimum=0)
    gradient_rate: float = bounded(3e-4, above=0)
    gradient_weight_decay: float = bounded(3.0, minimum=0)
    num_gradients: int = bounded(2, minimum=1)
