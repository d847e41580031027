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

"""A one-step problem whose optimum is known, for the learners."""

import torch


class Bandit:
    """One step: s in (-1, 1), o = a + nu w, reward -(o - slope s)^2; the next state shows o."""

    nu = 0.25

    def __init__(self, slope):
        self.slope = slope

    @staticmethod
    def obs(states):
        return torch.stack([states, torch.zeros_like(states)], -1)

    def draw(self, policy, num):
        """Return obs, eps, action, reward and next_obs of ``num`` independent steps."""
        obs, eps = self.obs(torch.rand(num) * 2 - 1), torch.randn(num, 1)
        with torch.no_grad():
            action = policy(obs, eps)
        return obs, eps, action, *self.step(obs, action)

    def step(self, obs, action):
        """Return reward and next_obs."""
        outcome = action + self.nu * torch.randn_like(action)
        reward = -(outcome[:, 0] - self.slope * obs[:, 0]).square()
        return reward, torch.cat([obs[:, :1], outcome], -1)
