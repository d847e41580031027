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

"""From the vector of all terms to one message for each topic."""

from __future__ import annotations

import importlib
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from dpg_robot.contract.fields import FieldWriter
from dpg_robot.contract.strict import SpecError


def message_class(type_name: str) -> type:
    """Return the class of a type like 'sensor_msgs/msg/JointState'.

    :raises SpecError: if it is not installed.
    """
    package, _, name = type_name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(f'message type {type_name} is not installed') from error


class TopicGroup(NamedTuple):
    """The terms that share a topic: all their fields, and each one's place in the vector."""

    type: str
    fields: tuple[str, ...]
    places: np.ndarray
    frame_ids: frozenset[str]


def group_by_topic(terms: Sequence) -> dict[str, TopicGroup]:
    """Group observation or action terms by their topic, in the spec's order."""
    members, start = {}, 0
    for term in terms:
        members.setdefault(term.topic, []).append((term, start))
        start += term.size
    return {topic: TopicGroup(
        group[0][0].type,
        tuple(field for term, _ in group for field in term.fields),
        np.array([first + i for term, first in group for i in range(term.size)]),
        frozenset(getattr(term, 'frame_id', '') for term, _ in group))
        for topic, group in members.items()}


class MessageWriter:
    """Write a vector of all terms into one message for each topic."""

    def __init__(self, terms: Sequence, make_message: Callable[[str], Any], frame_id: str = ''):
        """Make and size the messages.

        :param terms: the observation or action terms of a spec.
        :param make_message: returns an empty message of a type like 'std_msgs/msg/Float64'.
        :param frame_id: the frame of terms that do not have their own.
        :raises SpecError: if a message type lacks a field, fields leave a gap in an array, or
            the terms of one topic differ in their frame.
        """
        self._outputs = []
        for topic, group in group_by_topic(terms).items():
            message = make_message(group.type)
            writer = FieldWriter(group.fields, message, f'topic {topic}')
            header = getattr(message, 'header', None)
            if len(group.frame_ids) > 1:
                raise SpecError(f'topic {topic}: its terms must have one frame_id, got '
                                f'{", ".join(sorted(group.frame_ids))}')
            if header is not None:
                header.frame_id = next(iter(group.frame_ids)) or frame_id
            self._outputs.append((topic, writer, group.places, header))

    def write(self, vector: np.ndarray, stamp: Any) -> list[tuple[str, Any]]:
        """Fill the messages; a topic with an element that is not finite is left out.

        :param vector: one value for each element of all terms.
        :param stamp: a message time, put into every header.
        :return: topics and messages, the messages valid until the next call.
        """
        messages = []
        for topic, writer, places, header in self._outputs:
            values = vector[places]
            if np.isfinite(values).all():
                if header is not None:
                    header.stamp = stamp
                messages.append((topic, writer.write(values)))
        return messages
