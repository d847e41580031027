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

"""From the newest messages to the policy's observation vector, or the reasons why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dpg_robot.contract.fields import FieldFault, FieldReader
from dpg_robot.contract.spec import ObservationTerm, PolicySpec

# A larger number would become infinite in the policy's float32.
_LARGEST = float(np.finfo(np.float32).max)
_NEVER = float('-inf')


@dataclass(frozen=True)
class Fault:
    """Why an observation term cannot be used.

    ``kind`` is 'never received', 'stale', 'missing', 'size', 'not finite', 'range' or
    'publishers'; the control step adds 'not finite' and 'exception' of its own.
    """

    term: str
    kind: str
    detail: str

    def __str__(self) -> str:
        """Return one line that names the term."""
        return f'{self.term}: {self.kind}, {self.detail}'


class _Sample(NamedTuple):
    message: Any
    received_s: float
    measured_s: float


class _Term:
    """One observation term: where it lies in the vector, and how it is read."""

    def __init__(self, spec: ObservationTerm, vector: np.ndarray, rate_factor: float):
        self.spec, self.max_age_s = spec, spec.max_age_s / rate_factor
        self.reader = FieldReader(spec.fields)
        self.values = vector

    def fault(self, sample: _Sample | None, now_s: float, hint: str) -> Fault | None:
        """Read the newest sample; return what is wrong with it in itself."""
        spec = self.spec
        if sample is None:
            return Fault(spec.name, 'never received', f'nothing on {spec.topic} yet{hint}')
        age = now_s - sample.measured_s
        # A time far ahead is from before the clock was set back, and tells no age.
        if abs(age) > self.max_age_s:
            return Fault(
                spec.name, 'stale', f'{spec.topic} must be at most {self.max_age_s:g} s old, '
                f'got {age:.3f} s (received {now_s - sample.received_s:.3f} s ago){hint}')
        try:
            self.reader.read(sample.message, self.values)
        except FieldFault as error:
            return Fault(spec.name, error.kind, f'{spec.topic}: {error}')
        return None

    def value_fault(self, lower: np.ndarray, upper: np.ndarray) -> Fault | None:
        """Name the first element that is not finite or lies outside its range."""
        spec = self.spec
        for field, value, low, high in zip(spec.fields, self.values, lower, upper):
            if not np.isfinite(value):
                return Fault(spec.name, 'not finite', f'{spec.topic}: {field} is {value}')
            if not low <= value <= high:
                return Fault(spec.name, 'range', f'{spec.topic}: {field} must lie within '
                             f'{low:g} and {high:g} {spec.unit}, got {value:g}')
        return None


class ObservationAssembler:
    """Keep the newest message of each topic and build the observation vector from them.

    :meth:`forget` and :meth:`ages_s` may run in another thread than the rest: a message replaces
    the last one in a single step, so neither ever waits for the other.

    All times are on one clock [s]. ``newest_s`` is when the newest part of the last vector was
    measured, and ``valid_until_s`` when its first part becomes too old.
    """

    def __init__(self, spec: PolicySpec, rate_factor: float = 1.0):
        """Prepare readers and buffers for a spec.

        :param rate_factor: simulated seconds, in which the spec tells ages, in a second here.
        """
        self.topics = {term.topic: term.type for term in spec.observation}
        self.newest_s, self.valid_until_s = 0.0, _NEVER
        smallest = min(term.max_age_s for term in spec.observation)
        self._clock_topics = tuple(dict.fromkeys(
            term.topic for term in spec.observation if term.max_age_s == smallest))
        self._hints, self._conflicts = {}, {}
        self._samples = dict.fromkeys(self.topics)
        self._values = np.zeros(spec.obs_dim)
        self._vector = np.zeros(spec.obs_dim, np.float32)
        self._within = np.zeros((2, spec.obs_dim), bool)
        self._lower = np.full(spec.obs_dim, -_LARGEST)
        self._upper = np.full(spec.obs_dim, _LARGEST)
        self._terms, start = [], 0
        for term in spec.observation:
            place = slice(start, start + term.size)
            self._terms.append((_Term(term, self._values[place], rate_factor), place))
            if term.lower:
                self._lower[place] = np.maximum(term.lower, -_LARGEST)
            if term.upper:
                self._upper[place] = np.minimum(term.upper, _LARGEST)
            start += term.size

    def update(self, topic: str, message: Any, received_s: float,
               stamp_s: float | None = None) -> None:
        """Store the newest message of a topic.

        :param received_s: when it arrived.
        :param stamp_s: when its content was measured; None if it does not say. A stamp from the
            future (clocks that disagree) never makes a message younger than its arrival.
        """
        measured = received_s if stamp_s is None else min(stamp_s, received_s)
        self._samples[topic] = _Sample(message, received_s, measured)
        self._hints.pop(topic, None)

    def refuse(self, topic: str, why: str) -> None:
        """Leave a message out; ``why`` explains the fault if no better one comes in time."""
        self._hints[topic] = f'; the last message was refused: {why}'

    def doubt(self, topic: str, why: str, until_s: float) -> None:
        """Refuse a topic as a whole until a time, because its messages contradict each other."""
        self._conflicts[topic] = (why, until_s)

    def forget(self) -> None:
        """Drop all messages, because the clock that tells their age was set anew."""
        self._samples = dict.fromkeys(self.topics)
        self._hints, self._conflicts = {}, {}

    def assemble(self, now_s: float) -> tuple[np.ndarray | None, tuple[Fault, ...]]:
        """Build the observation from the newest messages.

        :return: the vector, float32, shape (obs_dim,), valid until the next call, and no
            faults; or None and at least one fault.
        """
        faults, newest, until = self._contradictions(now_s), float('-inf'), float('inf')
        samples = self._samples.copy()  # terms of one topic must read the same message
        for term, _ in self._terms:
            spec = term.spec
            sample = samples[spec.topic]
            fault = term.fault(sample, now_s, self._hints.get(spec.topic, ''))
            if fault is not None:
                faults.append(fault)
                continue
            newest = max(newest, sample.measured_s)
            until = min(until, sample.measured_s + term.max_age_s)
        if faults:
            return None, tuple(faults)
        # NaN fails every comparison, so this finds it too.
        np.less_equal(self._lower, self._values, out=self._within[0])
        np.less_equal(self._values, self._upper, out=self._within[1])
        if not self._within.all():
            found = (term.value_fault(self._lower[place], self._upper[place])
                     for term, place in self._terms)
            return None, tuple(fault for fault in found if fault is not None)
        self._vector[:] = self._values
        self.newest_s, self.valid_until_s = newest, until
        return self._vector, ()

    def _contradictions(self, now_s):
        if not self._conflicts:
            return []
        current = {topic: why for topic, (why, until_s) in list(self._conflicts.items())
                   if now_s < until_s}
        return [Fault(term.spec.name, 'publishers', f'{term.spec.topic}: {current[topic]}')
                for term, _ in self._terms if (topic := term.spec.topic) in current]

    def arrival_s(self) -> tuple[float, float]:
        """Return when the first and the last part of the newest state arrived.

        The state is the terms of the smallest ``max_age_s``: they follow the robot's own control
        period; a goal need not. Before they all have arrived, the first is minus infinity.
        """
        samples = [self._samples[topic] for topic in self._clock_topics]
        times_s = [_NEVER if sample is None else sample.received_s for sample in samples]
        return min(times_s), max(times_s)

    def ages_s(self, now_s: float) -> dict[str, float | None]:
        """Return the age of each term [s], None if never received."""
        samples = {term.spec.name: self._samples[term.spec.topic] for term, _ in self._terms}
        return {name: None if sample is None else now_s - sample.measured_s
                for name, sample in samples.items()}
