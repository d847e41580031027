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

"""Evaluation: quotas, seeds, and the interval, on worlds whose episodes are known beforehand."""

import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv
import numpy as np
import pytest

from dpg_robot.learn.evaluate import evaluate, wilson_interval


class Scripted(gymnasium.Env):
    """Episodes of a fixed length; each step earns the action; a positive last one is a success."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length, terminates):
        self.length, self.terminates, self.steps, self.seeds = length, terminates, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seeds.append(seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        done = self.steps == self.length
        return (self._observe(), float(action[0]), done and self.terminates,
                done and not self.terminates, {'is_success': bool(action[0] > 0)})

    def _observe(self):
        return np.array([self.length, self.steps], float)


def worlds(*lengths, terminates=False):
    makers = [lambda length=length: Scripted(length, terminates) for length in lengths]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def short_ones_succeed(obs):
    """Earn 1 a step where episodes have 2 steps, else lose 0.5."""
    return np.where(obs[:, :1] == 2, 1.0, -0.5).astype(np.float32)


# By hand, with z = 1.959964 and z^2 = 3.841459:
# 0 of 10: the upper end is z^2 / (n + z^2) = 3.841459 / 13.841459.
# 5 of 10: 0.5 -+ z sqrt(0.25 / 10 + z^2 / 400) / (1 + z^2 / 10) = 0.5 -+ 0.364594 / 1.384146.
# 95 of 100: (95 + z^2 / 2 -+ z sqrt(95 * 5 / 100 + z^2 / 4)) / (n + z^2)
#          = (96.920729 -+ 4.683602) / 103.841459.
# 1 of 1: the lower end is n / (n + z^2) = 1 / 4.841459.
@pytest.mark.parametrize('successes, trials, low, high', [
    (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407),
    (95, 100, 0.888249, 0.978456), (1, 1, 0.206549, 1.0)])
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=2e-6)


def test_wilson_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    successes = rng.binomial(100, 0.9, 4000)
    inside = [low <= 0.9 <= high for low, high in (wilson_interval(k, 100) for k in successes)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize('terminates', [True, False])
def test_each_world_has_the_same_quota(terminates):
    """A world of short episodes finishes ten while the other finishes two: two of each count."""
    result = evaluate(short_ones_succeed, worlds(2, 10, terminates=terminates), 4, seed=3)
    assert result.episodes == 4
    assert result.success == 0.5
    assert result.return_mean == pytest.approx((2 + 2 - 5 - 5) / 4)
    assert result.return_std == pytest.approx(3.5)
    assert (result.success_low, result.success_high) == wilson_interval(2, 4)
    assert result.seed == 3


@pytest.mark.parametrize('episodes, successes', [(1, 1), (2, 2), (3, 2), (4, 3), (7, 5)])
def test_as_many_episodes_as_asked_for(episodes, successes):
    """Shared out beforehand; the first worlds, here those of success, take what is left over."""
    result = evaluate(short_ones_succeed, worlds(2, 2, 10), episodes, 0)
    assert result.episodes == episodes
    assert result.success == pytest.approx(successes / episodes)


def test_a_task_may_know_no_success():
    class Silent(Scripted):
        def step(self, action):
            return (*super().step(action)[:4], {})

    envs = SyncVectorEnv([lambda: Silent(2, True)], autoreset_mode=AutoresetMode.SAME_STEP)
    result = evaluate(short_ones_succeed, envs, 3, seed=0)
    assert (result.success, result.success_low, result.success_high) == (None, None, None)
    assert (result.episodes, result.return_mean) == (3, 2.0)


def test_each_world_has_its_own_seed():
    envs = worlds(2, 2, 3)
    evaluate(short_ones_succeed, envs, 6, seed=40)
    assert [env.seeds for env in envs.envs] == [[40], [41], [42]]


def test_a_return_is_not_carried_into_the_next_episode():
    result = evaluate(short_ones_succeed, worlds(2), 5, seed=0)
    assert (result.return_mean, result.return_std) == (2.0, 0.0)


@pytest.mark.parametrize('episodes', [0, -3])
def test_no_episodes(episodes):
    with pytest.raises(ValueError, match=f'^episodes must be at least 1, got {episodes}$'):
        evaluate(short_ones_succeed, worlds(2), episodes, seed=0)
