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

"""Tests of the guard of one topic's messages."""

import pytest

from dpg_robot.runtime.inputs import InputGuard

S = 10**9
NOW = 1000 * S


def guard(zero_stamp='arrival'):
    return InputGuard(0.05, zero_stamp)


@pytest.mark.parametrize('stamp_ns, kind', [
    (NOW, ''), (NOW - 100 * S, ''), (NOW + S // 20, ''), (None, ''), (0, ''),
    (NOW + S // 20 + 1, 'future'), (NOW + 3600 * S, 'future')])
def test_a_first_stamp(stamp_ns, kind):
    assert guard().judge(stamp_ns, NOW).partition(',')[0] == kind


def test_zero_stamps_may_be_refused():
    strict = guard('refuse')
    assert strict.judge(0, NOW) == 'no stamp, its stamp is zero'
    assert strict.judge(None, NOW) == ''  # a type without a header has none to leave out
    assert (strict.refused, strict.num_received) == ({'no stamp': 1}, 2)


def test_a_stamp_left_out_among_others_is_of_another_publisher():
    one = guard()
    assert [one.judge(stamp_ns, NOW) for stamp_ns in (0, NOW, 0, NOW + 1)] == [
        '', '', 'no stamp, its stamp is zero, unlike those before', '']


def test_a_stamp_must_grow():
    one = guard()
    told = [one.judge(NOW + offset, NOW).partition(',')[0] for offset in (0, 0, -S, 1, 0, 2)]
    assert told == ['', 'duplicate', 'backward', '', 'backward', '']
    assert one.refused == {'duplicate': 1, 'backward': 2}
    assert 'is 1.000 s before' in one.judge(NOW - S + 2, NOW)


def test_topics_recover_when_this_clock_is_set_back():
    one = guard()
    assert not one.judge(NOW, NOW)
    earlier = NOW - 60 * S
    assert not one.judge(earlier, earlier)
    assert one.judge(earlier - 1, earlier)
    one.forget()
    assert not one.judge(earlier - 1, earlier)


@pytest.mark.parametrize('sequences, conflicts', [
    ((1, 2, 3, 7, 8), 0),  # one publisher, with losses
    ((5, 6, 1, 2, 3), 0),  # it was started again
    ((5, 1, 6, 2, 7, 3), 2), ((1, 1, 2, 2), 1), ((None, None), 0)])
def test_publishers_in_turn(sequences, conflicts):
    one = guard()
    found = [one.has_conflict(sequence, 0.2 * i) for i, sequence in enumerate(sequences)]
    assert sum(found) == conflicts


@pytest.mark.parametrize('sequences, times_s, conflicts', [
    # Too soon for a restart: each message of a slow one among those of a fast one is found out.
    ((500, 501, 3, 502, 560, 4), (0.0, 0.02, 0.03, 0.04, 5.0, 5.01), 2),
    ((500, 1, 2), (0.0, 0.11, 0.13), 0),  # a restart
    ((7, 8, 7, 8), (0.0, 0.5, 1.0, 1.5), 0), ((7, 3, 8, 4), (0.0, 0.9, 1.8, 2.7), 1)])
def test_slow_publishers_in_turn(sequences, times_s, conflicts):
    one = guard()
    assert sum(map(one.has_conflict, sequences, times_s)) == conflicts


def test_two_restarts_with_time_between_them_are_no_conflict():
    one = guard()
    assert not any(one.has_conflict(sequence, time_s)
                   for sequence, time_s in ((5, 0.0), (1, 0.2), (6, 0.3), (1, 2.3)))
