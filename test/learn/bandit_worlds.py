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

"""Vectors of one-step worlds whose best action is known, on a device and on the host."""

from types import SimpleNamespace

import torch

NU, SLOPE, LAST = 0.25, 0.8, 3


class BanditsOnDevice:
    """s in (-1, 1), o = a + nu w, reward -(o - slope s)^2; each third step ends an episode."""

    single_observation_space = SimpleNamespace(shape=(2,))
    single_action_space = SimpleNamespace(shape=(1,))
    achieved_goal = (1,)

    def __init__(self, num_envs, device='cpu'):
        self.num_envs, self.device = num_envs, torch.device(device)
        self.generator = torch.Generator()
        self.states, self.steps = torch.zeros(2, num_envs, device=device)
        self.num_checks = 0

    def reset(self, seed):
        self.generator.manual_seed(seed)
        self.steps.zero_()
        return self._draw(), {}

    def _draw(self):
        self.states = 2 * torch.rand(
            self.num_envs, generator=self.generator, device=self.device) - 1
        return torch.stack([self.states, torch.zeros_like(self.states)], -1)

    def step(self, action):
        outcome = action[:, 0] + NU * torch.randn(
            self.num_envs, generator=self.generator, device=self.device)
        miss = outcome - SLOPE * self.states
        final_obs = torch.stack([self.states, outcome], -1)
        self.steps += 1
        ended = self.steps >= LAST
        self.steps = torch.where(ended, 0.0, self.steps)
        info = {'final_obs': final_obs, 'success': (miss.abs() < 0.5).float()}
        # What comes next does not depend on the action: no value is bootstrapped.
        return self._draw(), -miss.square(), torch.ones_like(ended), ended, info

    def check(self):
        self.num_checks += 1

    def get_state(self):
        return {'states': self.states, 'steps': self.steps, 'generator':
                self.generator.get_state()}

    def set_state(self, state):
        self.states, self.steps = state['states'], state['steps']
        self.generator.set_state(state['generator'])

    def close(self):
        pass


class BanditsOnHost(BanditsOnDevice):
    """The same behind gymnasium's vector interface."""

    def reset(self, seed):
        obs, info = super().reset(seed[0])
        return obs.double().numpy(), info

    def step(self, action):
        obs, reward, terminated, truncated, info = (
            super().step(torch.as_tensor(action, dtype=torch.float32)))
        success = {'is_success': info['success'].bool().numpy()}
        return obs.double().numpy(), reward.double().numpy(), terminated.numpy(), \
            truncated.numpy(), {'final_obs': info['final_obs'].double().numpy(),
                                'final_info': success}

    def get_attr(self, name):
        value = self.get_state() if name == 'state' else getattr(self, name)
        return (value,) * self.num_envs

    def set_attr(self, name, values):
        self.set_state(values[0])


def mode_error(policy):
    """Return the root mean square distance of a policy's mode from the best action."""
    states = torch.linspace(-0.8, 0.8, 9)
    with torch.no_grad():
        mode = policy(torch.stack([states, torch.zeros(9)], -1), torch.zeros(9, 1))[:, 0]
    return (mode - SLOPE * states).square().mean().sqrt().item()
