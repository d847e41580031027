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

"""A world of one step whose gradients are known in closed form, and a simple fit."""

from math import erf, exp, pi, sqrt
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch

from dpg_robot.learn.outcome import one_step_target


class AnalyticTask(gymnasium.Env):
    """The reward is ``slope . u - |u - centre|^2 / 2`` of the executed action u; s' = s + u.

    It terminates where the first element of u is above ``falls_above``.
    """

    def __init__(self, slope, centre, curvature=1.0, falls_above=np.inf):
        self.slope, self.centre = np.array(slope), np.array(centre)
        self.curvature, self.falls_above = curvature, falls_above
        dim = len(slope)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (dim,), np.float32)
        self.policy_spec = SimpleNamespace(
            control_rate_hz=50.0, action_dim=dim, task='analytic',
            observation=(SimpleNamespace(name='position', size=dim),))
        self.state = np.zeros(dim)

    def step(self, action):
        self.state = self.state + action
        offset = action - self.centre
        reward = self.slope @ action - self.curvature * offset @ offset / 2
        return self.state, float(reward), bool(action[0] > self.falls_above), False, {}


def clipped_moments(mean, width):
    """Return P(-1 < u < 1) and the derivative of E[clip(u)^2] / 2, u normal, elementwise."""
    def one(m):
        low, high = (-1 - m) / width, (1 - m) / width
        inside = (erf(high / sqrt(2)) - erf(low / sqrt(2))) / 2
        density = [exp(-x * x / 2) / sqrt(2 * pi) for x in (low, high)]
        return inside, m * inside + width * (density[0] - density[1])
    return np.array([one(m) for m in mean]).T


def linear_fit(config, names, data, policy, value, seed, achieved_goal):
    """Regress the target on [1, a]: the same gradient everywhere, for each of the names."""
    target = one_step_target(config, policy.norm, value, data.reward, data.next_obs,
                             data.terminated)
    inputs = torch.cat([torch.ones(len(target), 1), data.action], -1).double()
    solution = torch.linalg.lstsq(inputs, target[:, None].double()).solution
    # The same to the bit each time, wherever the arrays lie in memory.
    gradient = solution[1:, 0].round(decimals=5).float()
    return {name: lambda obs, action: gradient.expand(len(obs), -1) for name in names}


def refuse_to_fit(*arguments):
    raise AssertionError(f'a second fit of {arguments[1]}')
