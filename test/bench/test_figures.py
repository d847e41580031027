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

"""The figures against numbers made by hand."""

import json

import numpy as np
import pytest
import torch

from dpg_robot.bench.figures import compare, describe_truth, interval, student_t, summarise
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
