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

"""The last guard before the robot: finite, within limits, no faster than allowed, or safe."""

from __future__ import annotations

import numpy as np

from dpg_robot.contract.spec import PolicySpec


class CommandLimiter:
    """Turn the policy's actions into commands that a robot may be given.

    The order is: refuse what is not finite, clip to the limits, limit the rate. The rate is
    counted from the last command that was sent, over the time since then, but no more than one
    control period: however late a tick comes, a command never steps further than
    ``rate_limit / control_rate_hz``. The safe command is sent at once and is not rate limited.

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
            return np.array([if_none if value is None else value
                             for term in spec.action for value in getattr(term, key)])

        self.element_names = tuple(
            f'{term.name}.{name}' for term in spec.action
            for name in (term.joints or term.fields))
        self.lower, self.upper = gather('lower', None), gather('upper', None)
        self._safe = gather('safe', np.nan)
        self._hold = np.isnan(self._safe)
        self._rate, self._control_dt = gather('rate_limit', np.inf), spec.control_dt
        self._is_limited = np.isfinite(self._rate)
        self._step = np.full(spec.action_dim, np.inf)
        self.last = self._safe.copy()
        self.num_clipped = np.zeros(spec.action_dim, np.int64)
        self.num_rate_limited = np.zeros(spec.action_dim, np.int64)
        self.num_not_finite = 0
        # A saturated float32 action may round to just outside a limit; that is not a clip.
        self._tolerance = 1e-6 * (self.upper - self.lower)
        self._command = np.zeros(spec.action_dim)
        self._clipped = np.zeros(spec.action_dim)

    def accepts(self, action: np.ndarray) -> bool:
        """Return whether an action is finite; count it if not."""
        is_finite = bool(np.isfinite(action).all())
        self.num_not_finite += not is_finite
        return is_finite

    def limit(self, action: np.ndarray, elapsed_s: float = np.inf) -> np.ndarray | None:
        """Return the command for an action, and remember it as sent.

        :param action: physical units, shape (action_dim,).
        :param elapsed_s: time since the last command was sent; more than a control period
            counts as one.
        :return: shape (action_dim,), float64, valid until the next call; None if the action is
            not finite, in which case nothing is remembered.
        """
        if not self.accepts(action):
            return None
        np.multiply(self._rate, min(elapsed_s, self._control_dt), out=self._step,
                    where=self._is_limited)
        command, clipped = self._command, self._clipped
        np.clip(action, self.lower, self.upper, out=command)
        self.num_clipped += np.abs(command - action) > self._tolerance
        np.copyto(clipped, command)
        # fmax and fmin pass over NaN: an element without a last command is left as it is.
        np.fmax(command, self.last - self._step, out=command)
        np.fmin(command, self.last + self._step, out=command)
        self.num_rate_limited += np.abs(command - clipped) > self._tolerance
        np.copyto(self.last, command)
        return command

    def safe(self) -> np.ndarray:
        """Return the safe command, and remember it as sent; NaN where nothing can be held yet."""
        np.copyto(self.last, self._safe, where=~self._hold)
        return self.last
