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

"""Small linear systems, also where nothing may wait for a device, and in CUDA graphs."""

from __future__ import annotations

import torch


def solve_right(matrix: torch.Tensor, rows: torch.Tensor,
                library: bool | None = None) -> torch.Tensor:
    """Return x with x matrix = rows, shape (B, n).

    :param matrix: positive definite, shape (n, n); ``rows`` has the shape (B, n).
    :param library: whether LAPACK solves it; if not, elimination. None: on a CPU.
    """
    if rows.device.type == 'cpu' if library is None else library:
        # Not solve: it would wait to learn whether the matrix was singular.
        return torch.linalg.solve_ex(matrix, rows, left=False).result
    one = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    # In float64, since a GPU may multiply float32 in TF32.
    return (rows.double() @ eliminate(matrix.double(), one)).to(rows.dtype)


def eliminate(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve positive definite systems by Gauss-Jordan elimination, which needs no pivoting there.

    A library's solver would look at its pivots, or need work space on the host. Systems are small.

    :param matrix: shape (..., n, n).
    :param right: right-hand sides, shape (..., n, m).
    :return: shape (..., n, m).
    """
    size = matrix.shape[-1]
    both = torch.cat([matrix, right], -1)
    for i in range(size):
        pivot = both[..., i:i + 1, :] / both[..., i:i + 1, i:i + 1]
        reduced = both - both[..., :, i:i + 1] * pivot
        both = torch.cat([reduced[..., :i, :], pivot, reduced[..., i + 1:, :]], -2)
    return both[..., size:]
