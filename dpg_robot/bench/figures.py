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

"""How good an estimate of a gradient is, and how sure we are of that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dpg_robot.bench.truth import Truth

# 97.5 % points of Student's t for 1 to 9 degrees of freedom.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.959964


def compare(answers: torch.Tensor, truth: torch.Tensor, num_live: int) -> dict[str, Any]:
    """Compare two independent estimates of a gradient with the true one.

    ``cosine`` is the mean over states, ``norm_ratio`` that of mean norms, and ``slope`` that of
    the regression of the estimate on the truth through the origin. ``variance`` and ``bias2``
    are mean squares over states, in units of the truth's mean square; both are unbiased since
    the two estimates are independent, so that ``bias2`` may come out slightly negative.

    :param answers: shape (2, n, action_dim); ``truth`` is (n, action_dim).
    :param num_live: so many actuators, the first ones, move something; if not all do,
        ``cosine_live`` is the cosine over these.
    :return: a list of two numbers for each figure, and one number for the last two.
    """
    answers, truth = answers.double(), truth.double()
    power = truth.square().sum()
    result = {
        'cosine': _cosine(answers, truth),
        'norm_ratio': (answers.norm(dim=-1).mean(1) / truth.norm(dim=-1).mean()).tolist(),
        'slope': ((answers * truth).sum((1, 2)) / power).tolist(),
        'bias2': float(torch.prod(answers - truth, 0).sum() / power),
        'variance': float((answers[0] - answers[1]).square().sum() / 2 / power)}
    if num_live < truth.shape[1]:
        result['cosine_live'] = _cosine(answers[..., :num_live], truth[:, :num_live])
    return result


def _cosine(answers, truth):
    return F.cosine_similarity(answers, truth.expand_as(answers), dim=-1).mean(1).tolist()


def add_gains(figures: dict[str, dict[str, Any]], over: str = 'critic') -> None:
    """Add ``cosine_gain``, how much better a cosine is than that of another, replica by replica.

    Seeds differ by more than estimators do; their differences within a seed tell more.

    :param figures: of each estimator, from :func:`compare`; none gains if ``over`` is missing.
    """
    for name in figures.keys() - {over} if over in figures else ():
        figures[name]['cosine_gain'] = [
            own - other for own, other in zip(figures[name]['cosine'], figures[over]['cosine'])]


def describe_truth(truth: Truth) -> dict[str, float]:
    """Return the mean norms of a true gradient and of its error, and the cosine of two halves."""
    gradient, error = truth.gradient, truth.error
    halves = F.cosine_similarity(gradient + error, gradient - error, dim=-1)
    return {'norm': float(gradient.norm(dim=-1).mean()), 'error': float(error.norm(dim=-1).mean()),
            'split_half_cosine': float(halves.mean())}


def summarise(seeds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean, 95 % interval over seeds, and all values of every figure.

    :param seeds: the figures of each seed, from :func:`compare` or :func:`describe_truth`.
    :return: for each figure ``mean``, ``interval`` (null for one seed) and ``all``, one entry for
        each seed.
    """
    summary = {}
    for name in seeds[0]:
        values = [figures[name] for figures in seeds]
        # Replicas of one seed share a policy and a target, so only seeds are independent.
        means = np.array([np.mean(value) for value in values])
        summary[name] = {'mean': float(means.mean()), 'interval': interval(means), 'all': values}
    return summary


def interval(values: np.ndarray) -> list[float] | None:
    """Return Student's 95 % interval of the mean; None where one value tells no spread."""
    count = len(values)
    if count < 2:
        return None
    half = student_t(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return [mean - half, mean + half]


def student_t(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, to 0.003.

    Beyond the table by its expansion around the normal distribution (Abramowitz and Stegun,
    26.7.5).
    """
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) \
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
