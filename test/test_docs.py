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

"""What the documents say that a program can check: links, paths, commands, tables."""

import argparse
import ast
import dataclasses
import importlib
from pathlib import Path
import re
import runpy
import shlex
from xml.etree import ElementTree

import pytest
import yaml

from dpg_robot.cli import make_parser
from dpg_robot.contract import spec
from dpg_robot.contract.strict import bounded

ROOT = Path(__file__).resolve().parent.parent
# All of them must be there; a document without a test of its own is tested here.
NAMED = ('README.md', 'docs/mathematics.md', 'docs/architecture.md', 'docs/contract.md',
         'docs/robot.md')
DOCUMENTS = sorted({*NAMED, *(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))})
FOLDERS = ('benchmarks', 'config', 'docs', 'dpg_robot', 'launch', 'models', 'requirements', 'test',
           'tools')
NODES = ('policy_node', 'sim_node', 'trainer_node')
LAUNCH_FILES = ('deploy_launch.xml', 'sim_launch.xml', 'train_launch.xml')
SPEC_CLASSES = (spec.PolicySpec, spec.ObservationTerm, spec.ActionTerm, spec.TrainingRecord)

LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
INLINE_CODE = re.compile(r'(?<!`)`([^`\n]+)`(?!`)')
# Capital words in a path stand for the reader's own: config/TASK.yaml.
PATH = re.compile(rf'(?:{"|".join(FOLDERS)})/[a-z0-9_./-]*')
COMMAND = re.compile(r'(?:^|\s)(?:\.venv/bin/)?dpg-robot (.+)')


def read(name):
    return (ROOT / name).read_text()


def code_lines(text):
    """Return the lines of code blocks, fenced or indented."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.lstrip().startswith('```'):
            fenced = not fenced
        elif fenced or line.startswith('    '):
            lines.append(line)
    return lines


def prose(text):
    """Return a text without its fenced code."""
    return re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)


def commands(text):
    """Return the arguments of every dpg-robot that is shown, in blocks and in sentences."""
    shown = code_lines(text) + INLINE_CODE.findall(prose(text))
    found = filter(None, map(COMMAND.search, shown))
    return [shlex.split(match.group(1), comments=True) for match in found]


def section(name, heading):
    """Return the lines below a heading that begins with this, up to the next heading."""
    matches = re.findall(rf'^#+ {re.escape(heading)}.*\n((?:(?!#+ ).*\n?)*)', read(name), re.M)
    assert matches, f'{name} has no section {heading}'
    return [block.splitlines() for block in matches]


def table(name, heading, head):
    """Return the rows of the table whose first column is ``head``, under such a heading."""
    for lines in section(name, heading):
        rows = [[cell.strip() for cell in line.strip().strip('|').split('|')]
                for line in lines if line.startswith('|')]
        if rows and rows[0][0] == head:
            return rows[2:]
    raise AssertionError(f'{name}: no table of each {head} under {heading}')


def first_names(rows):
    return [name for row in rows for name in INLINE_CODE.findall(row[0])]


def parameters_of(node):
    return {entry.name: entry
            for entry in importlib.import_module(f'dpg_robot.nodes.{node}').PARAMETERS}


@pytest.mark.parametrize('name', DOCUMENTS)
def test_relative_links_lead_somewhere(name):
    for target in LINK.findall(prose(read(name))):
        if not re.match(r'[a-z]+:', target) and not target.startswith('#'):
            path = (ROOT / name).parent / target.partition('#')[0]
            assert path.exists(), target


@pytest.mark.parametrize('name', DOCUMENTS)
def test_paths_in_code_exist(name):
    for code in INLINE_CODE.findall(prose(read(name))):
        if PATH.fullmatch(code):
            assert (ROOT / code).exists(), code


def test_the_documents_name_every_file_of_the_package():
    described = first_names(table('docs/architecture.md', 'Every file', 'file'))
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'dpg_robot').rglob('*.py')
             if path.name != '__init__.py'}
    assert set(described) == files
    assert len(described) == len(files)


@pytest.mark.parametrize('name', DOCUMENTS)
def test_commands_parse(name, capsys):
    parser = make_parser()
    choices = next(action.choices for action in parser._actions
                   if isinstance(action, argparse._SubParsersAction))
    for arguments in commands(read(name)):
        if len(arguments) == 1:  # only the name of a command
            assert arguments[0] in choices
            continue
        try:
            parser.parse_args(arguments)
        except SystemExit as exit:
            message = capsys.readouterr().err
            assert not exit.code, f'dpg-robot {" ".join(arguments)}: {message}'


def test_commands_are_found():
    text = 'Run\n\n    .venv/bin/dpg-robot train a --seed 1  # note\n\nor `dpg-robot demo`.\n'
    assert commands(text + '```\ndpg-robot inspect b\n```\n') == [
        ['train', 'a', '--seed', '1'], ['inspect', 'b'], ['demo']]
    assert commands(read('README.md'))


@pytest.mark.parametrize('name', DOCUMENTS)
def test_make_targets_exist(name):
    targets = re.findall(r'^(\w+):', read('Makefile'), re.M)
    shown = code_lines(read(name)) + INLINE_CODE.findall(prose(read(name)))
    for line in shown:
        match = re.match(r'\s*make (\w+)', line)
        assert match is None or match.group(1) in targets, line


@pytest.mark.parametrize('node', NODES)
def test_parameters_are_those_of_the_node(node):
    rows = table('docs/policy_node.md', 'Parameters', 'parameter') if node == 'policy_node' \
        else table('docs/robot.md', f'`{node}`', 'parameter')
    known = parameters_of(node)
    assert sorted(first_names(rows)) == sorted(known)
    for (name, default, meaning) in rows:
        entry = known[name.strip('`')]
        assert yaml.safe_load(default.strip('`')) == entry.default, name
        assert meaning.startswith('(rw) ') is not entry.read_only, name


@pytest.mark.parametrize('name', LAUNCH_FILES)
def test_launch_arguments_are_those_of_the_file(name):
    declared = [arg.get('name') for arg in ElementTree.parse(ROOT / 'launch' / name).iter('arg')
                if arg.get('description')]
    lines, = section('docs/robot.md', f'`{name}`')
    if any(line.startswith('| argument') for line in lines):
        told = first_names(table('docs/robot.md', f'`{name}`', 'argument'))
    else:
        told = INLINE_CODE.findall('\n'.join(lines).partition('Arguments:')[2].partition('.')[0])
    assert sorted(told) == sorted(declared)


def test_diagnostics_of_sim_node_are_described():
    told = first_names(table('docs/robot.md', '`sim_node`', 'key'))
    tree = ast.parse(read('dpg_robot/nodes/sim_node.py'))
    # Each call of Diagnostics.publish ends with a dictionary of what it publishes.
    published = {key.value for call in ast.walk(tree) if isinstance(call, ast.Call)
                 and ast.unparse(call.func) == 'self._diagnostics.publish'
                 for key in call.args[-1].keys}
    assert {key.partition('.')[0] for key in told} == published


def test_diagnostics_of_policy_node_are_described():
    told = first_names(table('docs/policy_node.md', 'Diagnostics', 'key'))
    tree = ast.parse(read('dpg_robot/nodes/policy_status.py'))
    published = {key.value for node in ast.walk(tree) if isinstance(node, ast.Dict)
                 for key in node.keys}
    levels = {'running', 'safe', 'stalled', 'estop', 'failed'}
    assert {key.partition('.')[0] for key in told} == published - (levels - {'estop'})


@pytest.mark.parametrize('kind', SPEC_CLASSES, ids=lambda kind: kind.__name__)
def test_fields_of_the_spec_are_described(kind):
    rows = table('docs/contract.md', f'`{kind.__name__}`', 'field')
    assert first_names(rows) == [field.name for field in dataclasses.fields(kind)]


@dataclasses.dataclass
class Base:
    """Inherited.

    :param rate: how fast, or null: ``x | y``
        [Hz].
    """

    rate: float | None = bounded(1e-3, above=0, maximum=2)


@dataclasses.dataclass
class Sample(Base):
    """What has a ``rate``.

    :param sizes: of each.
    :param bases: of some.
    """

    sizes: tuple[int, ...] = bounded((2, 3), minimum=1)
    bases: dict[str, Base] = dataclasses.field(default_factory=dict)


@pytest.fixture(scope='module')
def settings():
    """Return what docs/make_settings.py defines."""
    return runpy.run_path(str(ROOT / 'docs' / 'make_settings.py'))


def test_a_section_of_settings(settings):
    assert settings['section']('a', Sample) == r"""## `a`

What has a `rate`.

| key | value | default | meaning |
|---|---|---|---|
| `rate` | number above 0 and at most 2, or `null` | `0.001` | how fast, or null: `x \| y` [Hz] |
| `sizes` | list of integers at least 1 | `[2, 3]` | of each |
| `bases` | by name: [`a.bases.NAME`](#abasesname) | `{}` | of some |
"""
    assert list(settings['sections'](Sample, 'a')) == [('a', Sample), ('a.bases.NAME', Base)]


def test_every_setting_is_described(settings):
    for path, kind in settings['sections']():
        _, meanings = settings['described'](kind)
        assert sorted(meanings) == sorted(field.name for field in dataclasses.fields(kind)), path


def test_settings_are_those_of_the_code(settings):
    text = read('docs/settings.md')
    assert text == settings['page'](), 'docs/make_settings.py writes it anew'
    headings = {heading.replace('.', '').lower()
                for heading in re.findall(r'^## `(.*)`$', text, re.M)}
    assert set(re.findall(r'\]\(#(.*?)\)', text)) == headings
