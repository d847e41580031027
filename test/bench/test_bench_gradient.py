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

"""The whole benchmark, small, with a throw-away fit."""

import json
import shutil
import sys
from types import SimpleNamespace

from analytic import linear_fit, refuse_to_fit
import pytest
import torch

from dpg_robot.bench import gradient
from dpg_robot.bench.gradient import (
    bench_gradient,
    GradientBench,
    load_measured,
    sweep_gradient,
)
from dpg_robot.bench.report import draw, table
from dpg_robot.cli import main
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import load_config

SMALL = ['learner.hidden=[16]', 'learner.batch_size=16', 'trainer.warmup_steps=100']
FIGURES = {'cosine', 'norm_ratio', 'slope', 'bias2', 'variance'}


def bench(run_dir, *names, **changes):
    numbers = {'transitions': 200, 'seeds': 2, 'states': 5, 'pairs': 40, **changes}
    return GradientBench(names or ('linear', 'same'), run_dir=run_dir, **numbers)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Return a finished benchmark of half_cheetah and its folder."""
    folder = tmp_path_factory.mktemp('bench')
    config = load_config('half_cheetah', SMALL)
    return config, folder, bench_gradient(config, bench(folder), linear_fit)


def test_the_result_says_what_was_measured_and_how_well(done):
    result = json.loads(json.dumps(done[2], allow_nan=False))
    assert result['task'] == 'half_cheetah'
    assert result['noise']['actuator'] == 0.2
    assert (result['transitions'], result['seeds'], result['states']) == (200, 2, 5)
    assert 'torch' in result['versions'] and 'cores' in result['machine']
    assert len(result['truth']['error']['all']) == 2
    assert set(result['by_transitions']) == {'50', '100', '200'}
    assert result['estimators'] == result['by_transitions']['200']
    for step in result['by_transitions'].values():
        assert set(step) == {'linear', 'same'}
        assert step['linear'] == step['same']
        assert set(step['linear']) == FIGURES
        low, high = step['linear']['cosine']['interval']
        assert low < step['linear']['cosine']['mean'] < high
    assert result['by_transitions']['50'] != result['estimators']


def test_a_stopped_benchmark_goes_on(done, tmp_path):
    """What is there is not fitted again; what is missing is, and gives the same."""
    config, folder, result = done
    assert bench_gradient(config, bench(folder), refuse_to_fit) == result
    shutil.copytree(folder, tmp_path / 'again')
    lost = next((tmp_path / 'again').glob('*/fits-*/linear-B-100.pt'))
    lost.unlink()
    fitted = []

    def fit(config, names, data, *others):
        fitted.append((names, len(data.reward)))
        return linear_fit(config, names, data, *others)

    assert bench_gradient(config, bench(tmp_path / 'again'), fit) == result
    assert fitted == [(('linear',), 100)]


def test_what_other_code_or_libraries_measured_is_not_taken(done, tmp_path, monkeypatch):
    config, folder, result = done
    shutil.copytree(folder, tmp_path / 'again')
    for change in ({'versions': lambda: {'mujoco': '99'}},
                   {'source': lambda *places: [str(place.name) for place in places]}):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(gradient, name, value)
            with pytest.raises(AssertionError, match='a second fit'):
                bench_gradient(config, bench(tmp_path / 'again'), refuse_to_fit)
    # A first seed was measured anew both times.
    assert len(list(tmp_path.glob('again/*/truth-*.pt'))) == result['seeds'] + 2


def test_another_estimator_is_fitted_on_the_same_transitions(done, tmp_path):
    config, folder, result = done
    shutil.copytree(folder, tmp_path / 'again')
    collections = set(tmp_path.glob('again/*/collection.pt'))
    more = bench_gradient(config, bench(tmp_path / 'again', 'linear', 'third'), linear_fit)
    assert more['estimators']['third'] == result['estimators']['linear']
    # Nor does a setting of the estimators collect anew, but it fits anew.
    config = load_config('half_cheetah', [*SMALL, 'learner.sigma=0.3'])
    with pytest.raises(AssertionError, match='a second fit'):
        bench_gradient(config, bench(tmp_path / 'again'), refuse_to_fit)
    assert set(tmp_path.glob('again/*/collection.pt')) == collections


def test_a_wrong_gradient_is_refused(done, tmp_path):
    def fit(config, names, *others):
        return {name: lambda obs, action: torch.full_like(action, torch.nan) for name in names}

    with pytest.raises(ValueError, match='gradient of broken must be .* 0 of them finite'):
        bench_gradient(done[0], bench(done[1], 'broken'), fit)


def test_seeds_may_be_measured_in_processes_of_their_own(done):
    config, folder, result = done
    one = bench_gradient(config, bench(folder, 'linear', seeds=1, jobs=2), linear_fit)
    assert one['estimators']['linear']['bias2']['all'] == \
        result['estimators']['linear']['bias2']['all'][:1]


def test_a_sweep_of_dead_actuators(tmp_path):
    settings = bench(tmp_path, 'linear', seeds=1)
    result = sweep_gradient('reacher', SMALL, 'dead_actuators', ['0', '3'], settings, linear_fit)
    assert [row['dead_actuators'] for row in result['rows']] == [0, 3]
    none, three = (set(row['estimators']['linear']) for row in result['rows'])
    assert none == FIGURES and three == FIGURES | {'cosine_live'}
    assert result['rows'][0]['estimators']['linear']['cosine']['interval'] is None
    assert 'dead_actuators' not in result and result['noise']['actuator'] == 0.2
    draw(result, tmp_path / 'sweep.png')
    assert (tmp_path / 'sweep.png').stat().st_size > 10_000
    assert 'cosine live' in table(result)


@pytest.mark.parametrize('key, values, message', [
    ('wind', ['1'], 'a sweep must be noise or dead_actuators and its values, got wind 1'),
    ('noise', [], 'a sweep must be noise or dead_actuators and its values, got noise'),
    ('noise', ['-1'], 'world.noise.actuator must be at least 0, got -1'),
    ('dead_actuators', ['x'], "world.dead_actuators must be .* got 'x'")])
def test_a_wrong_sweep_is_refused(tmp_path, key, values, message):
    with pytest.raises(SpecError, match=message):
        sweep_gradient('reacher', [], key, values, bench(tmp_path), linear_fit)


@pytest.mark.parametrize('override', [
    'learner.num_critics=4', 'learner.gradient_weight_decay=0.1', 'learner.drift=0.1',
    'estimator=critic', 'on_policy.sigma=0.3'])
def test_an_override_that_changes_nothing_is_refused(tmp_path, override):
    with pytest.raises(SpecError, match=f'among what is measured, .*, sigma, .*got {override}'):
        load_measured('reacher', [override])
    with pytest.raises(SpecError, match='among what is measured'):
        sweep_gradient('reacher', [override], 'noise', ['0.1'], bench(tmp_path), linear_fit)


@pytest.mark.parametrize('override', [
    'trainer.seed=3', 'trainer.env_steps=100', 'trainer.replay_capacity=50', 'trainer.workers=2',
    'trainer.algorithm=on_policy'])
def test_an_override_of_a_trainer_that_does_not_collect_so_is_refused(override):
    with pytest.raises(SpecError, match='of the trainer must be among what collects, num_worlds, '
                                        f'.*got {override}'):
        load_measured('reacher', [override])


@pytest.mark.parametrize('override', [
    'learner.sigma=0.31', 'learner.target_rate=0.01', 'world.noise.actuator=0.3',
    'trainer.warmup_steps=600'])
def test_an_override_of_what_is_measured_counts(override):
    assert load_measured('reacher', [override]) != load_measured('reacher')


def test_the_estimator_of_the_file_refuses_no_outcome(tmp_path):
    config = load_measured('reacher', ['learner.outcome=reward', *SMALL])
    result = bench_gradient(config, bench(tmp_path, 'denoising', seeds=1), linear_fit)
    assert result['learner']['outcome'] == 'reward' and 'estimator' not in result['learner']
    with pytest.raises(SpecError, match='for the estimator doubly_robust, .*got reward'):
        bench_gradient(config, bench(tmp_path, 'denoising', 'doubly_robust'), linear_fit)


def test_the_command_writes_table_json_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'dpg_robot.learn.fit',
                        SimpleNamespace(fit_gradient=linear_fit, check_fit=lambda *what: None))
    monkeypatch.chdir(tmp_path)
    changes = [word for change in SMALL for word in ('--set', change)]
    main(['bench', 'gradient', 'reacher', '--seeds', '1', '--transitions', '200', '--states', '3',
          '--pairs', '20', '--estimators', 'linear', '--sweep', 'noise', '0', '0.2', *changes])
    path = tmp_path / 'benchmarks' / 'results' / 'gradient_reacher_noise.json'
    result = json.loads(path.read_text())
    assert result['command'].startswith('dpg-robot bench gradient reacher --seeds 1')
    assert [row['noise'] for row in result['rows']] == [0, 0.2]
    assert path.with_suffix('.png').stat().st_size > 10_000
    out = capsys.readouterr().out
    mean = result['rows'][1]['estimators']['linear']['cosine']['mean']
    assert f'{mean:.3f}' in out and 'wrote' in out
    assert (tmp_path / 'runs' / 'bench').is_dir()
