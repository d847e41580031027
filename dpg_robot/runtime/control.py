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

"""One control step of a policy, free of ROS: observation, policy, limits, or the safe command."""

from __future__ import annotations

import traceback
from typing import NamedTuple

import numpy as np

from dpg_robot.contract.command import CommandLimiter
from dpg_robot.contract.observation import Fault, ObservationAssembler
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.onnx_policy import OnnxPolicy

MODES = ('deterministic', 'sampled')


class Step(NamedTuple):
    """The outcome of a tick.

    ``command``, shape (action_dim,), is in physical units and valid until the next tick; NaN
    elements must not be sent. It is the policy's if ``is_driven``, otherwise the safe one:
    because of the faults, or, where there are none, because the last one is too recent.
    """

    command: np.ndarray
    faults: tuple[Fault, ...]
    is_driven: bool


class PolicyControl:
    """What a robot does in each control period, whatever brings the messages in and out.

    A sensor that flickers must not make a robot jump between two commands: once the policy has
    had command, a fault takes it away until ``recover_ticks`` ticks in a row are without one;
    the last of them is the first that is driven.

    ``num_ticks`` and ``num_safe`` count all ticks and those that gave the safe command;
    ``last_error`` is the traceback of the last exception in a tick.
    """

    def __init__(self, policy: OnnxPolicy, mode: str = 'deterministic', seed: int = 0,
                 recover_ticks: int = 1, rate_factor: float = 1.0):
        """Prepare for ticks.

        :param mode: 'deterministic' (eps = 0) or 'sampled' (eps ~ N(0, I)).
        :param seed: of the sampled noise.
        :param recover_ticks: ticks without a fault that give command back, at least 1.
        :param rate_factor: simulated seconds in a second of the steady clock; rate limits are
            per simulated second.
        :raises SpecError: if the mode is unknown.
        """
        if mode not in MODES:
            raise SpecError(f'mode must be one of {", ".join(MODES)}; got {mode}')
        self.policy = policy
        self.observation = ObservationAssembler(policy.spec)
        self.limiter = CommandLimiter(policy.spec)
        self.num_ticks = self.num_safe = 0
        self.last_error = ''
        self._recover_ticks, self._rate_factor = recover_ticks, rate_factor
        self._num_to_recover, self._has_driven, self._sent_s = 0, False, -np.inf
        self._rng = np.random.default_rng(seed) if mode == 'sampled' else None

    def tick(self, now_s: float) -> Step:
        """Return the command for now; never raises, because silence is not safe.

        :param now_s: time on the steady clock of the observation's updates.
        """
        self.num_ticks += 1
        try:
            command, faults = self._decide(now_s)
        except Exception as error:
            self.last_error = traceback.format_exc()
            fault = Fault('control', 'exception', f'{type(error).__name__}: {error}')
            command, faults = None, (fault,)
        is_driven = command is not None
        if not is_driven:
            self.num_safe += 1
            command = self.limiter.safe()
        self._has_driven |= is_driven
        if faults and self._has_driven:
            self._num_to_recover = self._recover_ticks - 1
        self._sent_s = now_s
        return Step(command, faults, is_driven)

    def interrupt(self) -> np.ndarray:
        """Take command from the policy, from another thread, because a tick does not end.

        The policy must recover first; the tick that does not end is not yet a good one.

        :return: the safe command, shape (action_dim,).
        """
        self._num_to_recover = self._recover_ticks
        return self.limiter.safe().copy()

    def _decide(self, now_s):
        observation, faults = self.observation.assemble(now_s)
        if observation is None:
            return None, faults
        eps = None
        if self._rng is not None:
            eps = self._rng.standard_normal(self.policy.spec.eps_dim, dtype=np.float32)
        action = self.policy(observation, eps)
        if not self.limiter.accepts(action):
            return None, (Fault('action', 'not finite', f'the policy gave {action}'),)
        if self._num_to_recover:
            self._num_to_recover -= 1
            return None, ()
        return self.limiter.limit(action, (now_s - self._sent_s) * self._rate_factor), ()
