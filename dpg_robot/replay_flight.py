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

"""A flight replayed: the recorded observations through a model, and its answers compared.

What a policy answers depends on its observation and its noise alone, and both are in the
recording; so the same model must answer the same, and another one shows what it would have done.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.contract.strict import SpecError

# Of an action's range. Other processors round float32 in another way; a wrong model is far off.
TOLERANCE = 1e-5


def add_replay(commands: argparse._SubParsersAction) -> None:
    """Add ``replay`` to the command line; what it needs is imported when it runs."""
    parser = commands.add_parser(
        'replay', help="run a flight recording's observations through a model, compare actions")
    parser.add_argument('recording', type=Path, help='a segment, or the folder of a recorder')
    parser.add_argument('--model', type=Path, help='default: the recorded one, where it was')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the result here')
    parser.set_defaults(run=_run)


def _run(options):
    from dpg_robot.cli import write_json
    result = replay(options.recording, options.model)
    print(report(result))
    write_json(options.json, result)
    if not result['is_same']:
        raise SystemExit(1)


def replay(path: str | os.PathLike, model: str | os.PathLike | None = None,
           tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Run the ticks of a recording again, those in which the policy was run.

    :param path: a segment, or a folder for all segments of its newest recording.
    :param model: file of the model to run; None for the recorded ones, each in its ticks.
    :param tolerance: a tick differs if any element does by more, as a part of its range.
    :return: counts, differences by element as parts of the action's range (None where just one
        of two actions is a number), and ``is_same``: False if a model gave other answers than
        the recorded ones of the very same model. Ticks of a recorded model that is gone, as
        where a training exports to one file again and again, are left out and counted.
    :raises SpecError: if the recording, or the model or all recorded ones, cannot be used.
    """
    from dpg_robot.runtime.flight_file import part_names
    from dpg_robot.runtime.flight_reader import read_flight
    flight = read_flight(path)
    has_run = flight.has['observation'] & flight.has['action']
    if not has_run.any():
        raise SpecError(f'{path}: the policy was not run in any of its '
                        f'{len(flight.times_ns)} ticks')
    numbers = flight.numbers['model'].astype(int)
    actions = np.full_like(flight.action, np.nan)
    models, gone, was_same = [], [], np.zeros(len(numbers), bool)
    for number in sorted(set(numbers[has_run])):
        ticks = np.flatnonzero(has_run & (numbers == number))
        try:
            policy, entry = _load(flight, number, model)
        except SpecError as error:
            if model is not None:
                raise
            gone.append({'why': str(error), 'ticks': len(ticks)})
            has_run[ticks] = False
            continue
        was_same[ticks] = entry['is_recorded']
        models.append({**entry, 'ticks': len(ticks)})
        for i in ticks:
            actions[i] = policy(flight.observation[i].astype(np.float32), flight.eps[i].astype(
                np.float32) if flight.has['eps'][i] else None)
    if not models:
        raise SpecError(gone[0]['why'])
    difference = _difference(flight, actions)[has_run]
    differs = difference.max(axis=1) > tolerance
    return {
        'recording': str(path), 'files': len(flight.files),
        'damaged_files': [file.name for file in flight.damaged], 'robot': flight.spec.robot,
        'duration_s': float(np.ptp(flight.times_ns)) * 1e-9, 'ticks': len(numbers),
        'ticks_missing': flight.num_missing, 'ticks_compared': int(has_run.sum()),
        'ticks_not_driven': int((flight.numbers['driven'] == 0).sum()),
        'ticks_sampled': int((has_run & flight.has['eps']).sum()), 'models': models,
        'models_gone': gone,
        'tolerance': tolerance, 'ticks_that_differ': int(differs.sum()),
        'max_difference': _number(difference.max()),
        'mean_difference': _number(difference.mean()),
        'elements': {name: {'max': _number(column.max()), 'mean': _number(column.mean())}
                     for name, column in zip(part_names(flight.spec)['action'], difference.T)},
        'is_same': not bool((differs & was_same[has_run]).any())}


def _load(flight, number, model):
    """Return the policy for the ticks of a recorded model, and what to tell about it."""
    from dpg_robot.runtime.model_loader import check_same_contract
    from dpg_robot.runtime.onnx_policy import OnnxPolicy
    if number not in flight.models:
        raise SpecError(f'{flight.files[-1]} does not tell its model {number}: it was cut off; '
                        'name one with --model')
    recorded_hash, recorded_path = flight.models[number]
    if model is None and not recorded_path:
        raise SpecError(f'the recording does not tell the file of its model '
                        f'({recorded_hash[:12]}); name one with --model')
    if model is None and not Path(recorded_path).exists():
        raise SpecError(f'the recorded model {recorded_path} ({recorded_hash[:12]}) is not here; '
                        'name one with --model')
    policy = OnnxPolicy(model or recorded_path)
    is_recorded = policy.content_hash == recorded_hash
    if model is None and not is_recorded:
        raise SpecError(f'{recorded_path} is another model now: its content hash must be the '
                        f'recorded {recorded_hash[:12]}..., got {policy.content_hash[:12]}...; '
                        'name one with --model')
    try:
        check_same_contract(flight.spec, policy.spec, 'the recording')
    except SpecError as error:
        raise SpecError(f'model file {model} does not fit the recording: {error}') from error
    return policy, {'path': str(policy.path), 'content_hash': policy.content_hash,
                    'recorded_hash': recorded_hash, 'is_recorded': is_recorded}


def _difference(flight, actions):
    """Return differences as parts of the action's range; infinite if just one is not a number."""
    spans = np.array([high - low for term in flight.spec.action
                      for low, high in zip(term.lower, term.upper)])
    same = (actions == flight.action) | (np.isnan(actions) & np.isnan(flight.action))
    with np.errstate(invalid='ignore'):
        difference = np.where(same, 0.0, np.abs(actions - flight.action) / spans)
    return np.where(np.isnan(difference), np.inf, difference)


def _number(value):
    return float(value) if np.isfinite(value) else None  # JSON knows no infinity


def report(result: dict[str, Any]) -> str:
    """Return what :func:`replay` found, as text."""
    lines = [f'{result["recording"]}: {result["ticks"]} ticks of {result["robot"]} in '
             f'{result["duration_s"]:.1f} s; compared: {result["ticks_compared"]} of the policy'
             + (f' ({result["ticks_sampled"]} with its noise)' if result['ticks_sampled'] else '')
             + f', the safe command sent in {result["ticks_not_driven"]}']
    if result['ticks_missing']:
        lines.append(f'{result["ticks_missing"]} ticks were dropped or lost')
    for name in result['damaged_files']:
        lines.append(f'{name} does not end as it should: read as far as it goes')
    for model in result['models']:
        kind = 'the recorded model' if model['is_recorded'] else \
            f'not the recorded model ({model["recorded_hash"][:12]})'
        lines.append(f'{model["path"]} ({model["content_hash"][:12]}), {kind}, in '
                     f'{model["ticks"]} ticks')
    lines += [f'NOT COMPARED: {gone["ticks"]} ticks; {gone["why"]}'
              for gone in result['models_gone']]
    width = max(map(len, result['elements']))
    lines += ['', f'{"difference / range":{width}}  {"max":>10}  {"mean":>10}']
    for name, value in result['elements'].items():
        largest, mean = ('not finite' if value[key] is None else f'{value[key]:.2e}'
                         for key in ('max', 'mean'))
        lines.append(f'{name:{width}}  {largest:>10}  {mean:>10}')
    lines += ['', f'{result["ticks_that_differ"]} of {result["ticks_compared"]} ticks differ by '
              f'more than {result["tolerance"]:g} of the range']
    if not result['is_same']:
        lines.append('THE SAME MODEL GAVE OTHER ACTIONS than those recorded')
    return '\n'.join(lines)
