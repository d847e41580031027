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

"""The last guard before the robot: finite, in limits, no faster than allowed, or safe."""

from __future__ import annotations

import numpy as np

from dpg_robot.contract.spec import PolicySpec


class CommandLimiter:
    """Turn the policy's actions into commands that a robot may be given.

    The order is: refuse what is not finite, clip to the limits, blend, limit the rate and its
    change. The rate is counted from the last command that was sent, over the time since then, but
    no more than one control period: however late a tick comes, a command never steps further than
    ``rate_limit / control_rate_hz``. The safe command is sent at once and is not rate limited.

    Where the acceleration is limited, the rate changes by no more than
    ``acceleration_limit / control_rate_hz`` from one command to the next, and the command brakes
    in time: before its target and, whatever the target does next, before its limits. After a safe
    command it starts again from rest.

    An element whose ``safe`` is null holds its last command. Before its first command there is
    nothing to hold: such an element is NaN in :attr:`last`, and a topic with NaN in it must not
    be sent (:class:`.messages.MessageWriter` leaves it out). An invented zero would be a jump for
    a joint position. For the same reason its first command cannot be rate limited; every other
    element starts from its safe value.

    ``num_clipped`` and ``num_rate_limited``, shape (action_dim,), count what was cut off, and
    ``num_not_finite`` counts refused actions.
    """

    def __init__(self, spec: PolicySpec):
        """Take the limits from a spec."""
        def gather(key, if_none):
            return np.array([if_none if value is None else value for term in spec.action
                             for value in getattr(term, key) or (None,) * term.size])

        self.element_names = tuple(
            f'{term.name}.{name}' for term in spec.action
            for name in (term.joints or term.fields))
        self.lower, self.upper = gather('lower', None), gather('upper', None)
        self._safe = gather('safe', np.nan)
        self._hold = np.isnan(self._safe)
        self._control_dt = spec.control_dt
        self._rate, acceleration = gather('rate_limit', np.inf), gather(
            'acceleration_limit', np.inf)
        # From end to end [s], from rest to rest; 0 where nothing is limited.
        span = self.upper - self.lower
        self.longest_change_s = float((span / self._rate + 2 * np.sqrt(span / acceleration)).max())
        self._has_rate, self._brakes_at = np.isfinite(self._rate), np.isfinite(acceleration)
        self.velocity = np.zeros(spec.action_dim)
        self._brakes = _Brakes(self._rate, acceleration, spec.control_dt, self.velocity) \
            if self._brakes_at.any() else None
        self._is_limited = self._has_rate.any() or self._brakes is not None
        self._step = np.full(spec.action_dim, np.inf)
        self.last = self._safe.copy()
        self.num_clipped = np.zeros(spec.action_dim, np.int64)
        self.num_rate_limited = np.zeros(spec.action_dim, np.int64)
        self.num_not_finite = 0
        # A saturated float32 action may round to just outside a limit; that is not a clip.
        self._tolerance = 1e-6 * (self.upper - self.lower)
        self._action, self._command, self._excess = np.zeros((3, spec.action_dim))

    def accepts(self, action: np.ndarray) -> bool:
        """Return whether an action is finite; count it if not."""
        is_finite = bool(np.isfinite(action).all())
        self.num_not_finite += not is_finite
        return is_finite

    def limit(self, action: np.ndarray, elapsed_s: float = np.inf,
              start: np.ndarray | None = None, weight: float = 1.0) -> np.ndarray | None:
        """Return the command for an action, and remember it as sent.

        :param action: physical units, shape (action_dim,).
        :param elapsed_s: time since the last command was sent; more than a control period
            counts as one.
        :param start: what to blend from, shape (action_dim,), within the limits; NaN where there
            is nothing to blend from.
        :param weight: part of the action in the blend, from 0 to 1.
        :return: shape (action_dim,), float64, valid until the next call; None if the action is
            not finite, in which case nothing is remembered.
        """
        if not self.accepts(action):
            return None
        command = self._command
        np.copyto(self._action, action)
        np.maximum(self._action, self.lower, out=command)
        np.minimum(command, self.upper, out=command)
        self.num_clipped += self._differs(command, self._action)
        if start is not None and weight < 1.0:
            np.subtract(command, start, out=self._action)
            np.multiply(self._action, weight, out=self._action)
            np.add(self._action, start, out=command, where=~np.isnan(start))
        if self._is_limited:
            self._limit_rate(command, min(max(elapsed_s, 0.0), self._control_dt))
        np.copyto(self.last, command)
        return command

    def _limit_rate(self, command, elapsed_s):
        target = self._action
        np.copyto(target, command)
        np.multiply(self._rate, elapsed_s, out=self._step, where=self._has_rate)
        # fmax and fmin pass over NaN: an element without a last command is left as it is.
        np.fmax(command, self.last - self._step, out=command)
        np.fmin(command, self.last + self._step, out=command)
        if self._brakes is not None:
            velocity = self._brakes.velocity(target, self.last, self.lower, self.upper)
            braked = np.clip(self.last + velocity * elapsed_s, self.lower, self.upper)
            np.copyto(command, braked, where=self._brakes_at & ~np.isnan(braked))
        self.num_rate_limited += self._differs(command, target)

    def _differs(self, command, wanted):
        np.subtract(command, wanted, out=self._excess)
        np.abs(self._excess, out=self._excess)
        return self._excess > self._tolerance

    def safe(self) -> np.ndarray:
        """Return the safe command, and remember it as sent; NaN where nothing can be held yet."""
        np.copyto(self.last, self._safe, where=~self._hold)
        self.velocity[:] = 0.0
        return self.last

    def forget(self) -> None:
        """Begin anew: a command that was held long ago says nothing about where the robot is."""
        np.copyto(self.last, self._safe)
        self.velocity[:] = 0.0


class _Brakes:
    """Velocities of commands [unit/s] whose change is limited, and that can still stop in time."""

    def __init__(self, rate, acceleration, control_dt, velocity):
        # A number that is never reached keeps the arithmetic below finite.
        self._acceleration = np.where(np.isinf(acceleration), 1e12, acceleration)
        self._rate, self._control_dt, self._velocity = rate, control_dt, velocity

    def velocity(self, target, last, lower, upper):
        """Return the velocity of the next step, and remember it.

        However short the step, every later one can keep the limits too: what the change allows
        always reaches down to what the brakes demand.
        """
        v, change = self._velocity, self._acceleration * self._control_dt
        wanted = target - last
        wanted = np.sign(wanted) * np.minimum(self._stopping(np.abs(wanted)), self._rate)
        np.clip(wanted, v - change, v + change, out=wanted)
        np.minimum(wanted, self._stopping(np.maximum(upper - last, 0.0)), out=wanted)
        np.maximum(wanted, -self._stopping(np.maximum(last - lower, 0.0)), out=wanted)
        np.copyto(v, wanted, where=~np.isnan(wanted))
        return wanted

    def _stopping(self, distance):
        """Return the largest velocity that stops within a distance, in whole periods.

        From n a dt, steps of n a dt^2, (n - 1) a dt^2, ... cover n (n + 1) / 2 of a dt^2; between
        these the bound is linear, so that braking by a dt leads from it to itself.
        """
        unit = self._acceleration * self._control_dt
        x = distance / (unit * self._control_dt)
        n = np.floor(np.sqrt(0.25 + 2.0 * x) - 0.5)
        return unit * (n + (x - 0.5 * n * (n + 1.0)) / (n + 1.0))
