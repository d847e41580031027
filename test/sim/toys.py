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

"""Worlds that are quick to build, some of whose actions do damage; processes can import this."""

import os
import time
from types import SimpleNamespace

import gymnasium
import numpy as np

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.noise import Noise, NoiseConfig, StochasticWorld
from dpg_robot.sim.vector import VectorWorld

SPEC = SimpleNamespace(task='toy', control_rate_hz=50.0, action_dim=1, observation=(
    SimpleNamespace(name='position', size=1),))
FAIL, DIE, HANG = 0.5, 0.6, 0.7


class Toy(gymnasium.Env):
    """The position is the sum of all actions."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy_spec = SPEC
    state = 0.0

    def reset(self, *, seed=None, options=None):
        self.state = 0.0
        return np.zeros(1), {}

    def step(self, action):
        if action == FAIL:
            raise ArithmeticError('the toy broke')
        if action == DIE:
            os._exit(3)
        if action == HANG:
            time.sleep(1000)
        self.state += float(action[0])
        return np.array([self.state]), 0.0, False, False, {}

    @property
    def secret(self):
        return lambda: 0  # cannot be pickled


def make_toys(config, num_envs):
    """Build a vector of toys; a config of 'bad' is refused."""
    if config == 'bad':
        raise SpecError('toy must be good, got bad')
    if config == 'bad in workers' and num_envs > 1:
        raise SpecError('toy must be good in each process, got bad')
    noise = Noise(NoiseConfig(), SPEC, num_envs)
    return VectorWorld([StochasticWorld(Toy(), NoiseConfig(), noise, row)
                        for row in range(num_envs)], noise)
