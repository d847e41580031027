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

"""What the tests of the learning core share: one thread, and a world with a closed form."""

from typing import NamedTuple

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class LinearGaussian(NamedTuple):
    """The world ``a ~ N(mu, tau^2)``, ``a~ = a + sigma eta``, ``o = a + nu w``, per element.

    Everything follows from conditioning Gaussians on independent evidence: precisions add, and
    means are averaged with the precisions as weights.
    """

    tau: float = 0.3
    sigma: float = 0.2
    nu: float = 0.25

    def denoise(self, noised, mu):
        """Return E[a | a~]."""
        return self._average((mu, self.tau), (noised, self.sigma))

    def denoise_given(self, noised, mu, outcome):
        """Return E[a | a~, o]."""
        return self._average((mu, self.tau), (noised, self.sigma), (outcome, self.nu))

    def _average(self, *evidence):
        total = sum(std ** -2 for _, std in evidence)
        return sum(value * std ** -2 for value, std in evidence) / total

    @property
    def shrink(self):
        """Return d E[a | a~] / d a~, the share of the signal that the denoising noise leaves."""
        return self.tau ** 2 / (self.tau ** 2 + self.sigma ** 2)

    @property
    def outcome_var(self):
        """Return Var[o | a~]."""
        return 1 / (self.tau ** -2 + self.sigma ** -2) + self.nu ** 2

    def score(self, noised, mu, outcome):
        """Return grad_a~ log p(o | a~), with o | a~ ~ N(E[a | a~], outcome_var)."""
        return self.shrink * (outcome - self.denoise(noised, mu)) / self.outcome_var

    @property
    def fisher(self):
        """Return E[score^2]."""
        return self.shrink ** 2 / self.outcome_var

    def draw_outcome(self, noised, mu, num):
        """Draw outcomes that follow one noised action, shape (num, action_dim)."""
        noise = torch.randn(num, noised.shape[-1], dtype=noised.dtype)
        return self.denoise(noised, mu) + self.outcome_var ** 0.5 * noise


@pytest.fixture
def linear_gaussian():
    return LinearGaussian


def _assert_mean(samples, expected, errors=4.0):
    standard_error = samples.std(0) / samples.shape[0] ** 0.5
    distance = (samples.mean(0) - expected).abs()
    assert (distance <= errors * standard_error + 1e-12).all(), (
        f'mean {samples.mean(0)}, expected {expected}, standard error {standard_error}')


@pytest.fixture
def assert_mean():
    """Check that samples, shape (num, ...), have a mean, to four standard errors."""
    return _assert_mean
