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

import json
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import warp
from warp._src import context

from dpg_robot.bench import throughput
from dpg_robot.bench.throughput import bench_throughput, rate, ThroughputBench
from dpg_robot.bench.throughput_report import draw, table
from dpg_robot.bench.waits import counted
from dpg_robot.bench.warp_loop import own_loop, trim_graph_memory
from dpg_robot.cli import main
from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.linear import solve_right
from dpg_robot.sim.world import make_device_vector, WorldConfig

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
        assert min(row['steps_per_second'], row['with_training']) > 0
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


def test_rows_that_do_not_fit_into_memory_or_time_are_refused(monkeypatch):
    bench = ThroughputBench('warp_cpu', ('reacher',), (4,), (1,), 0.05, TINY)
    for error, message in (
            (torch.OutOfMemoryError('CUDA out of memory. Tried to\nno more'),
             'OutOfMemoryError: CUDA out of memory. Tried to'),
            (RuntimeError('Failed to allocate 9 bytes'),
             'RuntimeError: Failed to allocate 9 bytes')):
        monkeypatch.setattr(throughput, '_simulate', mock.Mock(side_effect=error))
        row, = bench_throughput(bench)['rows']
        assert row['refused'] == message
    row, = bench_throughput(bench, ends=time.monotonic() - 1)['rows']
    assert row['refused'] == 'no time was left' and row['task'] == 'reacher'


def test_a_row_that_fails_leaves_what_is_known_and_the_others(monkeypatch, tmp_path, capsys):
    learn, found = throughput._learn, [RuntimeError('a mistake\nmore'), None]

    def fail_first(*arguments):
        if (error := found.pop(0)) is not None:
            raise error
        return learn(*arguments)
    monkeypatch.setattr(throughput, '_learn', fail_first)
    with pytest.raises(SystemExit):
        main(['bench', 'throughput', 'reacher', '--num-worlds', '2', '3', '--workers', '1',
              '--seconds', '0.05', '--output', str(tmp_path / 'r.json'),
              *(part for change in TINY for part in ('--set', change))])
    told = capsys.readouterr()
    assert 'dpg-robot: 1 of 2 rows failed, first: RuntimeError: a mistake\n' == told.err
    first, second = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert first['failed'] == 'RuntimeError: a mistake' and first['steps_per_second'] > 0
    assert second['with_training'] > 0
    assert f'{first["steps_per_second"]:,.0f}  RuntimeError: a mistake\n' in told.out


@pytest.mark.parametrize('task, name', [('reacher', 'ctrl'), ('fetch_reach', 'mocap_pos')])
def test_the_peer_is_told_something_else_in_each_period(task, name):
    worlds = make_device_vector(WorldConfig(task), 3, 'cpu')
    worlds.reset(seed=0)
    period, commands, start = own_loop(worlds), [], worlds.physics.data['time'][0].item()
    for _ in range(3):
        period()
        commands.append(worlds.physics.data[name].clone())
    assert commands[0].unique().numel() >= 6
    assert not torch.equal(commands[0], commands[1]) and not torch.equal(*commands[1:])
    assert worlds.physics.data['time'][0].item() - start == pytest.approx(
        3 * worlds.policy_spec.control_dt, rel=1e-4)
    worlds.close()


def test_memory_of_graphs_can_be_given_back(monkeypatch):
    for name in ('synchronize', 'current_device'):
        monkeypatch.setattr(torch.cuda, name, lambda: 3)
    warp.init()
    monkeypatch.setattr(context.runtime, 'core', mock.Mock(spec=context.runtime.core))
    trim = mock.Mock()
    monkeypatch.setattr(context.runtime.core, 'wp_cuda_device_graph_mem_trim', trim)
    trim_graph_memory()
    trim.assert_called_once_with(3)


def test_waits_are_counted_where_they_were_asked_for():
    x = torch.ones(3)
    found = counted(lambda: (x + x).sum().item(), 4)
    assert found['waits'] == {'aten::item': 4, 'aten::_local_scalar_dense': 4}
    assert found['where'] == {'aten::item': 4}
    assert found['operations'] >= 16 and found['launches'] == {}
    found = counted(lambda: solve_right(torch.eye(3), x[None]), 2, lines=True)
    (place, times), = found['where'].items()
    assert place.startswith('aten::item in aten::linalg_lu_solve in dpg_robot/learn/linear.py(')
    assert place.endswith('): solve_right') and times == found['waits']['aten::item']
    assert counted(lambda: x + x, 2)['waits'] == {}


@pytest.fixture(scope='module')
def script(load_benchmark):
    """Return benchmarks/gpu.py."""
    return load_benchmark('gpu')


def test_all_that_is_run_on_a_gpu_runs_here_in_small(script, tmp_path):
    path = tmp_path / 'gpu.json'
    assert script.main(['--device', 'warp_cpu', '--quick', '--output', str(path)]) == 0
    result = json.loads(path.read_text())
    for algorithm in ('off_policy', 'on_policy'):
        figures = result[f'{algorithm}_waits']
        assert figures['error'] is None and figures['operations'] > 0
        # On a CPU some operations read values themselves: these, and no others.
        assert {place.partition(' in ')[2] for place in figures['where']} <= {
            'aten::_fused_adamw_', 'aten::linalg_lu_solve', 'aten::std', 'aten::var'}
        assert figures['rounds_per_second'] > 0 and figures['behind_the_host_s'] >= 0
    assert list(result['kernels']) == ['reacher'] and result['kernels']['reacher'] > 0
    row, = result['throughput']['rows']
    assert row['training_costs'] == pytest.approx(
        1 - row['with_training'] / row['steps_per_second'])
    assert result['fetch_reach']['points'][-1]['env_steps'] == 32
    assert 0 < result['fetch_reach']['train_s'] < result['fetch_reach']['wall_s']
    curves = {name: value for name, value in result['hand_reach'].items() if name != 'warm_up_s'}
    assert list(curves) == ['doubly_robust', 'denoising', 'critic', 'reinforce']
    for curve in curves.values():
        assert [point['env_steps'] for point in curve['points']] == [16, 32]
        assert curve['points'][-1]['return'] < 0 and not curve['cut_off']
    assert result['quick'] and result['machine']['cores'] and result['versions']
    assert ('passed' if torch.cuda.is_available() else 'skipped') in \
        result['parity']['closing_line']


def test_what_fails_in_one_section_leaves_the_others(script, tmp_path, monkeypatch):
    path = tmp_path / 'gpu.json'
    only = ['--device', 'warp_cpu', '--quick', '--output', str(path), '--only']

    def train(config, seconds, write, enough=None):
        write({'points': [1]})
        raise RuntimeError('CUDA error: an illegal memory access')
    monkeypatch.setattr(script, 'train', train)
    monkeypatch.setattr(script, 'compile_kernels', lambda config: 0.5)
    assert script.main([*only, 'fetch_reach']) == script.main([*only, 'hand_reach']) == 1
    monkeypatch.setattr(script, 'bench_throughput', lambda bench, note, ends: note({'task': 'x'}))
    assert script.main([*only, 'throughput']) == 0
    result = json.loads(path.read_text())
    assert result['fetch_reach']['points'] == [1]  # what was known before
    assert 'RuntimeError: CUDA error: an illegal memory access' in result['fetch_reach']['failed']
    assert result['throughput']['rows'] == [{'task': 'x'}]
    for name in script.ESTIMATORS:  # one estimator that fails leaves the others, too
        assert result['hand_reach'][name]['points'] == [1]
        assert 'an illegal memory access' in result['hand_reach'][name]['failed']


def test_what_cannot_be_recorded_is_run_without_graphs(script, tmp_path, monkeypatch):
    asked, path = [], tmp_path / 'gpu.json'

    def run_apart(section, seconds, limit, options, changes):
        asked.append((section, tuple(changes)))
        fails = section == 'fetch_reach' and script.NO_GRAPHS not in changes
        script.save(path, **{section: {'failed': f'... {script.REFUSED_GRAPHS} here, since ...'}
                             if fails else {'train_s': 9.0}})
        return not fails
    monkeypatch.setattr(script, 'run_apart', run_apart)
    assert script.main(['--device', 'warp_cpu', '--output', str(path), '--set',
                        'trainer.seed=2']) == 1
    seed = ('trainer.seed=2',)
    assert asked[:5] == [('kernels', seed), ('parity', seed), ('throughput', seed),
                         ('fetch_reach', seed),
                         ('fetch_reach', (*seed, 'trainer.cuda_graphs=false'))]
    result = json.loads(path.read_text())
    assert result['fetch_reach']['train_s'] == 9.0
    assert script.REFUSED_GRAPHS in result['fetch_reach']['recorded']['failed']
    assert result['hand_reach'] == {'train_s': 9.0} and len(asked) == 8


def test_a_missing_gpu_is_told_and_costs_no_earlier_figures(
        script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    path = tmp_path / 'gpu.json'
    path.write_text('precious')
    assert script.main(['--output', str(path)]) == 2
    assert path.read_text() == 'precious'
    line, = capsys.readouterr().err.splitlines()
    assert 'trainer.device must be cpu or warp_cpu where torch finds no NVIDIA GPU' in line


def test_a_section_that_hangs_or_breaks_down_is_told(script, tmp_path, monkeypatch):
    options = SimpleNamespace(device='warp_cpu', quick=True, output=tmp_path / 'gpu.json')
    script.save(options.output, off_policy_waits={'rounds': 1})
    assert not script.run_apart('off_policy_waits', 1.0, 0.01, options)
    failed = SimpleNamespace(returncode=-11)
    monkeypatch.setattr(script.subprocess, 'run', lambda *command, **more: failed)
    assert not script.run_apart('throughput', 1.0, 9.0, options)
    assert json.loads(options.output.read_text()) == {
        'off_policy_waits': {'rounds': 1, 'failed': 'its process was ended after 0 s'},
        'throughput': {'failed': 'its process ended with -11'}}


def test_the_others_take_as_many_steps_as_the_slowest(script, monkeypatch):
    configs = []

    def train(config, seconds, write, enough=None):
        configs.append(config)
        return {'env_steps': 123, 'cut_off': True}
    monkeypatch.setattr(script, 'train', train)
    monkeypatch.setattr(script, 'compile_kernels', lambda config: 0.5)
    script.Gpu('warp_cpu', False, time.monotonic() + 60.0, lambda figures: None).hand_reach()
    assert [(config.on_policy.estimator, config.trainer.env_steps) for config in configs] == [
        ('doubly_robust', 20_000_000), ('denoising', 123), ('critic', 123), ('reinforce', 123)]
    assert {config.trainer.eval_every_steps for config in configs} == {327_680}
