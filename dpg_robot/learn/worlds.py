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

"""Vectors of worlds as the trainer sees them: tensors in, tensors out, on the host or a device.

The worlds themselves are given: gymnasium's vectors, which speak numpy, or worlds on a device,
which speak torch and never wait.
"""

from __future__ import annotations

from collections import deque
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from dpg_robot.contract.strict import SpecError

RECENT_EPISODES = 20


class Step(NamedTuple):
    """What one step of N worlds gave, float32: next_obs (N, obs_dim), the rest (N,).

    ``next_obs`` is the true next observation, also where an episode ended.
    """

    reward: torch.Tensor
    next_obs: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor


def require_finite(values: torch.Tensor, what: str) -> None:
    """Refuse to go on with a training that has diverged.

    :param what: names the values in the error.
    :raises SpecError: unless all of ``values`` are finite.
    """
    wrong = values[~values.isfinite()]
    if len(wrong):
        raise SpecError(f'{what} must be finite, got {wrong[0]:g} for {len(wrong)} of '
                        f'{values.numel()}: the training has diverged, and nothing is saved any '
                        'more; begin another one with smaller step sizes, such as policy_rate '
                        'and critic_rate')


class HostWorlds:
    """A gymnasium vector with same-step resets, and a ``state`` attribute in each world."""

    def __init__(self, envs):
        """Wrap the vector, which is closed with this."""
        self.envs, self.num_worlds, self.device = envs, envs.num_envs, torch.device('cpu')
        self._running = np.zeros(self.num_worlds)
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT_EPISODES)

    def reset(self, seed: int) -> None:
        """Start an episode in every world."""
        # Far from the small numbers that evaluations take for seeds.
        seeds = np.random.SeedSequence(seed).generate_state(self.num_worlds)
        self._show(self.envs.reset(seed=[int(number) for number in seeds])[0])

    def _show(self, obs):
        #: The present observations, shape (N, obs_dim).
        self.obs = torch.as_tensor(obs, dtype=torch.float32)

    def step(self, action: torch.Tensor) -> Step:
        """Advance every world by one control period.

        :param action: normalised, shape (N, action_dim).
        :raises SpecError: if the actions are not finite.
        """
        require_finite(action, 'the actions of the policy')
        obs, reward, terminated, truncated, info = self.envs.step(action.numpy())
        self._running += reward
        # Truncation is not termination: bootstrap from the true last observation.
        next_obs = obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            next_obs[i] = info['final_obs'][i]
            final = info.get('final_info', {})  # some tasks know no success
            success = float(final['is_success'][i]) if 'is_success' in final else math.nan
            self.recent.append((float(self._running[i]), success))
            self._running[i] = 0.0
        self._show(obs)
        return Step(*(torch.as_tensor(x, dtype=torch.float32)
                      for x in (reward, next_obs, terminated, truncated)))

    def episodes(self) -> tuple[float, float]:
        """Return mean return and success of the newest episodes; NaN where nothing is known."""
        returns, successes = zip(*self.recent) if self.recent else ((math.nan,), (math.nan,))
        return float(np.mean(returns)), float(np.mean(successes))

    def wait(self) -> None:
        """Wait for nothing: a step here is done when it returns."""

    def check(self) -> None:
        """Check nothing: these worlds complain by themselves."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future."""
        return {'obs': self.obs, 'running': self._running.copy(), 'recent': list(self.recent),
                'worlds': list(self.envs.get_attr('state'))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it, to the bit."""
        self.obs, self._running = state['obs'], state['running']
        self.recent.extend(state['recent'])
        self.envs.set_attr('state', state['worlds'])

    def close(self) -> None:
        """Release the worlds."""
        self.envs.close()


class DeviceVector:
    """Worlds on a device: what they give stays there, and sums of episodes do, too."""

    def __init__(self, envs):
        """Wrap the worlds, which are closed with this.

        :param envs: ``reset`` and ``step`` as gymnasium's with same-step resets, but on tensors;
            ``info`` has ``final_obs`` of every world and, if known, ``success``, both each step.
        """
        self.envs, self.num_worlds, self.device = envs, envs.num_envs, envs.device
        self._running = torch.zeros(self.num_worlds, dtype=torch.float64, device=self.device)
        # Returns, successes, episodes; since the last look.
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._newest = (math.nan, math.nan)

    def reset(self, seed: int) -> None:
        """Start an episode in every world."""
        seed, = np.random.SeedSequence(seed).generate_state(1)
        #: The present observations, shape (N, obs_dim).
        self.obs, _ = self.envs.reset(seed=int(seed))

    def step(self, action: torch.Tensor) -> Step:
        """Advance every world by one control period, without waiting for it.

        :param action: normalised, shape (N, action_dim).
        """
        self.obs, reward, terminated, truncated, info = self.envs.step(action)
        self._running += reward
        ended = terminated | truncated
        success = info['success'] if 'success' in info else torch.full_like(reward, math.nan)
        told = torch.stack([self._running, success.double(), torch.ones_like(self._running)])
        self._sums += torch.where(ended, told, 0.0).sum(1)
        self._running.mul_(~ended)
        return Step(reward, info['final_obs'], terminated.float(), truncated.float())

    def episodes(self) -> tuple[float, float]:
        """Return mean return and success of the episodes that ended since the last call.

        Of the newest ones known if none did; NaN where nothing is known. It waits.
        """
        total, successes, count = self._sums.tolist()
        self._sums.zero_()
        if count:
            self._newest = total / count, successes / count
        return self._newest

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def check(self) -> None:
        """Check what a step cannot without waiting.

        :raises SpecError: if the worlds' results cannot be relied on.
        """
        self.envs.check()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future."""
        return {'obs': self.obs, 'running': self._running, 'sums': self._sums,
                'newest': self._newest, 'worlds': self.envs.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it, to the bit."""
        self.obs, self._running, self._sums = (
            state[name].to(self.device) for name in ('obs', 'running', 'sums'))
        self._newest = state['newest']
        self.envs.set_state(state['worlds'])

    def close(self) -> None:
        """Release the worlds."""
        self.envs.close()


class NoWorlds:
    """No worlds at all, of the same shape: for a training that is only looked at."""

    def __init__(self, num_worlds: int):
        """Stand for so many."""
        self.num_worlds, self.device = num_worlds, torch.device('cpu')

    def reset(self, seed: int) -> None:
        """Do nothing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
