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

"""What a training tells while it runs: progress, a row of figures, curves."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path
from typing import Any

from dpg_robot.learn.checkpoint import write_atomic

METRICS_FILE = 'metrics.jsonl'


@dataclass(frozen=True)
class Progress:
    """What a training reports while it runs; NaN where nothing is known, or there is none.

    :param episode_return: mean over the newest training episodes, noise and exploration included;
        likewise ``success``.
    :param eval_success: of the deterministic policy, at the newest evaluation; likewise
        ``eval_return``.
    """

    env_steps: int
    total_steps: int
    updates: int
    episode_return: float
    success: float
    eval_return: float
    eval_success: float
    steps_per_second: float
    remaining_s: float


class RunLog:
    """The figures of a run, as rows of a file and as curves in TensorBoard."""

    def __init__(self, run_dir: Path, writer):
        """Log into a folder; ``writer`` is TensorBoard's."""
        self._path, self._writer = run_dir / METRICS_FILE, writer

    def write(self, progress: Progress, figures: dict[str, Any]) -> None:
        """Add a row, which is a point of every curve."""
        row = {**asdict(progress), **{name: float(value) for name, value in figures.items()}}
        with open(self._path, 'a') as file:
            plain = {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON has no NaN
            file.write(json.dumps(plain) + '\n')
        for name, value in row.items():
            tag = name if '/' in name else f'training/{name}'
            self._writer.add_scalar(tag, value, progress.env_steps)


@contextlib.contextmanager
def open_log(run_dir: Path, env_steps: int) -> Iterator[RunLog]:
    """Log what follows this step; what a killed run logged after it is forgotten."""
    # Imported here: TensorBoard takes a second that evaluation and export need not pay.
    from torch.utils.tensorboard import SummaryWriter
    _trim(run_dir / METRICS_FILE, env_steps)
    with SummaryWriter(run_dir / 'tensorboard', purge_step=env_steps + 1) as writer:
        yield RunLog(run_dir, writer)


def _trim(path, env_steps):
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)['env_steps'] <= env_steps:
                rows.append(line + '\n')
        except json.JSONDecodeError:  # a row cut short by the kill
            continue
    write_atomic(path, lambda file: file.write(''.join(rows).encode()))
