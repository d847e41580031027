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

"""The figures against numbers made by hand, and those that tell how well learners learn."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from small_training import TINY, tiny_config
import torch

from dpg_robot.bench.figures import (
    add_gains,
    compare,
    describe_truth,
    interval,
    student_t,
    summarise,
)
from dpg_robot.bench.truth import Truth

TRUTH = torch.tensor([[3.0, 4.0], [0.0, 5.0]])


def test_figures_by_hand():
    answers = torch.tensor([[[6.0, 8.0], [5.0, 0.0]], [[3.0, 4.0], [0.0, 5.0]]])
    figures = compare(answers, TRUTH, 2)
    assert figures['cosine'] == pytest.approx([0.5, 1.0])  # 1 and 0, then 1 and 1
    assert figures['norm_ratio'] == pytest.approx([1.5, 1.0])  # 10 and 5 of 5 and 5
    assert figures['slope'] == pytest.approx([1.0, 1.0])  # (50 + 0) / 50
    assert figures['bias2'] == pytest.approx(0.0)  # the second one is the truth
    assert figures['variance'] == pytest.approx((25 + 50) / 2 / 50)
    assert 'cosine_live' not in figures


def test_the_cosine_over_live_actuators():
    answers = torch.tensor([[[1.0, 1.0], [2.0, -2.0]]] * 2)
    figures = compare(answers, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1)
    assert figures['cosine'] == pytest.approx([0.5**0.5] * 2)
    assert figures['cosine_live'] == pytest.approx([1.0, 1.0])


def test_a_zero_answer_has_no_direction():
    figures = compare(torch.zeros(2, 2, 2), TRUTH, 2)
    assert figures['cosine'] == [0.0, 0.0]
    assert figures['bias2'] == pytest.approx(1.0)


def test_gains_are_of_the_same_replica():
    figures = {'critic': {'cosine': [0.5, 0.9]}, 'denoising': {'cosine': [0.6, 0.8]}}
    add_gains(figures)
    assert figures['denoising']['cosine_gain'] == pytest.approx([0.1, -0.1])
    assert figures['critic'] == {'cosine': [0.5, 0.9]}
    alone = {'denoising': {'cosine': [0.6, 0.8]}}
    add_gains(alone)
    assert alone == {'denoising': {'cosine': [0.6, 0.8]}}


def test_bias_and_variance_are_told_apart():
    """An estimate of 0.7 t plus noise of 0.5 per element, at states without number."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(40_000, 3, generator=generator)
    noise = torch.randn(2, 40_000, 3, generator=generator)
    figures = compare(0.7 * truth + 0.5 * noise, truth, 3)
    assert figures['bias2'] == pytest.approx(0.09, abs=0.01)
    assert figures['variance'] == pytest.approx(0.25, abs=0.01)
    assert figures['slope'] == pytest.approx([0.7, 0.7], abs=0.01)


def test_the_truth_tells_its_error():
    error = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    told = describe_truth(Truth(TRUTH, TRUTH, TRUTH, error))
    assert told['norm'] == pytest.approx(5.0)
    assert told['error'] == pytest.approx(0.5)
    assert told['split_half_cosine'] == pytest.approx(1.0)


def test_intervals():
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval(np.array([1.0])) is None


@pytest.mark.parametrize('freedom, value', [
    (1, 12.706), (9, 2.262), (10, 2.228), (20, 2.086), (60, 2.000), (10_000, 1.960)])
def test_student(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=0.003)


def test_a_seed_counts_once_however_many_replicas_it_has():
    seeds = [{'cosine': [0.4, 0.6], 'bias2': 0.1}, {'cosine': [0.7, 0.7], 'bias2': 0.3}]
    summary = summarise(seeds)
    assert summary['cosine']['mean'] == pytest.approx(0.6)
    assert summary['cosine']['all'] == [[0.4, 0.6], [0.7, 0.7]]
    half = 12.706 * np.std([0.5, 0.7], ddof=1) / 2**0.5
    assert summary['cosine']['interval'] == pytest.approx([0.6 - half, 0.6 + half])
    assert summary['bias2']['mean'] == pytest.approx(0.2)
    assert summarise(seeds[:1])['cosine']['interval'] is None
    json.dumps(summary, allow_nan=False)


@pytest.fixture(scope='module')
def learning(load_benchmark):
    """Return benchmarks/learning.py."""
    return load_benchmark('learning')


def a_run(success, total, **others):
    final = {'success': success, 'return_mean': total, 'episodes': 100}
    return {'seed': 0, 'final': final, 'seconds_per_env_step': 0.1, **others}


def test_learners_have_intervals_over_seeds(learning):
    summary = learning.summarise([a_run(0.9, 1.0), a_run(1.0, 2.0), a_run(0.8, 3.0)])
    half = 4.303 / 3**0.5
    assert summary['return']['mean'] == pytest.approx(2.0)
    assert summary['return']['interval'] == pytest.approx([2 - half, 2 + half])
    assert summary['success']['mean'] == pytest.approx(0.9)
    assert summary['success']['interval'] == pytest.approx([0.9 - 0.1 * half, 1.0])  # cut off
    assert summary['success']['min'] == 0.8 and summary['success']['episodes'] == 300
    alone = learning.summarise([a_run(0.9, 1.0)])
    assert alone['return']['interval'] is alone['success']['interval'] is None
    assert learning.summarise([a_run(None, 1.0)])['success'] is None
    json.dumps([summary, alone], allow_nan=False)


@pytest.mark.parametrize('updates_per_step, steps, updates', [
    (0.5, 2, 1), (1, 1, 1), (2, 1, 2), (0.75, 4, 3), (0.333, 3, 1), (1 / 128, 128, 1)])
def test_a_peer_makes_as_many_updates(learning, updates_per_step, steps, updates):
    assert learning.update_rhythm(updates_per_step) == \
        {'train_freq': steps, 'gradient_steps': updates}


def test_figures_of_a_peer_rest_on_its_version(learning, monkeypatch):
    monkeypatch.setattr(learning, 'versions', lambda: {'numpy': '1'})
    monkeypatch.setattr(learning, 'metadata', SimpleNamespace(version=lambda name: f'{name} 7'))
    assert learning.versions_with(['critic']) == {'numpy': '1'}
    assert learning.versions_with(['critic', 'sb3_sac_her']) == {
        'numpy': '1', 'stable-baselines3': 'stable-baselines3 7'}


def test_every_evaluation_is_a_point_whatever_the_number_of_worlds(learning, tmp_path):
    config = tiny_config('trainer.num_worlds=8', 'trainer.eval_every_steps=50',
                         'trainer.eval_episodes=1', 'trainer.log_every_steps=70')
    run = learning.run_ours(config, 'doubly_robust', 0, 180, 1)
    steps, successes, returns = zip(*run['curve'])
    assert steps == (56, 104, 152)  # rounds of 8 that pass 50, 100 and 150; none at the end
    assert None not in successes and len(set(returns)) == 3
    # Beside a peer that is evaluated on the very steps.
    peer = a_run(1.0, 2.0, curve=[(50, 0.0, -1.0), (100, 1.0, -0.5)])
    result = {'task': 'fetch_reach', 'noise': {'actuator': 0.3}, 'seeds': 1, 'estimators': {
        'doubly_robust': learning.summarise([run]), 'sb3_sac': learning.summarise([peer])}}
    learning.plot(result, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 10_000


def call(learning, monkeypatch, *changes):
    arguments = [word for change in changes for word in ('--set', change)]
    monkeypatch.setattr(sys, 'argv', ['learning.py', 'fetch_reach', '--learners', 'denoising',
                                      '--steps', '200', '--seeds', '1', *arguments])
    learning.main()


def test_a_learner_is_one_of_the_algorithm_that_trains(learning, monkeypatch):
    def stop(run, folder, config, *others):
        raise InterruptedError(config.active.estimator, type(config.active).__name__)
    monkeypatch.setattr(learning, 'kept', stop)
    for algorithm, kind in (('on_policy', 'OnPolicyConfig'), ('off_policy', 'LearnerConfig')):
        with pytest.raises(InterruptedError) as seen:
            call(learning, monkeypatch, *TINY, 'trainer.eval_every_steps=100',
                 f'trainer.algorithm={algorithm}', 'on_policy.estimator=reinforce')
        assert seen.value.args == ('denoising', kind)


@pytest.mark.parametrize('every', [0, 201])
def test_no_curve_is_refused(learning, monkeypatch, capsys, every):
    with pytest.raises(SystemExit):
        call(learning, monkeypatch, f'trainer.eval_every_steps={every}')
    assert 'trainer.eval_every_steps must be 1 to --steps (200), else there is no curve; got ' \
        f'{every}' in capsys.readouterr().err
