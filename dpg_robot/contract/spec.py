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

"""PolicySpec: everything a robot must know about a policy, stored inside its ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass, field
import json
import re

import numpy as np

from dpg_robot.contract.fields import parse_field
from dpg_robot.contract.strict import bounded, dump, load, SpecError

SPEC_VERSION = 1
# A state is up to a period old when its tick comes, and some come late: a control that allows no
# more may never begin, or never again behind a fault.
_LEAST_AGE_PERIODS = 1.5

# 'pose.position.x', 'data[3]' or 'position[elbow_joint]'
_FIELD = re.compile(r'[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*(\[[^\[\]]+\])?')
_MESSAGE_TYPE = re.compile(r'[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*')


@dataclass(frozen=True)
class ObservationTerm:
    """One group of physical quantities that the policy reads from one topic.

    ``fields`` names each element in the message, in the policy's order: an attribute path
    (``pose.position.x``), an array element (``data[3]``), or an array element found through the
    message's ``name`` array (``position[elbow_joint]``), never by its position in the message.
    """

    name: str
    topic: str
    type: str
    fields: tuple[str, ...]
    unit: str
    max_age_s: float = bounded(above=0)
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return len(self.fields)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        _check_message(self, name)
        _check_range(self, name)


@dataclass(frozen=True)
class ActionTerm:
    """One group of commands that the policy writes to one topic.

    A normalised action in [-1, 1] times ``scale``, plus ``offset`` (empty for zeros), is the
    command in ``unit``; the graph has this inside. ``rate_limit`` is in unit/s, null for none.
    ``safe`` is the command sent whenever the policy may not speak, null for "hold the last one".
    ``acceleration_limit``, in unit/s^2, bounds the change of that rate; null or empty for none.
    """

    name: str
    topic: str
    type: str
    fields: tuple[str, ...]
    unit: str
    scale: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    safe: tuple[float | None, ...]
    rate_limit: tuple[float | None, ...]
    frame_id: str = ''
    joints: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()
    acceleration_limit: tuple[float | None, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return len(self.fields)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        _check_message(self, name)
        for key in ('scale', 'lower', 'upper', 'safe', 'rate_limit'):
            _check_length(self, name, key)
        for key in ('joints', 'offset', 'acceleration_limit'):
            if getattr(self, key):
                _check_length(self, name, key)
        _check_range(self, name)
        for i, (low, safe, high) in enumerate(zip(self.lower, self.safe, self.upper)):
            if safe is not None and not low <= safe <= high:
                raise SpecError(
                    f'{name}.safe[{i}] must lie within lower and upper ({low} to {high}), '
                    f'got {safe}')
            if self.scale[i] <= 0:
                raise SpecError(f'{name}.scale[{i}] must be greater than 0, got {self.scale[i]}')
        for key in ('rate_limit', 'acceleration_limit'):
            for i, limit in enumerate(getattr(self, key)):
                if limit is not None and limit <= 0:
                    raise SpecError(
                        f'{name}.{key}[{i}] must be greater than 0 or null, got {limit}')


@dataclass(frozen=True)
class TrainingRecord:
    """What was trained, in which world, and how well it did."""

    estimator: str
    env_steps: int = bounded(minimum=0)
    seed: int = bounded(minimum=0)
    world: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """The contract between a trained policy and the robot that runs it (docs/contract.md)."""

    spec_version: int
    task: str
    robot: str
    control_rate_hz: float = bounded(above=0)
    observation: tuple[ObservationTerm, ...] = ()
    action: tuple[ActionTerm, ...] = ()
    eps_dim: int = bounded(0, minimum=0)
    training: TrainingRecord = field(default_factory=lambda: TrainingRecord('none', 0, 0))

    @property
    def obs_dim(self) -> int:
        """Return the size of the policy's observation vector."""
        return sum(term.size for term in self.observation)

    def places_of(self, names: Sequence[str]) -> list[int]:
        """Return where the elements of these observation terms are in the observation vector."""
        term_of = [term.name for term in self.observation for _ in range(term.size)]
        return [place for place, name in enumerate(term_of) if name in names]

    @property
    def action_dim(self) -> int:
        """Return the size of the policy's action vector."""
        return sum(term.size for term in self.action)

    @property
    def action_scale(self) -> tuple[float, ...]:
        """Return the physical size of one unit of each normalised action."""
        return tuple(scale for term in self.action for scale in term.scale)

    @property
    def action_offset(self) -> tuple[float, ...]:
        """Return the physical command of each normalised action of zero."""
        return tuple(offset for term in self.action
                     for offset in term.offset or (0.0,) * term.size)

    @property
    def control_dt(self) -> float:
        """Return the control period [s]."""
        return 1.0 / self.control_rate_hz

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        prefix = f'{name}.' if name else ''
        if self.spec_version != SPEC_VERSION:
            raise SpecError(
                f'{prefix}spec_version must be {SPEC_VERSION}, got {self.spec_version}')
        for key in ('observation', 'action'):
            terms = getattr(self, key)
            if not terms:
                raise SpecError(f'{prefix}{key} must have at least one term, got none')
            names = [term.name for term in terms]
            for term_name in names:
                if names.count(term_name) > 1:
                    raise SpecError(f'{prefix}{key} term names must differ, got {term_name} twice')
        least_s = _LEAST_AGE_PERIODS * self.control_dt
        for i, term in enumerate(self.observation):
            if term.max_age_s < least_s * (1.0 - 1e-9):
                raise SpecError(
                    f'{prefix}observation[{i}].max_age_s must be at least {_LEAST_AGE_PERIODS:g} '
                    f'control periods ({least_s:g} s), got {term.max_age_s:g}')
        for key in ('observation', 'action'):
            types = {}
            for term in getattr(self, key):
                if types.setdefault(term.topic, term.type) != term.type:
                    raise SpecError(
                        f'{prefix}{key} terms of one topic must have one message type, got '
                        f'{types[term.topic]} and {term.type} on {term.topic}')
        written = [(term.topic, parse_field(path)) for term in self.action for path in term.fields]
        for topic, path in written:
            if written.count((topic, path)) > 1:
                raise SpecError(f'{prefix}action fields must differ, got {path} on {topic} twice')

    def to_json(self) -> str:
        """Return the canonical JSON document; numbers keep their full precision."""
        return json.dumps(dump(self), sort_keys=True, allow_nan=False, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> PolicySpec:
        """Read what :meth:`to_json` wrote.

        :raises SpecError: if it is not JSON, or breaks a rule.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f'the policy spec must be JSON: {error}') from error
        return load(cls, data)

    def normalised(self, command: np.ndarray) -> np.ndarray:
        """Return the normalised actions of physical commands, shape (..., action_dim)."""
        return (command - np.array(self.action_offset)) / np.array(self.action_scale)

    def physical(self, action: np.ndarray) -> np.ndarray:
        """Return the commands in physical units of normalised actions, shape (..., action_dim)."""
        return action * np.array(self.action_scale) + np.array(self.action_offset)

    def with_training(self, record: TrainingRecord) -> PolicySpec:
        """Return a copy that carries this training record."""
        return dataclasses.replace(self, training=record)


def _check_message(term, name):
    if not term.name:
        raise SpecError(f'{name}.name must not be empty, got {term.name!r}')
    if not term.topic:
        raise SpecError(f'{name}.topic must not be empty, got {term.topic!r}')
    if not _MESSAGE_TYPE.fullmatch(term.type):
        raise SpecError(
            f"{name}.type must look like 'sensor_msgs/msg/JointState', got {term.type!r}")
    if not term.fields:
        raise SpecError(f'{name}.fields must name at least one field, got none')
    for i, path in enumerate(term.fields):
        if not _FIELD.fullmatch(path):
            raise SpecError(
                f"{name}.fields[{i}] must look like 'pose.position.x', 'data[0]' or "
                f"'position[joint]', got {path!r}")


def _check_length(term, name, key):
    got = len(getattr(term, key))
    if got != term.size:
        raise SpecError(
            f'{name}.{key} must have one value for each field ({term.size}), got {got}')


def _check_range(term, name):
    for key in ('lower', 'upper'):
        if getattr(term, key):
            _check_length(term, name, key)
    for i, (low, high) in enumerate(zip(term.lower, term.upper)):
        if low >= high:
            raise SpecError(f'{name}.lower[{i}] must be below upper[{i}] ({high}), got {low}')
