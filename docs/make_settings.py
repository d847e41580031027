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

"""Write docs/settings.md, every key of a task file, from the dataclasses that hold them.

    .venv/bin/python docs/make_settings.py

What a key means is said in a docstring, by ``:param key:``; an inherited one will do.
"""

import dataclasses
import inspect
from pathlib import Path
import re
import typing

import yaml

from dpg_robot.experiment import ExperimentConfig

PAGE = Path(__file__).with_name('settings.md')
TITLE = """\
# Settings

All keys of a task file such as [config/fetch_reach.yaml](../config/fetch_reach.yaml). What is left
out has its default; `dpg-robot train fetch_reach --set learner.sigma=0.3` overrides one. This page
is written by `docs/make_settings.py`, from docstrings.
"""
HEAD = '| key | value | default | meaning |\n|---|---|---|---|\n'
WORDS = {bool: '`true` or `false`', int: 'integer', float: 'number', str: 'string'}
BOUNDS = {'above': 'above', 'minimum': 'at least', 'maximum': 'at most'}


def sections(hint=ExperimentConfig, path=''):
    """Yield every dataclass inside a type, with its path in the task file."""
    if dataclasses.is_dataclass(hint):
        yield path, hint
        for key, inner in typing.get_type_hints(hint).items():
            yield from sections(inner, f'{path}.{key}'.strip('.'))
    for inner in typing.get_args(hint):
        yield from sections(inner, f'{path}.NAME' if typing.get_origin(hint) is dict else path)


def section(path, cls):
    """Return the heading, the introduction and the table of a dataclass."""
    intro, meanings = described(cls)
    hints, heading = typing.get_type_hints(cls), f'## `{path}`\n' if path else TITLE
    rows = (f'| `{key}` | {value(hints[key], field.metadata, f"{path}.{key}".strip("."))} '
            f'| {default(field)} | {meanings[key]} |\n'
            for field in dataclasses.fields(cls) for key in [field.name])
    return f'{heading}\n{intro}\n\n{HEAD}{"".join(rows)}'


def described(cls):
    """Return how a docstring begins, and what it and those it inherits say of each key."""
    meanings = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        text = inspect.getdoc(base).replace('``', '`')
        intro, *parts = re.split(r'^:param (\w+):', text, flags=re.M)
        meanings |= {key: ' '.join(text.split()).rstrip('.').replace('|', r'\|')
                     for key, text in zip(parts[::2], parts[1::2])}
    return intro.strip(), meanings


def value(hint, rules, path, plural=''):
    """Return in words what a key may be."""
    inner = [arg for arg in typing.get_args(hint) if arg not in (type(None), ...)]
    if dataclasses.is_dataclass(hint):
        return f'[`{path}`](#{path.replace(".", "").lower()})'
    if typing.get_origin(hint) is dict:
        return f'by name: {value(inner[-1], rules, f"{path}.NAME")}'
    if typing.get_origin(hint) is tuple:
        return f'list of {value(inner[0], rules, path, "s")}'
    if inner:
        return f'{value(inner[0], rules, path)}, or `null`'
    if 'choices' in rules:
        return ', '.join(f'`{choice}`' for choice in rules['choices'])
    bounds = (f'{word} {rules[rule]}' for rule, word in BOUNDS.items() if rule in rules)
    return f'{WORDS[hint]}{plural} {" and ".join(bounds)}'.strip()


def default(field):
    """Return a default in YAML; that of a section is the defaults of its keys."""
    if field.default is field.default_factory:  # both are missing
        return 'required'
    plain = {} if field.default is dataclasses.MISSING else field.default
    return f'`{yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]}`'


def page():
    """Return the whole text."""
    return '\n'.join(section(*each) for each in sections())


if __name__ == '__main__':
    PAGE.write_text(page())
