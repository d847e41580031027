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

"""Break the learning core's mathematics on purpose, one line at a time, and see which test fails.

    .venv/bin/python benchmarks/mutations.py
    .venv/bin/python benchmarks/mutations.py 'sign of' gae.py

mutations.yaml says what to break, on a copy of the code. Without arguments all of it is broken,
and docs/mutations.md is written; with words, only what has one of them in its description or its
file. It fails if anything survives its tests.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
import gc
import importlib
import multiprocessing
import os
from pathlib import Path
import shutil
import sys
import tempfile

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = Path(__file__).with_suffix('.yaml')
PAGE = ROOT / 'docs' / 'mutations.md'
# What the tests of the learning core read.
COPIED = ('dpg_robot', 'test', 'config', 'models', 'robots', 'package.xml',
          'pyproject.toml')
TESTS = 'test/learn/'
# What the tests import that takes long; torch would ask for the last two later.
SLOW = ('torch', 'gymnasium', 'sympy', 'torch._dynamo')
# Of pytest; but for the first, what takes time: none of it decides which test fails.
OPTIONS = ('-x', '--assert=plain', '-p', 'no:hypothesispytest', '-p', 'no:cacheprovider')
LIMIT_S = 1800
INTRODUCTION = """\
# What was broken on purpose

Each line of the learning core's mathematics, broken one at a time on a copy of the code, and the
first test in `test/learn/` that failed, of those that should see it. `benchmarks/mutations.py`
writes this page from `benchmarks/mutations.yaml`: a new line of mathematics wants an entry there.
Files are those of `dpg_robot/`.

| broken | in | caught by |
|---|---|---|
"""


@dataclass(frozen=True)
class Mutation:
    """One piece of the code, and what is wrong in its place.

    :param what: is broken.
    :param file: below ``dpg_robot/``.
    :param old: the exact text, which is there once; ``new`` takes its place.
    :param test: what in ``test/learn/`` should see it: files, or tests in them, with spaces
        between.
    """

    what: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, text: str) -> str:
        """Return the file's text, broken.

        :raises ValueError: if the code has changed, so that the entry no longer fits.
        """
        if text.count(self.old) != 1:
            raise ValueError(f'{self.what}: old must occur once in {self.file}, '
                             f'got {text.count(self.old)} times {self.old!r}')
        text = text.replace(self.old, self.new)
        compile(text, self.file, 'exec')  # what is no code at all would prove nothing
        return text


class FirstFailure:
    """A plugin of pytest that remembers the first test that fails."""

    name = None

    def pytest_runtest_logreport(self, report):
        if report.failed and self.name is None:
            self.name = report.nodeid.partition('[')[0].removeprefix(TESTS)


def run_tests(folder: Path, tests: list[str], answer) -> None:
    """Send pytest's exit status and the first test that fails, in a process of its own."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    # Bytecode is known by size and second, and two mutations may share both.
    sys.dont_write_bytecode = True
    os.environ |= {'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'}
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    first = FirstFailure()
    status = pytest.main([*OPTIONS, *(TESTS + name for name in tests)], plugins=[first])
    answer.send((status, first.name))


def first_failure(folder: Path, tests: list[str]) -> str | None:
    """Return the first test of a copy that fails, None if all pass.

    :param tests: of :class:`Mutation`.
    :raises RuntimeError: if the tests could not be run, or not in time.
    """
    # Forked: what is slow to import is there already, but nothing of dpg_robot.
    context = multiprocessing.get_context('fork')
    question, answer = context.Pipe(duplex=False)
    process = context.Process(target=run_tests, args=(folder, tests, answer))
    process.start()
    answer.close()
    try:
        if not question.poll(LIMIT_S):
            raise RuntimeError(f'{" ".join(tests)} must end within {LIMIT_S} s')
        status, name = question.recv()
    except EOFError:
        raise RuntimeError(f'{" ".join(tests)} must end with an answer, got none') from None
    finally:
        process.kill()
        process.join()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f'{" ".join(tests)} must run, got exit status {status} of pytest')
    return name


def caught_by(folder: Path, mutation: Mutation) -> str | None:
    """Return the test that sees a mutation, None if it survives; the copy is mended again."""
    path = folder / 'dpg_robot' / mutation.file
    right = path.read_text()
    path.write_text(mutation.apply(right))
    try:
        return first_failure(folder, mutation.test.split())
    finally:
        path.write_text(right)


def copy_to(folder: Path) -> None:
    """Copy the code and its tests."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, folder)


def read_mutations(words: list[str]) -> list[Mutation]:
    """Return all mutations, or those with one of the words.

    :raises ValueError: naming one that does not fit the code.
    """
    mutations = [Mutation(**entry) for entry in yaml.safe_load(ENTRIES.read_text())]
    for mutation in mutations:
        mutation.apply((ROOT / 'dpg_robot' / mutation.file).read_text())
    return [mutation for mutation in mutations if not words
            or any(word in f'{mutation.what} {mutation.file}' for word in words)]


def main():
    """Break things one at a time, print what caught each, and write docs/mutations.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('words', nargs='*', help='break only what has one of them in its '
                        'description or its file, and leave docs/mutations.md as it is')
    words = parser.parse_args().words
    mutations, rows, survivors = read_mutations(words), [], []
    if not mutations:
        parser.error(f'words must be those of some mutation, got {" ".join(words)}')
    for name in SLOW:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage as it ends: not in all of these
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_to(copy)
        wrong = first_failure(copy, sorted({t for m in mutations for t in m.test.split()}))
        if wrong:
            sys.exit(f'{wrong} fails with nothing broken')
        for mutation in mutations:
            test = caught_by(copy, mutation)
            print(f'{mutation.file}: {mutation.what}: {test or "SURVIVED"}', flush=True)
            rows.append(f'| {mutation.what} | `{mutation.file}` | '
                        + (f'`{test}` |' if test else '**nothing** |'))
            if not test:
                survivors.append(mutation.what)
    if not words:
        PAGE.write_text(INTRODUCTION + '\n'.join(rows) + '\n')
    if survivors:
        sys.exit(f'survived: {"; ".join(survivors)}')


if __name__ == '__main__':
    main()
