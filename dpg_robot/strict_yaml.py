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

"""YAML in which no key is there twice, and task files made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dpg_robot.contract.strict import SpecError


class _UniqueKeys(yaml.SafeLoader):
    """A key that is there twice would otherwise lose its first value without a word."""

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = f'a key must be a scalar, got a {key.id}'
            elif (key.tag, key.value) in seen:
                problem = f'the key {key.value} is there twice'
            else:
                seen.add((key.tag, key.value))
                continue
            raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node


def load_yaml(text: str, what: str) -> Any:
    """Return plain data.

    :param what: names the text in errors.
    :raises SpecError: if it is no YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise SpecError(f'{what} must be YAML: {" ".join(str(error).split())}') from error


def read_task_file(path: Path) -> dict[str, Any]:
    """Return the sections of a task file.

    :raises SpecError: if it cannot be read, or is no mapping of sections.
    """
    try:
        data = load_yaml(path.read_text(), f'config file {path}')
    except OSError as error:
        raise SpecError(f'config file {path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise SpecError(f'config file {path} must be YAML: {error}') from error
    if not isinstance(data, dict):
        raise SpecError(f'config file {path} must be a mapping, got {data!r}')
    return data
