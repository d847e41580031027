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

"""A stochastic world as a robot: it goes on in real time, whether commands come or not.

At tick k the newest command acts for one control period, and the new state is there. A command
that answers the state of tick k - 1 thus acts exactly as it would in a loop in one process, as
long as it arrives before tick k. The tick that ends an episode shows its last state, the next
one the first state of a new episode, and no simulated time passes in between.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import gymnasium
import numpy as np

from dpg_robot.contract.command import CommandLimiter
from dpg_robot.contract.messages import group_by_topic
from dpg_robot.contract.spec import PolicySpec

# Commands that differ by less, in units of an action, are the same.
SETTLED = 1e-6


class EpisodeResult(NamedTuple):
    """How an episode went; ``episode`` counts from 1, ``success`` is None where there is none."""

    episode: int
    success: bool | None
    episode_return: float
    length: int


class SimulatedRobot:
    """A world that goes on in ticks, whatever commands come.

    ``observation`` is its newest state; ``state`` is 'waiting' (for the first command of an
    episode), 'driven', 'safe' (commands stopped) or 'ended'. ``num_safe_steps`` counts steps
    without a command to obey, ``num_late_commands`` steps on a held one.
    """

    def __init__(self, world: gymnasium.Env, seed: int = 0, hold_s: float = 0.2,
                 auto_reset: bool = True, wait_for_command: bool = True, episodes: int = 0):
        """Begin the first episode.

        :param world: has ``policy_spec``, physical observations and normalised actions.
        :param hold_s: how long the last command acts after commands stop [simulated s].
        :param auto_reset: begin the next episode at once when one ends.
        :param wait_for_command: hold the first state of an episode until a command other than
            the safe one arrives; without, the safe command acts until then. A controller whose
            commands are limited comes from its last one in the episode before: it is waited for
            until two commands in turn are the same.
        :param episodes: end after this many episodes; 0 for never.
        """
        self.spec: PolicySpec = world.policy_spec
        self._world, self._episodes = world, episodes
        self._auto_reset, self._wait_for_command = auto_reset, wait_for_command
        # Not a number for an element that holds its last command.
        limiter = CommandLimiter(self.spec)
        self._safe = limiter.safe()
        self._command = self._safe.copy()
        self._groups = group_by_topic(self.spec.action)
        self._longest_change = 0
        if wait_for_command and limiter.longest_change_s:
            periods = math.ceil(limiter.longest_change_s * self.spec.control_rate_hz)
            self._longest_change = periods + 2
        self._hold_ticks = math.ceil(hold_s * self.spec.control_rate_hz - 1e-9)
        self._lock = threading.Lock()
        self.num_steps = self.num_safe_steps = self.num_late_commands = 0
        self.num_episodes = self.num_successes = 0
        self.state = 'waiting'
        self.begin_episode(seed)

    def begin_episode(self, seed: int | None = None) -> None:
        """Reset the world and forget the old episode's command."""
        self._begin(self._world.reset(seed=seed)[0])

    def rest(self) -> None:
        """Reset the world if an episode is over.

        This takes several times as long as a step. Called after the state of a tick is out, it
        cannot make the next state late.
        """
        if self._is_over:
            self._is_over = False
            self._reset_observation, _ = self._world.reset()

    def _begin(self, observation):
        self.observation = observation
        self._is_over, self._reset_observation, self._begun = False, None, False
        if self.state == 'ended':
            self.state = 'waiting'
        self._return, self._length = 0.0, 0
        # Before the first command there is nothing to hold but the robot itself, where it is.
        held = self.spec.physical(getattr(self._world, 'held_action', 0.0))
        self._first = np.where(np.isnan(self._safe), held, self._safe)
        with self._lock:
            self._ticks_since = dict.fromkeys(self._groups)
            self._command[:] = self._first
            is_first = self.num_steps == self.num_safe_steps  # nothing was commanded before
            self._before, self._changes_left = None, 0 if is_first else self._longest_change

    @property
    def is_refused(self) -> bool:
        """Return whether an episode waits since all that comes is the safe command."""
        with self._lock:
            return self.state == 'waiting' and None not in self._ticks_since.values() \
                and np.array_equal(self._command, self._first)

    def give_command(self, topic: str, values: np.ndarray) -> None:
        """Take a command, in physical units, for the elements of one topic; from any thread."""
        with self._lock:
            self._command[self._groups[topic].places] = values
            self._ticks_since[topic] = 0

    def tick(self) -> EpisodeResult | None:
        """Go on for one control period; afterwards ``observation`` is the newest state.

        :return: the result, if an episode ended.
        """
        if self.state == 'ended':
            return None
        self.rest()
        if self._reset_observation is not None:
            self._begin(self._reset_observation)
            return None
        command, state = self._newest_command()
        self.state = state
        if state == 'waiting' and self._wait_for_command:
            return None
        self.num_steps += 1
        self.num_safe_steps += state != 'driven'
        self.observation, reward, terminated, truncated, info = self._world.step(
            np.clip(self.spec.normalised(command), -1.0, 1.0))
        self._return += float(reward)
        self._length += 1
        return self._end_episode(info.get('is_success')) if terminated or truncated else None

    def _newest_command(self):
        with self._lock:
            ages = self._ticks_since.values()
            # A controller that has no full observation yet sends the safe command.
            if not self._begun and None not in ages:
                self._begun = not np.array_equal(self._command, self._first) and self._is_settled()
            if not self._begun:
                return self._first, 'waiting'
            oldest = max(ages)
            for topic in self._ticks_since:
                self._ticks_since[topic] += 1
            if oldest > self._hold_ticks:
                return np.where(np.isnan(self._safe), self._command, self._safe), 'safe'
            self.num_late_commands += oldest > 0
            return self._command.copy(), 'driven'

    def _is_settled(self):
        before, self._before = self._before, self._command.copy()
        if not self._changes_left or before is not None and np.allclose(
                *map(self.spec.normalised, (before, self._before)), rtol=0, atol=SETTLED):
            return True
        self._changes_left -= 1
        self._ticks_since = dict.fromkeys(self._groups)  # the next is another, not this one
        return False

    def _end_episode(self, success):
        self.num_episodes += 1
        self.num_successes += bool(success)
        result = EpisodeResult(self.num_episodes, success, self._return, self._length)
        if self._auto_reset and not 0 < self._episodes <= self.num_episodes:
            self._is_over = True
        else:
            self.state = 'ended'
        return result
