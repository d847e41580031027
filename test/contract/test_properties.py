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

"""Properties of assembly and limits over random specs and random messages."""

from array import array
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from dpg_robot.contract.command import CommandLimiter
from dpg_robot.contract.messages import MessageWriter
from dpg_robot.contract.observation import ObservationAssembler
from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec

NUMBERS = st.floats(-100.0, 100.0)
WILD = st.one_of(NUMBERS, st.sampled_from([np.nan, np.inf, -np.inf, 1e300]))
JOINTS = tuple('abcdef')


@st.composite
def specs(draw):
    """Draw a spec of joints on a few topics, and one action term for each of some joints."""
    terms = []
    for i in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from(JOINTS), min_size=1, unique=True))
        low = draw(st.sampled_from([(), (-50.0,) * len(names)]))
        terms.append(ObservationTerm(
            f'term{i}', f'topic{draw(st.integers(0, 1))}', 'x_msgs/msg/Joints',
            tuple(f'{draw(st.sampled_from(["position", "velocity"]))}[{n}]' for n in names),
            'rad', draw(st.sampled_from([0.1, 0.5])), low, tuple(-v for v in low)))
    size = draw(st.integers(1, 4))

    def each(values):
        return tuple(draw(values) for _ in range(size))
    upper = each(st.floats(0.1, 5.0))
    action = ActionTerm(
        'command', 'out', 'x_msgs/msg/Numbers', tuple(f'data[{i}]' for i in range(size)), 'rad',
        scale=(1.0,) * size, lower=tuple(-v for v in upper), upper=upper,
        safe=each(st.sampled_from([None, 0.0, 0.05])),
        rate_limit=each(st.sampled_from([None, 0.5, 20.0])),
        acceleration_limit=draw(st.sampled_from([(), each(st.sampled_from([None, 2.0, 90.0]))])))
    return PolicySpec(1, 'task', 'robot', 50.0, tuple(terms), (action,))


@st.composite
def messages(draw):
    """Draw joints in any order, most often all of them, most often well-formed."""
    names = draw(st.one_of(st.permutations(JOINTS), st.lists(st.sampled_from(JOINTS))))
    numbers = draw(st.sampled_from([NUMBERS, NUMBERS, WILD]))
    sizes = st.sampled_from([len(names)] * 4 + [0])
    return SimpleNamespace(name=list(names), **{
        key: array('d', [draw(numbers) for _ in range(draw(sizes))])
        for key in ('position', 'velocity')})


def value(message, field):
    """Return what a field means, in the plainest way; None where it means nothing."""
    key, _, joint = field.rstrip(']').partition('[')
    values = getattr(message, key)
    if message.name.count(joint) != 1 or len(values) != len(message.name):
        return None
    return values[message.name.index(joint)]


@given(specs(), st.data())
def test_an_observation_is_right_and_fresh_or_has_a_fault_for_each_bad_term(spec, data):
    assembler, newest = ObservationAssembler(spec), {}
    for now in range(4):
        for topic in assembler.topics:
            if data.draw(st.integers(0, 3)):
                age = data.draw(st.sampled_from([0.0, 0.05, 0.09, 0.3, 0.6]))
                newest[topic] = data.draw(messages()), now - age
                assembler.update(topic, *newest[topic])
        vector, faults = assembler.assemble(float(now))
        expected, bad = [], set()
        for term in spec.observation:
            message, time_s = newest.get(term.topic, (None, -np.inf))
            values = [None if message is None else value(message, f) for f in term.fields]
            inside = all(v is not None and np.isfinite(v) and abs(v) < 1e30
                         and (not term.lower or abs(v) <= 50.0) for v in values)
            if now - time_s > term.max_age_s or not inside:
                bad.add(term.name)
            expected += values
        assert (vector is None) == bool(bad) == bool(faults)
        assert {fault.term for fault in faults} <= bad
        if vector is not None:
            np.testing.assert_array_equal(vector, np.array(expected, np.float32))
            assert assembler.valid_until_s >= now


@given(specs(), st.data())
def test_no_command_leaves_its_limits_whatever_comes(spec, data):
    limiter, term, dt = CommandLimiter(spec), spec.action[0], 0.02
    size, steps = term.size, data.draw(st.integers(1, 12))
    start = np.clip(data.draw(st.lists(NUMBERS, min_size=size, max_size=size)),
                    term.lower, term.upper)
    for _ in range(steps):
        last = limiter.last.copy()
        if not data.draw(st.integers(0, 3)):
            command = limiter.safe()
            for got, safe, before in zip(command, term.safe, last):
                np.testing.assert_equal(got, before if safe is None else safe)
            continue
        action = np.array(data.draw(st.lists(WILD, min_size=size, max_size=size)))
        weight = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
        command = limiter.limit(action, data.draw(st.sampled_from([dt, 0.001, 7.0])), start,
                                weight)
        assert (command is None) != np.isfinite(action).all()
        if command is None:
            np.testing.assert_array_equal(limiter.last, last)
            continue
        assert (command >= term.lower).all() and (command <= term.upper).all()
        for got, before, rate in zip(command, last, term.rate_limit):
            assert rate is None or np.isnan(before) or abs(got - before) <= rate * dt + 1e-9


@given(specs(), st.data())
def test_what_is_written_is_what_was_commanded(spec, data):
    message = SimpleNamespace(data=array('d'))
    writer = MessageWriter(spec.action, lambda name: message)
    size = spec.action_dim
    for _ in range(3):
        vector = np.array(data.draw(st.lists(WILD, min_size=size, max_size=size)))
        written = writer.write(vector, None)
        assert bool(written) is bool(np.isfinite(vector).all())
        if written:
            assert written == [('out', message)]
            assert list(message.data) == vector.tolist()
