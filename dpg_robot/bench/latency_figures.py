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

"""The figures of the latency benchmark, from what the robot noted, and their table."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from dpg_robot.contract.strict import SpecError

# A command is in time if it is there when the next state is due, or so much later at most [s].
LATE_S = 1e-3
_KEYS = ('p50', 'p99', 'max')
# A command answers one of so many states before it, the one whose answer it is.
_NEWEST, _CLOSE = 8, 1e-4


def latencies(run: dict[str, np.ndarray], expected: np.ndarray,
              period_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the latency of each state that was answered [s], and which ones were not in time.

    A command has no number; that it answers a state only its content tells.

    :param run: what the robot noted: ``sent_s`` of N states, ``received_s`` and ``commands`` of M
        commands, and between which times it ``measured_s``.
    :param expected: the commands for the states, shape (number of different states, size); the
        robot is in them in turn.
    """
    sent_s, commands = run['sent_s'], run['commands']
    newest = np.searchsorted(sent_s, run['received_s']) - 1
    answered = np.full(len(sent_s), np.inf)
    open_commands = np.ones(len(commands), bool)
    for age in range(_NEWEST):
        number = np.maximum(newest - age, 0)
        is_answer = open_commands & (newest >= age) & (
            np.abs(commands - expected[number % len(expected)]).max(axis=1) < _CLOSE)
        # A state may be answered twice; the first answer counts.
        np.minimum.at(answered, number[is_answer], run['received_s'][is_answer])
        open_commands &= ~is_answer
    began_s, ended_s = run['measured_s']
    measured = (sent_s >= began_s) & (sent_s < ended_s)
    latency_s = (answered - sent_s)[measured]
    return latency_s[np.isfinite(latency_s)], latency_s > period_s + LATE_S


def figures(runs: Sequence[tuple[np.ndarray, np.ndarray]],
            diagnostics: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return the figures of policy_node at one rate.

    :param runs: :func:`latencies` of each round.
    :param diagnostics: the last ones of the node in each round.
    """

    def of_node(name):  # a node tells percentiles, of its own ticks alone
        values = {key: [float(entry[f'{name}.{key}']) for entry in diagnostics] for key in _KEYS}
        return {'p50': float(np.mean(values['p50'])), 'p99': float(np.mean(values['p99'])),
                'max': max(values['max'])}
    return {'tick_us': of_node('tick_us'), 'state_to_command_us': pooled(runs),
            'state_to_published_us': of_node('state_to_command_us'),
            'missed_fraction': missed_fraction(runs),
            'states': sum(len(late) for _, late in runs),
            'deadline_misses': sum(int(entry['deadline_misses']) for entry in diagnostics),
            'safe_ticks': sum(int(entry['safe_ticks']) for entry in diagnostics)}


def missed_fraction(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the fraction of states whose command was not in time, over all rounds."""
    return float(np.mean(np.concatenate([late for _, late in runs])))


def pooled(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return percentiles of the latencies of all rounds, in microseconds.

    :raises SpecError: if there are none.
    """
    samples = np.concatenate([latency for latency, _ in runs])
    if not len(samples):
        raise SpecError('no command answered any state')
    return percentiles(samples * 1e6)


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Return p50, p99 and max."""
    return dict(zip(_KEYS, map(float, np.percentile(values, (50, 99, 100)))))


def table(result: dict[str, Any]) -> str:
    """Return all figures as text."""
    def cells(values):
        return ''.join(f'{values[key]:>8.0f}' for key in _KEYS)
    lines = [f'{"[us]":>5}  {"tick":^24}  {"state to command":^24}  {"rclpy echo":^24}  '
             f'{"in time":>8}', f'{"Hz":>5}  ' + '  '.join(3 * [''.join(
                 f'{key:>8}' for key in _KEYS)])]
    for rate, values in result['rates'].items():
        lines.append('  '.join((
            f'{rate:>5}', cells(values['tick_us']), cells(values['state_to_command_us']),
            cells(result['floor']['rclpy_echo_us'][rate]),
            f'{100 * (1 - values["missed_fraction"]):>7.2f}%')))
    floor = result['floor']
    lines.append(f'onnxruntime alone, in a loop:   {cells(floor["onnxruntime_us"])}')
    lines += [f'{f"once a period at {rate} Hz:":>32}{cells(values)}'
              for rate, values in floor['onnxruntime_paced_us'].items()]
    if 'memory' in result:
        memory = result['memory']
        lines.append(f'memory: {memory["last_mb"]:.1f} MB, {memory["growth_mb"]:+.2f} MB in the '
                     f'last two thirds of {memory["minutes"]:g} minutes')
    return '\n'.join(lines)
