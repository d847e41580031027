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

"""The results of a gradient benchmark as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')  # noqa: E402  no screen is needed
from matplotlib import pyplot as plt
import numpy as np

COLUMNS = ('cosine', 'cosine_gain', 'cosine_live', 'norm_ratio', 'slope', 'bias2', 'variance')
LABELS = {'noise': 'actuator noise, fraction of full scale', 'dead_actuators': 'dead actuators',
          'transitions': 'transitions', 'cosine': 'cosine to the true gradient',
          'cosine_live': 'cosine, live actuators', 'norm_ratio': 'norm, fraction of the true one'}


def series(result: dict[str, Any]) -> tuple[str, list[float], list[dict[str, Any]]]:
    """Return what a result runs over, its values, and the estimators' figures at each."""
    if 'sweep' in result:
        rows = result['rows']
        return result['sweep'], [row[result['sweep']] for row in rows], \
            [row['estimators'] for row in rows]
    return 'transitions', [int(count) for count in result['by_transitions']], \
        list(result['by_transitions'].values())


def table(result: dict[str, Any]) -> str:
    """Return all figures as text, a row for each estimator at each value."""
    key, values, steps = series(result)
    columns = [name for name in COLUMNS
               if any(name in figures for step in steps for figures in step.values())]
    lines = [_row(key, 'estimator', [column.replace('_', ' ') for column in columns])]
    for value, step in zip(values, steps):
        for name, figures in step.items():
            cells = [_cell(figures[column]) if column in figures else '' for column in columns]
            lines.append(_row(f'{value:g}', name, cells))
    truths = [row['truth'] for row in result.get('rows', ())] or [result['truth']]
    norms = ', '.join(f'{truth["norm"]["mean"]:.3g} (error {truth["error"]["mean"]:.2g})'
                      for truth in truths)
    return '\n'.join([*lines, f'norm of the true gradient: {norms}; {result["seeds"]} seeds, '
                              'in brackets the 95 % interval of the mean'])


def _row(value, name, cells):
    return f'{value:>14}  {name:18}' + ''.join(f'{cell:>24}' for cell in cells)


def _cell(figure):
    text = f'{figure["mean"]:.3f}'
    if figure['interval']:
        text += ' ({:.2f}, {:.2f})'.format(*figure['interval'])
    return text


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw cosine and norm ratio of each estimator, with intervals over seeds where known."""
    key, values, steps = series(result)
    panels = [name for name in ('cosine', 'cosine_live', 'norm_ratio')
              if any(name in figures for step in steps for figures in step.values())]
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + 3.6 * len(panels), 3.4),
                                layout='constrained', squeeze=False)
    for axis, what in zip(axes[0], panels):
        for name in steps[0]:
            points = [(value, step[name][what]) for value, step in zip(values, steps)
                      if what in step[name]]
            _line(axis, name if what == 'cosine' else None, points)
        if what == 'norm_ratio':
            axis.axhline(1.0, color='0.6', linewidth=1)
        if min(values) > 0:
            axis.set_xscale('log')
        else:
            axis.set_xscale('symlog', linthresh=min((v for v in values if v > 0), default=1))
        axis.set_xticks(values, [f'{value:g}' for value in values], minor=False)
        axis.minorticks_off()
        axis.set(xlabel=LABELS[key], ylabel=LABELS[what])
        axis.grid(alpha=0.3)
    fixed = '' if key == 'noise' else f', actuator noise {result["noise"]["actuator"]:g}'
    if key != 'transitions':
        fixed += f', {result["transitions"]} transitions'
    figure.suptitle(f'{result["task"]}{fixed}, {result["seeds"]} seeds', fontsize='medium')
    figure.legend(loc='outside right upper', fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis, label, points):
    values = np.array([value for value, _ in points], dtype=float)
    means = np.array([figure['mean'] for _, figure in points])
    line, = axis.plot(values, means, marker='o', markersize=3, label=label)
    if all(figure['interval'] for _, figure in points):
        low, high = np.array([figure['interval'] for _, figure in points]).T
        axis.fill_between(values, low, high, alpha=0.15, color=line.get_color())
