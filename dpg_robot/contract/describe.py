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

"""A PolicySpec in words: the same Markdown on the terminal and on a model's card."""

from __future__ import annotations

from itertools import zip_longest
import math

from dpg_robot.contract.spec import PolicySpec

NOTHING = str(0), str(0.0), str(None), str({}), str([]), str(())
_FIRST = 'A policy for the robot '


def is_description(text: str) -> bool:
    """Return whether a text is one of :func:`describe`."""
    return _FIRST in text[:1000]


def describe(spec: PolicySpec, content_hash: str) -> str:
    """Return the contract as a roboticist reads it, in Markdown."""
    record = spec.training
    lines = [
        f'# {spec.task}', '',
        f'{_FIRST}`{spec.robot}`, run at {spec.control_rate_hz:g} Hz: '
        f'{spec.obs_dim} numbers in, {spec.action_dim} out.', '',
        '## It reads', '',
        *_table(('term', 'topic', 'type', 'fields', 'unit', 'max age [s]', 'valid range'),
                [(t.name, t.topic, t.type, _join(t.fields), t.unit, f'{t.max_age_s:g}',
                  _range(t.lower, t.upper)) for t in spec.observation]), '',
        '## It commands', '',
        *_table(('term', 'topic', 'type', 'fields', 'unit', 'limits', 'rate limit [unit/s]',
                 'acceleration limit [unit/s^2]', 'safe command'),
                [(t.name, t.topic, t.type, _join(t.joints or t.fields), t.unit,
                  _range(t.lower, t.upper), _values(t.rate_limit, 'none'),
                  _values(t.acceleration_limit or (None,), 'none'),
                  _values(t.safe, 'hold')) for t in spec.action]), '',
        '## It was trained', '',
        *_table(('what', 'value'), [
            ('estimator', record.estimator), ('environment steps', f'{record.env_steps:,}'),
            ('seed', str(record.seed)),
            *(row for row in _flatten('world', record.world) if row[1] not in NOTHING),
            *_evaluation(record.evaluation),
            ('versions', ', '.join(f'{k} {v}' for k, v in sorted(record.versions.items()))),
            ('content hash', content_hash)])]
    return '\n'.join(lines) + '\n'


def _evaluation(evaluation):
    if not evaluation:
        return [('evaluation', 'none')]
    e, rows = evaluation, []
    if e['success'] is not None:
        rows = [('success', f'{e["success"]:.3f} over {e["episodes"]} episodes, 95 % interval '
                            f'{e["success_low"]:.3f} to {e["success_high"]:.3f}')]
    over = '' if rows else f' over {e["episodes"]} episodes'
    return [*rows, ('return', f'{e["return_mean"]:.3f}{over}, standard deviation '
                              f'{e["return_std"]:.3f}')]


def _flatten(name, value):
    if isinstance(value, dict) and value:
        return [row for key, item in sorted(value.items())
                for row in _flatten(f'{name}.{key}', item)]
    return [(name, str(value))]


def _join(fields):
    """Shorten a.b.x, a.b.y, a.b.z to a.b.{x, y, z}."""
    heads = {field.rpartition('.')[0] for field in fields}
    if len(fields) > 1 and len(heads) == 1 and '' not in heads:
        return f'{heads.pop()}.{{{", ".join(f.rpartition(".")[2] for f in fields)}}}'
    return ', '.join(fields)


def _range(lower, upper):
    return _unique(f'{low:g} to {high:g}' for low, high in zip_longest(
        lower, upper, fillvalue=math.inf if lower else -math.inf)) or 'any'


def _values(values, nothing):
    return _unique(nothing if v is None else f'{v:g}' for v in values)


def _unique(texts):
    texts = list(texts)
    return texts[0] if texts and len(set(texts)) == 1 else ', '.join(texts)


def _table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    yield '| ' + ' | '.join(cell.ljust(w) for cell, w in zip(head, widths)) + ' |'
    yield '|' + '|'.join('-' * (w + 2) for w in widths) + '|'
    for row in rows:
        yield '| ' + ' | '.join(cell.ljust(w) for cell, w in zip(row, widths)) + ' |'
