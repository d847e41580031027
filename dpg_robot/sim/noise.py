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

"""What is noisy about a world: actuators, command latency and observations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import bounded, SpecError


@dataclass(frozen=True)
class NoiseConfig:
    """The stochastic part of a world; every value 0 means a deterministic one.

    :param actuator: standard deviation of white noise added to every command, as a fraction of
        the actuator's full scale (the largest command), drawn anew each control period.
    :param command_latency_s: delay between a command and its effect [s]; a command acts as a
        zero-order hold, so fractions of a control period blend two successive commands.
    :param observation: standard deviation of white noise on each observation term, by the
        term's name, in the term's unit.
    """

    actuator: float = bounded(0.0, minimum=0)
    command_latency_s: float = bounded(0.0, minimum=0, maximum=1.0)
    observation: dict[str, float] = field(default_factory=dict, metadata={'minimum': 0})


class DelayLine:
    """Delay a piecewise constant command by a fixed time, averaged over each control period."""

    def __init__(self, latency: float, dim: int):
        """Create an empty line; it gives zeros until commands come through.

        :param latency: the delay in control periods, at least 0.
        :param dim: size of the command.
        """
        self.whole, self.fraction = int(latency), latency - int(latency)
        self.history = np.zeros((self.whole + 2, dim))

    def clear(self) -> None:
        """Forget all commands."""
        self.history[:] = 0.0

    def __call__(self, command: np.ndarray) -> np.ndarray:
        """Take this period's command, shape (dim,), and give the one that acts."""
        self.history[1:] = self.history[:-1].copy()
        self.history[0] = command
        newer, older = self.history[self.whole], self.history[self.whole + 1]
        return (1 - self.fraction) * newer + self.fraction * older


class StochasticWorld(gymnasium.Wrapper):
    """A task with noise on what it is told and on what it tells.

    Rewards and success come from the true state. ``info['executed_action']`` is the normalised
    action that the simulated actuators really carried out, shape (action_dim,).

    The wrapped task must have ``policy_spec`` and a ``state`` property; assigning to this
    wrapper's own ``state`` restores the whole world, random numbers included, to the bit.
    """

    def __init__(self, task: gymnasium.Env, noise: NoiseConfig):
        """Wrap a task.

        :raises SpecError: if ``noise.observation`` names an unknown term.
        """
        super().__init__(task)
        self.noise = noise
        self.observation_noise = observation_std(task.policy_spec, noise)
        periods = noise.command_latency_s * task.policy_spec.control_rate_hz
        self.delay = DelayLine(periods, task.policy_spec.action_dim)
        self.rng = np.random.default_rng()

    @property
    def policy_spec(self) -> PolicySpec:
        """Return the contract of this world's policies."""
        return self.env.policy_spec

    @property
    def achieved_goal(self) -> tuple[int, ...]:
        """Return the places of the achieved goal in the observation; none if there is no goal."""
        names, places, first = getattr(self.env.unwrapped, 'achieved_goal_terms', ()), [], 0
        for term in self.policy_spec.observation:
            if term.name in names:
                places += range(first, first + term.size)
            first += term.size
        return tuple(places)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; a seed makes everything that follows repeatable."""
        if seed is not None:
            self.rng = np.random.default_rng([seed, 1])
        self.delay.clear()
        obs, info = self.env.reset(seed=seed, options=options)
        return self._observe(obs), info

    def step(self, action: np.ndarray):
        """Advance one control period.

        :param action: normalised command, shape (action_dim,), in [-1, 1].
        :return: observation, reward, terminated, truncated, info.
        """
        command = self.delay(np.clip(action, -1.0, 1.0))
        if self.noise.actuator > 0:
            command = command + self.noise.actuator * self.rng.standard_normal(command.shape)
        executed = np.clip(command, -1.0, 1.0)
        obs, reward, terminated, truncated, info = self.env.step(executed)
        info['executed_action'] = executed
        return self._observe(obs), reward, terminated, truncated, info

    def _observe(self, obs):
        if not self.observation_noise.any():
            return obs
        return obs + self.observation_noise * self.rng.standard_normal(obs.shape)

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides this world's future."""
        return {'task': self.env.state, 'rng': self.rng.bit_generator.state,
                'history': self.delay.history.copy()}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self.env.state = value['task']
        self.rng.bit_generator.state = value['rng']
        self.delay.history[:] = value['history']


def observation_std(spec: PolicySpec, noise: NoiseConfig) -> np.ndarray:
    """Return the standard deviation of every observation element, shape (obs_dim,).

    :raises SpecError: if the noise names a term that the spec lacks.
    """
    names = [term.name for term in spec.observation]
    for name in noise.observation:
        if name not in names:
            raise SpecError(f'noise.observation.{name} is not an observation term of {spec.task}; '
                            f'its terms: {", ".join(names)}')
    return np.concatenate([np.full(term.size, noise.observation.get(term.name, 0.0))
                           for term in spec.observation])
