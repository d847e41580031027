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

"""Steps per second: counted rightly, of every kind of worlds; and all that is run on a GPU."""

import importlib.util
import json
from pathlib import Path
import time

import pytest

from dpg_robot.bench.throughput import bench_throughput, rate, ThroughputBench
from dpg_robot.bench.throughput_report import draw, table
from dpg_robot.cli import main
from dpg_robot.contract.strict import SpecError

ROOT = Path(__file__).resolve().parents[2]
TINY = ('learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
        'learner.batch_size=16')


def test_a_rate_counts_calls_of_the_time_that_was_asked_for(monkeypatch):
    clock, calls, waits = [0.0], [], []
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])

    def call():
        calls.append(clock[0])
        clock[0] += 0.02 if len(calls) > 1 else 5.0  # the first one compiles
    assert rate(call, 2.0, lambda: waits.append(clock[0])) == pytest.approx(50.0)
    assert 100 <= len(calls) <= 112 and len(waits) <= 14

    def launch():  # and goes on at once; the device is behind
        pending.append(0.01)

    def wait():
        clock[0] += sum(pending)
        pending.clear()
    pending = []
    assert rate(launch, 1.0, wait) == pytest.approx(100.0)


@pytest.fixture(scope='module')
def results():
    """Return what was measured on the CPU, and with the code of a GPU."""
    return [bench_throughput(ThroughputBench(device, ('reacher', 'point_maze')[:count], (4,),
                                             (1,), 0.05, TINY))
            for device, count in (('cpu', 1), ('warp_cpu', 2))]


def test_rows_tell_simulating_learning_memory_and_the_peer(results):
    (on_cpu,), (on_device, missing) = (result['rows'] for result in results)
    for row in (on_cpu, on_device):
        assert row['task'] == 'reacher' and row['num_worlds'] == 4
        assert row['steps_per_second'] > row['with_training'] > 0
        # One update for each two steps.
        assert row['updates_per_second'] == pytest.approx(row['with_training'] / 2)
        assert row['memory'] > 2**20  # the replay alone is larger
    assert on_cpu['workers'] == 1 and 'times_warp' not in on_cpu
    assert on_device['times_warp'] == pytest.approx(
        on_device['steps_per_second'] / on_device['warp_steps_per_second'])
    assert 'must be one with a version for devices' in missing['refused']
    assert 'steps_per_second' not in missing
    for result in results:
        assert result['versions']['mujoco-warp'] and result['machine']['cores']


def test_table_and_picture(results, tmp_path):
    for result in results:
        text = table(result)
        row = result['rows'][0]
        assert f'{row["steps_per_second"]:,.0f}' in text and f'{row["with_training"]:,.0f}' in text
        draw(result, tmp_path / 'picture.png')
        assert (tmp_path / 'picture.png').stat().st_size > 5_000
    assert 'got point_maze' in text


@pytest.mark.parametrize('change, message', [
    (['--num-worlds', '0'], 'num_worlds must be greater than 0, got 0'),
    (['--seconds', '0'], 'seconds must be greater than 0, got 0.0'),
    (['--set', 'learner.sigmo=1'], 'learner.sigmo is not a known key')])
def test_mistakes_are_named(change, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['bench', 'throughput', 'reacher', '--output', str(tmp_path / 'r.json'), *change])
    assert message in capsys.readouterr().err
    with pytest.raises(SpecError):
        ThroughputBench('cpu', ('reacher',), (1,), (0,))


def test_all_that_is_run_on_a_gpu_runs_here_in_small(tmp_path):
    spec = importlib.util.spec_from_file_location('gpu', ROOT / 'benchmarks' / 'gpu.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / 'gpu.json'
    script.main(['--device', 'warp_cpu', '--quick', '--output', str(path)])
    result = json.loads(path.read_text())
    for algorithm in ('off_policy', 'on_policy'):
        assert result['waiting'][algorithm]['error'] is None
        assert result['waiting'][algorithm]['rounds_per_second'] > 0
    row, = result['throughput']['rows']
    assert row['training_costs'] == pytest.approx(
        1 - row['with_training'] / row['steps_per_second'])
    assert result['fetch_reach']['points'][-1]['env_steps'] == 32
    assert result['hand_reach'].keys() == {'denoising', 'doubly_robust', 'critic', 'reinforce'}
    for curve in result['hand_reach'].values():
        assert [point['env_steps'] for point in curve['points']] == [16, 32]
        assert curve['points'][-1]['return'] < 0
    assert result['quick'] and result['machine']['cores']
