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

"""The latency benchmark: its figures by hand, and a short run of the real thing."""

import json

import numpy as np
import pytest

from dpg_robot.bench.latency import bench_spec, LatencyBench
from dpg_robot.bench.latency_figures import figures, latencies, missed_fraction, pooled, table
from dpg_robot.bench.latency_nodes import states
from dpg_robot.cli import main
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

PERIOD_S = 0.01
EXPECTED = states(3)[:, :3]


def noted(delays_s, answers=None, measured_s=(-1.0, 100.0)):
    """Return what a robot notes that gets a command so long after each state; None for never.

    :param answers: the state that each command answers, if it is not that one.
    """
    sent_s = PERIOD_S * np.arange(len(delays_s))
    answers = range(len(delays_s)) if answers is None else answers
    events = sorted((sent_s[k] + delay, EXPECTED[answers[k]])
                    for k, delay in enumerate(delays_s) if delay is not None)
    return {'sent_s': sent_s, 'received_s': np.array([t for t, _ in events]),
            'commands': np.array([command for _, command in events]),
            'measured_s': np.array(measured_s)}


def test_each_state_has_the_latency_of_its_own_answer():
    # The third command comes after the fourth state, and is still the third one's.
    latency_s, late = latencies(noted([0.001, 0.002, 0.0105, 0.003]), EXPECTED, PERIOD_S)
    np.testing.assert_allclose(latency_s, [0.001, 0.002, 0.0105, 0.003])
    assert not late.any()  # half a millisecond too late is in time, two are not
    _, late = latencies(noted([0.001, 0.012, 0.003]), EXPECTED, PERIOD_S)
    np.testing.assert_array_equal(late, [False, True, False])


def test_a_state_without_an_answer_is_missed_and_has_no_latency():
    latency_s, late = latencies(noted([0.001, None, 0.003]), EXPECTED, PERIOD_S)
    np.testing.assert_allclose(latency_s, [0.001, 0.003])
    np.testing.assert_array_equal(late, [False, True, False])
    # The second command repeats the first state's: the first answer counts, the second state lost.
    latency_s, late = latencies(noted([0.001, 0.002, 0.003], [0, 0, 2]), EXPECTED, PERIOD_S)
    np.testing.assert_allclose(latency_s, [0.001, 0.003])
    np.testing.assert_array_equal(late, [False, True, False])


def test_a_command_that_answers_nothing_counts_for_nothing():
    run = noted([0.001, 0.002])
    run['commands'][1] += 0.01
    latency_s, late = latencies(run, EXPECTED, PERIOD_S)
    np.testing.assert_allclose(latency_s, [0.001])
    np.testing.assert_array_equal(late, [False, True])


def test_only_what_was_measured_counts():
    latency_s, late = latencies(noted([0.001, 0.002, 0.003, 0.004],
                                      measured_s=(0.005, 0.025)), EXPECTED, PERIOD_S)
    np.testing.assert_allclose(latency_s, [0.002, 0.003])
    assert len(late) == 2


def test_figures_pool_the_rounds():
    runs = [(np.array([1e-3, 3e-3]), np.array([False, False])),
            (np.array([2e-3]), np.array([False, True]))]
    told = [{'tick_us.p50': p50, 'tick_us.p99': '20', 'tick_us.max': most,
             'state_to_command_us.p50': '5', 'state_to_command_us.p99': '6',
             'state_to_command_us.max': '7', 'deadline_misses': '2', 'safe_ticks': '3'}
            for p50, most in (('10', '30'), ('14', '90'))]
    result = figures(runs, told)
    assert result['tick_us'] == {'p50': 12.0, 'p99': 20.0, 'max': 90.0}
    assert result['state_to_command_us']['p50'] == pytest.approx(2000.0)
    assert result['state_to_command_us']['max'] == pytest.approx(3000.0)
    assert (result['missed_fraction'], result['states']) == (0.25, 4)
    assert (result['deadline_misses'], result['safe_ticks']) == (4, 6)
    with pytest.raises(SpecError, match='no command answered any state'):
        pooled([(np.array([]), np.array([True]))])
    assert missed_fraction(runs) == 0.25


def test_the_robot_is_one_that_a_file_can_carry():
    spec = bench_spec(250)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert (spec.obs_dim, spec.action_dim, spec.control_dt) == (40, 20, 0.004)


@pytest.mark.parametrize('values, message', [
    ({'rates': (0,)}, 'rates must be at least 1, got 0'),
    ({'seconds': 0.5}, 'seconds must be at least 1, got 0.5'),
    ({'rounds': 0}, 'rounds must be at least 1, got 0'),
    ({'wake_latency_us': -2}, 'wake_latency_us must be at least -1, got -2'),
    ({'memory_minutes': -1.0}, 'memory_minutes must be at least 0, got -1'),
])
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(SpecError, match=message):
        LatencyBench(**values)


def test_a_short_run_measures_real_nodes(tmp_path, capsys):
    file = tmp_path / 'latency.json'
    main(['bench', 'latency', '--rates', '50', '--seconds', '1', '--rounds', '1',
          '--memory-minutes', '0.02', '--output', str(file)])
    result = json.loads(file.read_text())
    values, floor = result['rates']['50'], result['floor']
    for figure in (values['tick_us'], values['state_to_command_us'], floor['rclpy_echo_us']['50'],
                   floor['onnxruntime_us'], floor['onnxruntime_paced_us']['50']):
        assert 0.0 < figure['p50'] <= figure['p99'] <= figure['max']
    # The policy is part of the tick, the tick part of the way.
    assert floor['onnxruntime_us']['p50'] < values['tick_us']['p50']
    assert values['tick_us']['p50'] < values['state_to_command_us']['p50']
    assert 40 <= values['states'] <= 60
    assert 0.0 <= values['missed_fraction'] < 1.0
    assert result['memory']['last_mb'] > 20.0 and len(result['memory']['samples']) >= 2
    assert result['command'].startswith('dpg-robot bench latency')
    assert result['versions']['onnxruntime'] and result['machine']
    assert table(result) in capsys.readouterr().out
