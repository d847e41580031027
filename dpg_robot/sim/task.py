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

"""What every MuJoCo task shares: the time limit, the picture, and a state to go back to."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from dpg_robot.contract.spec import PolicySpec

# A measurement may miss two control periods; nothing is asked to be fresher than LEAST_AGE_S.
MAX_AGE_PERIODS = 2.5
LEAST_AGE_S = 0.1
IMAGE_SIZE = 320

_ALL = mujoco.mjtState.mjSTATE_INTEGRATION


class Task(gymnasium.Env):
    """A simulation of gymnasium's with physical observations and a contract.

    Physics, rewards, goals and terminations are the simulation's own. The observation is in
    physical units, in the order of ``policy_spec.observation``; the action is normalised.
    """

    metadata = {'render_modes': ['rgb_array']}

    def __init__(self, sim: gymnasium.Env, spec: PolicySpec, episode_steps: int):
        """Wrap a simulation.

        :param sim: has MuJoCo's ``model`` and ``data``; it is owned from now on.
        :param episode_steps: control periods after which an episode is truncated.
        """
        self.sim, self.policy_spec, self.episode_steps = sim, spec, episode_steps
        self.render_mode = sim.render_mode
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; a seed makes it and those that follow repeatable."""
        super().reset(seed=seed)
        self.steps = 0
        obs, info = self.sim.reset(seed=seed)
        return self._observe(obs), info

    def step(self, action: np.ndarray):
        """Advance one control period under a normalised action, shape (action_dim,)."""
        self.steps += 1
        obs, reward, terminated, _, info = self.sim.step(self._command(action))
        if 'is_success' in info:
            info['is_success'] = bool(info['is_success'])
        truncated = self.steps >= self.episode_steps
        return self._observe(obs), float(reward), bool(terminated), truncated, info

    def _command(self, action):
        """Return the action that the simulation takes."""
        return action

    def _observe(self, obs):
        """Return the physical observation, from the simulation's own."""
        return obs

    def render(self) -> np.ndarray:
        """Return an image, shape (height, width, 3)."""
        return self.sim.render()

    def close(self) -> None:
        """Release the renderer."""
        self.sim.close()

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides the task's future."""
        model, data = self.sim.model, self.sim.data
        physics = np.empty(mujoco.mj_stateSize(model, _ALL))
        mujoco.mj_getState(model, data, physics, _ALL)
        return {'physics': physics, 'goal': np.copy(getattr(self.sim, 'goal', ())),
                'steps': self.steps, 'rng': self.sim.np_random.bit_generator.state}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        model, data = self.sim.model, self.sim.data
        mujoco.mj_setState(model, data, value['physics'], _ALL)
        # Positions of bodies and sites follow; a step computes them anew in any case.
        mujoco.mj_forward(model, data)
        if value['goal'].size:
            self.sim.goal = value['goal'].copy()
        self.sim.np_random.bit_generator.state = value['rng']
        self.steps = value['steps']


def control_rate(sim: gymnasium.Env) -> float:
    """Return how often a simulation takes an action [Hz]."""
    return round(1.0 / sim.dt, 9)


def max_age(sim: gymnasium.Env) -> float:
    """Return how old a measurement of a task may be [s]."""
    return max(LEAST_AGE_S, round(MAX_AGE_PERIODS * sim.dt, 9))
