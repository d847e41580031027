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

"""A noisy world whose commands change no faster than its contract allows."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from dpg_robot.contract.command import CommandLimiter
from dpg_robot.sim.noise import StochasticWorld


class RateLimitedWorld(StochasticWorld):
    """Limit commands as ``policy_node`` does, before any noise comes on them.

    So a policy meets in training what it will meet on the robot, and a command that the node has
    limited already passes unchanged. Where the safe command is to hold, the first one is limited
    from ``held_action``.
    """

    def __init__(self, task: gymnasium.Env, *noise: Any):
        """Wrap a task; see :class:`dpg_robot.sim.noise.StochasticWorld`."""
        super().__init__(task, *noise)
        self.limiter = CommandLimiter(self.policy_spec)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; its first command is limited from where the joints are."""
        obs, info = super().reset(seed=seed, options=options)
        self.limiter = CommandLimiter(self.policy_spec)
        held = self.policy_spec.physical(self.held_action)
        np.copyto(self.limiter.last, held, where=np.isnan(self.limiter.last))
        return obs, info

    def commanded(self, action: np.ndarray) -> np.ndarray:
        """Return the normalised command that is left of an action, shape (action_dim,)."""
        spec, action = self.policy_spec, super().commanded(action)
        command = spec.physical(np.clip(action, -1.0, 1.0))
        return spec.normalised(self.limiter.limit(command))

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides this world's future."""
        return {**super().state, 'last_command': self.limiter.last.copy(),
                'command_velocity': self.limiter.velocity.copy()}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        StochasticWorld.state.fset(self, value)
        self.limiter = CommandLimiter(self.policy_spec)
        self.limiter.last[:] = value['last_command']
        self.limiter.velocity[:] = value['command_velocity']
