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

"""The measured truth against closed forms."""

from analytic import AnalyticTask, clipped_moments
import numpy as np
import pytest

from dpg_robot.bench.truth import LEAST_WIDTH, noise_width, true_gradient
from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.noise import NoiseConfig, StochasticWorld

SLOPE, CENTRE = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.0, -0.4])
STATES = [np.array([x, 0.0, -x]) for x in (-1.0, 0.0, 2.0)]


def reward_only(reward, next_obs, terminated):
    return reward


def measure(task, actuator, actions, target=reward_only, num_pairs=300, states=None):
    world = StochasticWorld(task, NoiseConfig(actuator=actuator))
    states = STATES[:1] * len(actions) if states is None else states
    return true_gradient(world, target, states, np.array(actions), num_pairs,
                         np.random.default_rng(0))


def assert_within(gradient, error, truth):
    """Check the error of all elements together against what is stated of it."""
    stated = np.sqrt(np.mean(error**2))
    assert np.sqrt(np.mean((gradient - truth)**2)) < 2 * stated
    assert stated < 0.1 * np.sqrt(np.mean(truth**2))


def test_a_linear_reward_is_exact():
    gradient, error = measure(AnalyticTask(SLOPE, CENTRE, curvature=0.0), 0.1,
                              [[0.2, 0.1, -0.3]])
    np.testing.assert_allclose(gradient, SLOPE[None], atol=1e-9)
    np.testing.assert_allclose(error, 0, atol=1e-9)


def test_the_noise_of_a_quadratic_reward_cancels():
    """Antithetic draws take the even part away: no noise is left, whatever the width."""
    action = np.array([0.2, 0.1, -0.3])
    gradient, _ = measure(AnalyticTask(SLOPE, CENTRE), 0.1, [action])
    np.testing.assert_allclose(gradient[0], SLOPE - (action - CENTRE), atol=1e-9)


@pytest.mark.parametrize('width', [0.2, 0.5])
def test_clipping_is_part_of_the_truth(width):
    actions = np.array([[0.95, -0.99, 0.2], [0.5, 0.9, -0.8], [-0.95, -0.6, 0.99]])
    gradient, error = measure(AnalyticTask(SLOPE, CENTRE), width, actions, num_pairs=3000)
    truth = []
    for action in actions:
        inside, square = clipped_moments(action, width)
        truth.append((SLOPE + CENTRE) * inside - square)
    assert_within(gradient, error, np.array(truth))
    unclipped = SLOPE - (actions - CENTRE)
    assert np.linalg.norm(gradient - unclipped) > 10 * np.linalg.norm(gradient - truth)


def test_a_termination_cuts_the_future():
    """With reward 0 and V = 1, y falls from 1 to 0 where the first element is above 0.3."""
    task = AnalyticTask(0 * SLOPE, CENTRE, curvature=0.0, falls_above=0.3)
    actions = np.array([[x, 0.0, 0.0] for x in (-0.1, 0.0, 0.1, 0.2, 0.3, 0.4)])
    gradient, error = measure(task, 0.2, actions, num_pairs=2000,
                              target=lambda reward, next_obs, terminated: 1 - terminated)
    density = np.exp(-((0.3 - actions[:, 0]) / 0.2)**2 / 2) / np.sqrt(2 * np.pi) / 0.2
    assert_within(gradient, error, -density[:, None] * [1.0, 0.0, 0.0])


def test_each_draw_starts_from_the_state():
    """With y = sin(s'), the gradient is cos(s + a) exp(-width^2 / 2)."""
    actions = np.full((3, 3), 0.1)
    gradient, error = measure(
        AnalyticTask(SLOPE, CENTRE), 0.2, actions, states=STATES, num_pairs=2000,
        target=lambda reward, next_obs, terminated: np.sin(next_obs).sum(1))
    assert_within(gradient, error, np.cos(np.array(STATES) + 0.1) * np.exp(-0.02))


def test_exact_actuators_are_smoothed_a_little():
    world = StochasticWorld(AnalyticTask(SLOPE, CENTRE), NoiseConfig())
    assert noise_width(world) == LEAST_WIDTH == 0.02
    world = StochasticWorld(AnalyticTask(SLOPE, CENTRE), NoiseConfig(actuator=0.3))
    assert noise_width(world) == 0.3


def test_too_few_pairs_are_refused():
    with pytest.raises(SpecError, match='pairs must be at least 12, 4 for each of 3 actuators, '
                                        'got 11'):
        measure(AnalyticTask(SLOPE, CENTRE), 0.2, [[0.0] * 3], num_pairs=11)
