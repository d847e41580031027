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

"""Which messages of a topic count: their stamps, and whether one publisher alone sends them."""

from __future__ import annotations

from collections import Counter

ZERO_STAMPS = ('arrival', 'refuse')

# Two publishers in turn are told from one that was restarted by doing it again so soon, or by
# following so soon on the last message: nothing starts again as fast [s].
_CONFLICT_S, _RESTART_S = 2.0, 0.1


class InputGuard:
    """Watch the messages of one topic, as they arrive.

    A message is refused if its stamp says nothing about its age, or something impossible:

    - ``future``: later than the node's clock by more than the tolerance. The clocks differ by an
      unknown amount, so a stale state could pass for a fresh one.
    - ``backward``: older than a message that is already here.
    - ``duplicate``: as old as one that is already here, so it tells nothing new.
    - ``no stamp``: zero, where the policy for zero stamps is to refuse them, or where others had
      one: then it is another publisher's.

    A refused message changes nothing; the last good one becomes stale, if no better one comes.

    ``refused`` counts by kind, and ``num_received`` all messages.
    """

    def __init__(self, future_tolerance_s: float, zero_stamp: str):
        """Choose the rules.

        :param future_tolerance_s: how far the publisher's clock may be ahead.
        :param zero_stamp: 'arrival', to count a message without a stamp as measured when it
            arrives, or 'refuse'.
        """
        self.refused: Counter[str] = Counter()
        self.num_received = 0
        self._tolerance_ns = int(future_tolerance_s * 1e9)
        self._takes_zero = zero_stamp == 'arrival'
        self.forget()

    def forget(self) -> None:
        """Begin anew, because the clock was set."""
        self._last_ns, self._sequence = 0, -1
        self._switched_s = self._received_s = float('-inf')

    def judge(self, stamp_ns: int | None, now_ns: int) -> str:
        """Return why a message is refused, starting with the kind; empty if it counts.

        :param stamp_ns: of its header; None if its type has none, 0 if it was left out.
        :param now_ns: the node's clock.
        """
        self.num_received += 1
        if not stamp_ns:
            if stamp_ns is None or self._takes_zero and not self._last_ns:
                return ''
            return self._refuse('no stamp', 'its stamp is zero'
                                + ', unlike those before' * self._takes_zero)
        ahead_ns = stamp_ns - now_ns
        if ahead_ns > self._tolerance_ns:
            return self._refuse(
                'future', f'its stamp is {ahead_ns * 1e-9:.3f} s ahead of this clock')
        # A last stamp from the future tells that this node's clock was set back since.
        if self._last_ns - now_ns <= self._tolerance_ns and stamp_ns <= self._last_ns:
            if stamp_ns == self._last_ns:
                return self._refuse('duplicate', 'its stamp is that of the one before')
            return self._refuse('backward', f'its stamp is {(self._last_ns - stamp_ns) * 1e-9:.3f}'
                                            ' s before that of an earlier one')
        self._last_ns = stamp_ns
        return ''

    def _refuse(self, kind, why):
        self.refused[kind] += 1
        return f'{kind}, {why}'

    def has_conflict(self, sequence: int | None, received_s: float) -> bool:
        """Return whether several publishers send in turn.

        Each counts its own messages, so a number that does not grow is another one's. Once, and
        after a while, that is a publisher that was started again.

        :param sequence: the publisher's number of the message; None if it is not known.
        """
        if sequence is None:
            return False
        switched, self._sequence = sequence <= self._sequence, sequence
        silence_s, self._received_s = received_s - self._received_s, received_s
        if not switched:
            return False
        since_s, self._switched_s = received_s - self._switched_s, received_s
        return since_s < _CONFLICT_S or silence_s < _RESTART_S
