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

"""What is noisy about a world, from commands to observations, and a world that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium
import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.sim.disturbances import PushConfig, Pushes, RandomizeConfig, RandomModel
from dpg_robot.sim.signals import ALL, CommandNoise, Memory, ObservationNoise


def _per_term(**rules):
    return field(default_factory=dict, metadata={'minimum': 0, **rules})


@dataclass(frozen=True)
class NoiseConfig:
    """The stochastic part of a world; every value 0, or left out, means a deterministic one.

    A command goes through loss, latency, dead zone, backlash, relative noise, bias and noise, in
    this order, and is clipped; an observation through latency, bias, noise and loss. Full scale
    is the largest command. Mappings of observations are by the term's name.

    :param actuator: standard deviation of noise added to every command, as a fraction of the
        actuator's full scale; white, drawn anew each control period.
    :param actuator_time_constant_s: if not 0, that noise is an Ornstein-Uhlenbeck process that
        forgets in this time [s]; its standard deviation stays.
    :param actuator_relative: standard deviation of noise that is a fraction of the command.
    :param actuator_relative_time_constant_s: its time constant [s]; 0 for white.
    :param actuator_bias: standard deviation of an offset that lasts an episode, as a fraction of
        full scale.
    :param dead_zone: commands up to this size do nothing, larger ones lose as much; a fraction
        of full scale.
    :param backlash: play of the gears, from end to end, as a fraction of full scale.
    :param command_latency_s: delay between a command and its effect [s]; a command acts as a
        zero-order hold, so fractions of a control period blend two successive commands.
    :param command_latency_spread_s: up to so much more, uniform, drawn each episode [s].
    :param command_jitter_s: up to so much more, uniform, drawn each control period [s].
    :param command_loss: probability that a command is lost; the one before holds.
    :param observation: standard deviation of white noise on each term, in its unit.
    :param observation_bias: standard deviation of an offset that lasts an episode, in its unit.
    :param observation_latency_s: age of what is observed [s]; between samples, interpolated.
    :param observation_loss: probability that a term keeps its last value.
    :param pushes: forces on bodies, by the body's name.
    :param randomize: ranges of the model's numbers, drawn each episode.
    """

    actuator: float = bounded(0.0, minimum=0, maximum=10)
    actuator_time_constant_s: float = bounded(0.0, minimum=0)
    actuator_relative: float = bounded(0.0, minimum=0, maximum=10)
    actuator_relative_time_constant_s: float = bounded(0.0, minimum=0)
    actuator_bias: float = bounded(0.0, minimum=0, maximum=10)
    dead_zone: float = bounded(0.0, minimum=0, maximum=1.0)
    backlash: float = bounded(0.0, minimum=0, maximum=2.0)
    command_latency_s: float = bounded(0.0, minimum=0, maximum=1.0)
    command_latency_spread_s: float = bounded(0.0, minimum=0, maximum=1.0)
    command_jitter_s: float = bounded(0.0, minimum=0, maximum=1.0)
    command_loss: float = bounded(0.0, minimum=0, maximum=1.0)
    observation: dict[str, float] = _per_term()
    observation_bias: dict[str, float] = _per_term()
    observation_latency_s: dict[str, float] = _per_term(maximum=1.0)
    observation_loss: dict[str, float] = _per_term(maximum=1.0)
    pushes: dict[str, PushConfig] = field(default_factory=dict)
    randomize: RandomizeConfig = field(default_factory=RandomizeConfig)

    @property
    def beyond_white(self) -> dict[str, Any]:
        """Return all that is on, by key, but white noise that is added to commands.

        If nothing is, what is observed is the state, and what a step does follows from state
        and command, up to independent Gaussian draws added to the command.
        """
        return {key: value for key, value in asdict(self).items()
                if key != 'actuator' and _is_on(value)}


def _is_on(value):
    return any(map(_is_on, value.values())) if isinstance(value, dict) else bool(value)


class Noise:
    """The noise on commands and observations of many worlds of one task.

    :ivar rngs: the random generator of each world.
    """

    def __init__(self, config: NoiseConfig, spec: PolicySpec, num_worlds: int = 1):
        """Prepare the worlds.

        :raises SpecError: if the noise names an observation term that the spec lacks.
        """
        self.rngs = [np.random.default_rng() for _ in range(num_worlds)]
        self._memory = Memory(num_worlds)
        self._command = CommandNoise(config, spec.control_rate_hz, spec.action_dim, self._memory)
        self._observation = ObservationNoise(config, spec, self._memory)

    def begin(self, row: int, seed: int | None = None) -> None:
        """Begin an episode of one world; a seed makes everything that follows repeatable."""
        if seed is not None:
            self.rngs[row] = np.random.default_rng([seed, 1])
        self._memory.begin(row, self.rngs[row])

    def hold(self, row: int, command: np.ndarray) -> None:
        """Let one world begin as if this had been commanded for long, shape (action_dim,)."""
        self._command.hold(row, command)

    def act(self, command: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """Return what actuators carry out, from commands in -1 to 1; shapes (rows, action_dim)."""
        return self._command(command, self.rngs[rows], rows)

    def observe(self, obs: np.ndarray, rows: slice = ALL, first: bool = False) -> np.ndarray:
        """Return what is observed of the true state, shapes (rows, obs_dim).

        :param first: whether an episode begins with it.
        """
        return self._observation(obs, self.rngs[rows], rows, first)

    def get_state(self, row: int) -> dict[str, Any]:
        """Return everything that decides the noise of one world."""
        return {'rng': self.rngs[row].bit_generator.state,
                **{name: array[row].copy() for name, array in self._memory.arrays.items()}}

    def set_state(self, row: int, state: dict[str, Any]) -> None:
        """Restore it, to the bit."""
        self.rngs[row].bit_generator.state = state['rng']
        for name, array in self._memory.arrays.items():
            array[row] = state[name]


class StochasticWorld(gymnasium.Wrapper):
    """A task with noise on what it is told, on what happens to it, and on what it tells.

    A step is ``commanded``, noise on the command, ``carry_out``, noise on the observation; a
    vector of worlds takes the two noises for all in one go.

    Rewards and success come from the true state. ``info['executed_action']`` is the normalised
    action that the simulated actuators really carried out, shape (action_dim,).

    The wrapped task must have ``policy_spec`` and a ``state`` property, and for pushes and
    random models a MuJoCo simulation, ``sim``; assigning to this wrapper's own ``state`` restores
    the whole world, random numbers included, to the bit.
    """

    def __init__(self, task: gymnasium.Env, config: NoiseConfig, noise: Noise | None = None,
                 row: int = 0):
        """Wrap a task.

        :param noise: of many worlds, of which this one is number ``row``; by default its own.
        :raises SpecError: if the noise names a term, body, joint, geom or actuator that the task
            lacks.
        """
        super().__init__(task)
        spec = task.policy_spec
        self.noise = config
        self._noise, self._row = noise or Noise(config, spec), row
        self._rows = slice(row, row + 1) if noise else ALL
        self._physics: dict[str, Pushes | RandomModel] = {}
        if _is_on(asdict(config.randomize)):
            self._physics['model'] = RandomModel(task.unwrapped.sim, spec.task, config.randomize)
        if config.pushes:
            self._physics['pushes'] = Pushes(
                task.unwrapped.sim, spec.task, config.pushes, 1 / spec.control_rate_hz)

    @property
    def policy_spec(self) -> PolicySpec:
        """Return the contract of this world's policies."""
        return self.env.policy_spec

    @property
    def achieved_goal(self) -> tuple[int, ...]:
        """Return the places of the achieved goal in the observation; none if there is no goal."""
        names = getattr(self.env.unwrapped, 'achieved_goal_terms', ())
        return tuple(self.policy_spec.places_of(names))

    @property
    def held_action(self) -> np.ndarray:
        """Return the action that leaves the robot where an episode begins, shape (action_dim,).

        A task whose servos go to positions has its own ``held_action``; others stay at 0.
        """
        action = np.zeros(self.policy_spec.action_dim)
        held = getattr(self.env.unwrapped, 'held_action', action)
        action[:len(held)] = held  # what a wrapper appends stays at 0
        return action

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; a seed makes everything that follows repeatable."""
        self._noise.begin(self._row, seed)
        for part in self._physics.values():
            part.begin(self._noise.rngs[self._row])
        obs, info = self.env.reset(seed=seed, options=options)
        self._noise.hold(self._row, self.held_action)
        return self._noise.observe(obs[None], self._rows, first=True)[0], info

    def step(self, action: np.ndarray):
        """Advance one control period.

        :param action: normalised command, shape (action_dim,), in [-1, 1].
        :return: observation, reward, terminated, truncated, info.
        """
        executed = self._noise.act(self.commanded(action)[None], self._rows)[0]
        obs, *rest = self.carry_out(executed)
        return self._noise.observe(obs[None], self._rows)[0], *rest

    def commanded(self, action: np.ndarray) -> np.ndarray:
        """Return the normalised command on which the noise comes; here the action itself.

        :raises SpecError: if the action has another shape, or is not finite.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise SpecError(f'an action for {self.policy_spec.task} must have the shape '
                            f'{self.action_space.shape}, got {action.shape}')
        if not np.isfinite(action).all():
            raise SpecError(f'an action for {self.policy_spec.task} must be finite, got '
                            f'{action.tolist()}')
        return action

    def carry_out(self, executed: np.ndarray):
        """Advance one control period, of which ``executed`` is what the actuators do.

        :return: as :meth:`step`, but the true observation.
        """
        if 'pushes' in self._physics:
            self._physics['pushes'].step(self._noise.rngs[self._row])
        obs, reward, terminated, truncated, info = self.env.step(executed)
        info['executed_action'] = executed
        return obs, reward, terminated, truncated, info

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides this world's future."""
        return {'task': self.env.state, **self._noise.get_state(self._row),
                **{name: part.memory.copy() for name, part in self._physics.items()}}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self._noise.set_state(self._row, value)
        for name, part in self._physics.items():
            part.memory[:] = value[name]
        if 'model' in self._physics:
            self._physics['model'].apply()
        self.env.state = value['task']  # last: what it computes follows from the model
