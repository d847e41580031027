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

"""Tests of the list of mutations, which benchmarks/mutations.py runs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def mutations(load_benchmark):
    """Return benchmarks/mutations.py."""
    return load_benchmark('mutations')


def test_the_list_fits_the_code_and_the_page(mutations):
    entries = mutations.read_mutations([])
    page = (ROOT / 'docs' / 'mutations.md').read_text()
    rows = [f'| {entry.what} | `{entry.file}` | `' for entry in entries]
    assert len(set(rows)) == len(entries) > 100
    assert [row for row in rows if row not in page] == []
    assert page.count('\n| ') == len(entries) + 1


def test_every_test_it_names_is_there(mutations):
    for entry in mutations.read_mutations([]):
        for test in entry.test.split():
            file, _, name = test.partition('::')
            assert f'def {name}' in (ROOT / 'test' / 'learn' / file).read_text(), entry.what


def test_a_mutation_that_does_not_fit_is_named(mutations):
    mutation = mutations.Mutation('sign', 'learn/gae.py', 'a - b', 'b - a', 'test_gae.py')
    assert mutation.apply('c = a - b\n') == 'c = b - a\n'
    with pytest.raises(ValueError, match='sign: old must occur once in learn/gae.py, got 2 times'):
        mutation.apply('c = a - b, a - b\n')
    with pytest.raises(SyntaxError):
        mutations.Mutation('no code', 'x.py', 'c', 'c =', '').apply('c = 1\n')
