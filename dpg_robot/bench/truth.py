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

"""The true gradient of a fixed one-step target, by finite differences in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from dpg_robot.bench.collect import Collection
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import ExperimentConfig
from dpg_robot.learn.outcome import one_step_target
from dpg_robot.sim.noise import StochasticWorld
from dpg_robot.sim.world import make_world

# Where the actuators are exact, the value is smoothed by so little; a fraction of full scale.
LEAST_WIDTH = 0.02
PAIRS_PER_DIMENSION = 4


class Truth(NamedTuple):
    """The gradient of E[y | s, a] at some states and actions.

    :param obs: physical observations, shape (n, obs_dim).
    :param action: commands, shape (n, action_dim).
    :param gradient: shape (n, action_dim), per unit of normalised action.
    :param error: half the difference of what two halves of the draws say, same shape; its
        typical size is that of the error of ``gradient``.
    """

    obs: torch.Tensor
    action: torch.Tensor
    gradient: torch.Tensor
    error: torch.Tensor


def check_pairs(num_pairs: int, action_dim: int) -> None:
    """Check that so many antithetic pairs are enough for a slope on each actuator.

    :raises SpecError: if they are too few.
    """
    if num_pairs < PAIRS_PER_DIMENSION * action_dim:
        raise SpecError(f'pairs must be at least {PAIRS_PER_DIMENSION * action_dim}, '
                        f'{PAIRS_PER_DIMENSION} for each of {action_dim} actuators, '
                        f'got {num_pairs}')


def measure_truth(config: ExperimentConfig, collection: Collection, num_states: int,
                  num_pairs: int, seed: int) -> Truth:
    """Measure the gradient at states of a collection and actions of its final policy.

    :param config: the experiment that collected.
    :param num_pairs: antithetic pairs of noise draws at each state.
    :raises SpecError: if the collection has not so many states, or the pairs are too few.
    """
    if num_states > len(collection.states):
        raise SpecError(f'states must be at most the {len(collection.states)} that were kept, '
                        f'got {num_states}')
    rng = np.random.default_rng([seed, 2])
    chosen = rng.choice(len(collection.states), num_states, replace=False)
    policy, value = collection.networks(config)
    obs = collection.data.obs[collection.rows[chosen]]
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        action = policy.sample(obs)[0]

    def target(*what):
        what = (torch.as_tensor(x, dtype=torch.float32) for x in what)
        return one_step_target(config.learner, policy.norm, value, *what).double().numpy()

    world = make_world(config.world)
    try:
        world.reset(seed=0)
        gradient, error = true_gradient(world, target, [collection.states[i] for i in chosen],
                                        action.double().numpy(), num_pairs, rng)
    finally:
        world.close()
    return Truth(obs, action, *(torch.as_tensor(x, dtype=torch.float32)
                                for x in (gradient, error)))


def noise_width(world: StochasticWorld) -> float:
    """Return the standard deviation of the noise that smooths the value of an action."""
    return world.noise.actuator or LEAST_WIDTH


def true_gradient(world: StochasticWorld, target: Callable[..., np.ndarray], states: list[Any],
                  actions: np.ndarray, num_pairs: int,
                  rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate E[y | s, a] over the actuator noise, white with standard deviation ``width``.

    What is carried out is ``clip(a + width xi)``, with xi standard normal. By Stein's identity
    the gradient is ``E[xi y(a + width xi)] / width``; for antithetic pairs that is the slope of
    ``(y(a + width xi) - y(a - width xi)) / (2 width)`` on xi, found by least squares.

    :param target: gives y, shape (B,), from rewards (B,), next observations (B, obs_dim) and
        terminations (B,).
    :param states: of the task inside ``world``, n of them.
    :param actions: commands within -1 and 1, shape (n, action_dim).
    :return: gradients, and half the difference of two halves' answers, both (n, action_dim).
    :raises SpecError: if the pairs are too few.
    """
    action_dim, width = actions.shape[1], noise_width(world)
    check_pairs(num_pairs, action_dim)
    gradients, errors = [], []
    for state, action in zip(states, actions):
        xi = rng.standard_normal((num_pairs, action_dim))
        executed = np.clip(action + width * np.concatenate([xi, -xi]), -1.0, 1.0)
        y = target(*_outcomes(world, state, executed))
        slope = (y[:num_pairs] - y[num_pairs:]) / (2 * width)
        whole, even, odd = (np.linalg.lstsq(xi[part], slope[part], rcond=None)[0]
                            for part in (slice(None), slice(0, None, 2), slice(1, None, 2)))
        gradients.append(whole)
        errors.append((even - odd) / 2)
    return np.array(gradients), np.array(errors)


def _outcomes(world, state, executed):
    """Return rewards, next observations and terminations of actions from one state."""
    task = world.env  # below the noise: the action is the one that is carried out
    rewards, observations, terminations = [], [], []
    for action in executed:
        task.state = state
        obs, reward, terminated, _, _ = task.step(action)
        rewards.append(reward)
        observations.append(obs)
        terminations.append(terminated)
    return np.array(rewards), np.array(observations), np.array(terminations, dtype=float)
