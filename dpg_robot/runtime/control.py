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

import contextlib
import threading
import time
import traceback
from typing import Callable, NamedTuple

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
    ``observation``, ``eps`` and ``action`` are what the policy read and answered, as far as it
    came to that.
    """

    command: np.ndarray
    faults: tuple[Fault, ...]
    is_driven: bool
    observation: np.ndarray | None = None
    eps: np.ndarray | None = None
    action: np.ndarray | None = None


_NO_THOUGHT = (None, None, None)


class PolicyControl:
    """What a robot does in each control period, whatever brings the messages in and out.

    A sensor that flickers must not make a robot jump between two commands: once the policy has
    had command, a fault takes it away until ``recover_ticks`` ticks in a row are without one;
    the last of them is the first that is driven. Whenever the policy takes command, or another
    policy does, its commands blend in from the last one that was sent.

    Every command goes out through one gate, which :meth:`stop`, :meth:`close` and
    :meth:`interrupt` shut from any thread. When one of them returns, the safe command is out and
    no tick that had begun before can send another.

    ``num_ticks`` and ``num_safe`` count all ticks and those that gave the safe command,
    ``num_exchanges`` the policies that replaced another one; ``last_error`` is the traceback of
    the last exception in a tick.
    """

    def __init__(self, policy: OnnxPolicy, mode: str = 'deterministic', seed: int = 0,
                 recover_ticks: int = 1, rate_factor: float = 1.0, blend_s: float = 0.0,
                 send: Callable[[np.ndarray], None] = lambda command: None,
                 rehearse_sending: Callable[[np.ndarray], None] = lambda command: None,
                 now: Callable[[], float] = lambda: float('-inf'),
                 hold: Callable[[], Fault | None] = lambda: None):
        """Prepare for ticks.

        :param mode: 'deterministic' (eps = 0) or 'sampled' (eps ~ N(0, I)).
        :param seed: of the sampled noise.
        :param recover_ticks: ticks without a fault that give command back, at least 1.
        :param rate_factor: simulated seconds in a second of the clock; rate limits are per
            simulated second, and observations age in those.
        :param blend_s: how long a policy that takes command blends in [simulated s].
        :param send: sends a command to the robot; called by one thread at a time.
        :param rehearse_sending: does as ``send``, but to nobody.
        :param now: the clock; a policy's command is not sent if its observation has become
            stale by then.
        :param hold: returns why the policy may not command yet, if it may not.
        :raises SpecError: if the mode is unknown.
        """
        if mode not in MODES:
            raise SpecError(f'mode must be one of {", ".join(MODES)}; got {mode}')
        self.policy = policy
        self.observation = ObservationAssembler(policy.spec, rate_factor)
        self.limiter = CommandLimiter(policy.spec)
        self.num_ticks = self.num_safe = self.num_exchanges = 0
        self.last_error = ''
        self._recover_ticks, self._rate_factor = recover_ticks, rate_factor
        self._num_to_recover, self._has_driven, self._sent_s = 0, False, -np.inf
        self._rng = np.random.default_rng(seed) if mode == 'sampled' else None
        self._send, self._rehearse_sending, self._now = send, rehearse_sending, now
        self._hold = hold
        self._understudy = CommandLimiter(policy.spec)  # limits rehearsed commands
        self._gate, self._is_open, self._turn = threading.Lock(), True, 0
        self._stopped: Fault | None = None
        self._offered: OnnxPolicy | None = None
        self._retired: OnnxPolicy | None = None
        self._blend_s, self._blend_began_s = blend_s, None
        self._blend_start = np.full(policy.spec.action_dim, np.nan)

    @property
    def is_open(self) -> bool:
        """Return whether ticks send commands."""
        return self._is_open

    @property
    def stopped(self) -> Fault | None:
        """Return why the robot is stopped, until :meth:`lift`."""
        return self._stopped

    def tick(self, now_s: float) -> Step:
        """Send the command for now and return it, whatever happens: silence is not safe.

        :param now_s: time on the clock of the observation's updates.
        """
        self.num_ticks += 1
        self._take_offer()
        turn, thought, faults = self._turn, _NO_THOUGHT, ()
        try:
            thought, faults = self._think(now_s)
        except Exception as error:
            self.last_error = traceback.format_exc()
            faults = (Fault('control', 'exception', f'{type(error).__name__}: {error}'),)
        observation, eps, action = thought
        with self._gate:
            may_drive = action is not None and not faults
            if may_drive:
                may_drive, faults = self._last_look(turn)
            sent_s = self._now_or(now_s)
            command = self._drive(action, now_s, sent_s) if may_drive else self._be_safe(faults)
            self._sent_s = sent_s
            if self._is_open:
                self._send(command)
        return Step(command, faults, may_drive, observation, eps, action)

    def rehearse(self, now_s: float) -> None:
        """Go through policy, limits and sending with what is there, to nobody, and forget it.

        Behind a sleep, when other programs have had the processor's caches, a tick takes two to
        eight times as long; the one that counts shall find in them what it needs.
        """
        with contextlib.suppress(Exception):  # the tick tells
            observation, _ = self.observation.assemble(now_s)
            if observation is not None:
                command = self._understudy.limit(self.policy(observation))
                if command is not None:
                    self._rehearse_sending(command)

    def _think(self, now_s):
        """Return observation, eps and action, as far as it comes to them, and the faults."""
        why_not = self._stopped or self._hold()
        if why_not is not None:
            return _NO_THOUGHT, (why_not,)
        observation, faults = self.observation.assemble(now_s)
        if observation is None:
            return _NO_THOUGHT, faults
        eps = None
        if self._rng is not None:
            eps = self._rng.standard_normal(self.policy.spec.eps_dim, dtype=np.float32)
        action = self.policy(observation, eps)
        if not self.limiter.accepts(action):
            faults = (Fault('action', 'not finite', f'the policy gave {action}'),)
        return (observation, eps, action), faults

    def _last_look(self, turn):
        """Decide whether an action may still be sent, however long it took to come."""
        if self._stopped is not None:
            return False, (self._stopped,)
        late_s = self._now() - self.observation.valid_until_s
        if late_s > 0.0:
            return False, (Fault('control', 'stale', f'the action came {late_s:.3f} s after the '
                                 'observation that it rests on became too old'),)
        if turn != self._turn:
            return False, ()
        if self._num_to_recover:
            self._num_to_recover -= 1
            return False, ()
        return True, ()

    def _now_or(self, otherwise_s):
        now_s = self._now()
        return now_s if now_s > -np.inf else otherwise_s

    def _drive(self, action, now_s, sent_s):
        # From sending to sending: how long the policy thought must not add to a step.
        elapsed_s = (sent_s - self._sent_s) * self._rate_factor
        start, weight = None, 1.0
        if self._blend_s > 0.0:
            if self._blend_began_s is None:
                self._blend_began_s = now_s
                np.copyto(self._blend_start, self.limiter.last)
            # The first command is on its way already: a blend over one period is none.
            blended_s = (now_s - self._blend_began_s) * self._rate_factor
            weight = (blended_s + self.policy.spec.control_dt) / self._blend_s
            start = self._blend_start
        self._has_driven = True
        return self.limiter.limit(action, elapsed_s, start, weight)

    def _be_safe(self, faults):
        self.num_safe += 1
        self._blend_began_s = None
        if faults and self._has_driven:
            self._num_to_recover = self._recover_ticks - 1
        return self.limiter.safe()

    def interrupt(self) -> np.ndarray:
        """Take command from the policy, from another thread, because a tick does not end.

        The policy must recover first; the tick that does not end is not yet a good one.

        :return: the safe command, shape (action_dim,), which is out.
        """
        with self._gate:
            return self._interrupt(self._is_open)

    def _interrupt(self, is_sent):
        self._turn += 1
        self._num_to_recover = self._recover_ticks - 1
        self._blend_began_s = None
        command = self.limiter.safe().copy()
        self._sent_s = self._now_or(self._sent_s)
        if is_sent:
            self._send(command)
        return command

    def stop(self, why: Fault) -> None:
        """Send the safe command at once, open or not, and no other one until :meth:`lift`.

        Where nothing is open there is nothing to hold: such elements are NaN, thus not sent.
        """
        with self._gate:
            self._stopped = why
            if not self._is_open:
                # Others may have moved the robot: what was held is no safe place any more.
                self.limiter.forget()
            self._interrupt(is_sent=True)

    def lift(self) -> None:
        """End a stop; the policy must recover."""
        self._stopped = None

    def open(self) -> None:
        """Let ticks send commands, to a robot that others may have moved in the meantime."""
        with self._gate:
            self.limiter.forget()
            self._is_open, self._has_driven, self._num_to_recover = True, False, 0
            self._sent_s, self._blend_began_s = -np.inf, None

    def close(self, repeats: int = 1, gap_s: float = 0.0) -> None:
        """Send the safe command, a few times for listeners that may lose one, and no other."""
        with self._gate:
            was_open, self._is_open = self._is_open, False
            for _ in range(repeats * was_open):
                self._interrupt(is_sent=True)
                time.sleep(gap_s)

    def offer(self, policy: OnnxPolicy) -> None:
        """Exchange the policy before the next tick; it must fulfil the same contract."""
        self._retired = None  # what it frees takes time: the caller's, not the tick's
        with self._gate:
            self._offered = policy
        if not self._is_open:
            self._take_offer()

    def _take_offer(self):
        if self._offered is not None:
            with self._gate:
                self._retired, self.policy = self.policy, self._offered or self.policy
                self._offered = None
                self.num_exchanges += 1
                self._blend_began_s = None
