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

"""The results of a throughput benchmark as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')  # noqa: E402  no screen is needed
from matplotlib import pyplot as plt

GIB = 2**30


def table(result: dict[str, Any]) -> str:
    """Return all rows as text."""
    lines = [f'{"task":14}{"worlds":>8}{"workers":>9}{"steps/s":>12}{"learning":>12}'
             f'{"of warp":>9}{"memory":>11}']
    for row in result['rows']:
        head = f'{row["task"]:14}{row["num_worlds"]:>8}{row["workers"]:>9}'
        if 'with_training' not in row:
            physics = f'{row["steps_per_second"]:>12,.0f}' if 'steps_per_second' in row else ''
            lines.append(f'{head}{physics}  {row.get("refused") or row.get("failed", "")}')
            continue
        share = f'{row["times_warp"]:.2f}' if 'times_warp' in row else ''
        lines.append(f'{head}{row["steps_per_second"]:>12,.0f}{row["with_training"]:>12,.0f}'
                     f'{share:>9}{row["memory"] / GIB:>7.2f} GiB')
    return '\n'.join([*lines, 'steps/s: of all worlds together, simulating alone; learning: with '
                      "updates; of warp: of mujoco_warp's own loop, physics alone"])


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw steps per second over the number of worlds, or of workers where that is the choice."""
    rows = result['rows']
    key = 'workers' if result['device'] == 'cpu' else 'num_worlds'
    figure, axis = plt.subplots(figsize=(6.4, 4), layout='constrained')
    for i, task in enumerate(dict.fromkeys(row['task'] for row in rows)):
        for figure_name, style in (('steps_per_second', '-'), ('with_training', '--'),
                                   ('warp_steps_per_second', ':')):
            points = sorted((row[key], row[figure_name]) for row in rows
                            if row['task'] == task and figure_name in row)
            if points:
                axis.plot(*zip(*points), style, color=f'C{i}', marker='o', markersize=3,
                          label=task if style == '-' else None)
    for style, label in (('-', 'simulating'), ('--', 'learning'),
                         (':', "mujoco_warp's own loop")):
        axis.plot([], [], style, color='0.3', label=label)
    if key == 'num_worlds':
        axis.set_xscale('log', base=2)
    axis.set_yscale('log')
    axis.set(xlabel='processes' if key == 'workers' else 'worlds',
             ylabel='steps per second, all worlds')
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)
