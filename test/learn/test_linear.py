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

"""Small linear systems: elimination and the library agree."""

import pytest
import torch

from dpg_robot.learn.linear import eliminate, solve_right


def test_elimination_worked_out_by_hand():
    # 4 x + 2 y = 10, 2 x + 3 y = 9: x = 1.5, y = 2.
    solution = eliminate(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), torch.tensor([[10.0], [9.0]]))
    assert solution[:, 0].tolist() == pytest.approx([1.5, 2.0])


@pytest.mark.parametrize('size', [1, 2, 3, 24])
def test_elimination_solves_many_systems_at_once(size):
    factor = torch.randn(9, size, size, dtype=torch.float64)
    matrix = factor @ factor.mT + 0.01 * torch.eye(size, dtype=torch.float64)
    right = torch.randn(9, size, 2, dtype=torch.float64)
    torch.testing.assert_close(eliminate(matrix, right), torch.linalg.solve(matrix, right),
                               rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('nearly_alike', [0.0, 0.999])
def test_rows_are_solved_the_same_without_the_library(nearly_alike):
    standard = torch.randn(500, 20)
    standard[:, 1] = nearly_alike * standard[:, 0] + (1 - nearly_alike) * standard[:, 1]
    correlation = (standard.T @ standard / 500).lerp(torch.eye(20), 0.01)
    solved = solve_right(correlation, standard)
    torch.testing.assert_close(solved @ correlation, standard, rtol=1e-4, atol=1e-4)
    without = solve_right(correlation, standard, library=False)
    torch.testing.assert_close(without, solved, rtol=1e-3, atol=1e-3)
    # Nothing on the way is rounded to float32, let alone to a GPU's TF32.
    exact = torch.linalg.solve(correlation.double(), standard.double(), left=False)
    torch.testing.assert_close(without, exact.float(), rtol=2e-7, atol=1e-9)
