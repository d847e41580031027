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

"""Models that replace the running one: loaded, checked and warmed up beside it, free of ROS."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from typing import Callable

from dpg_robot.contract.model_file import file_signature
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime.onnx_policy import OnnxPolicy

_logger = logging.getLogger('dpg_robot')
# How often a watched file is looked at [s].
_LOOK_S = 0.25


def check_same_contract(running: PolicySpec, candidate: PolicySpec,
                        whose: str = 'the running policy') -> None:
    """Check that a policy may take another one's place without anything else being changed.

    :param whose: names the first in errors.
    :raises SpecError: naming what differs.
    """
    _check_same(running, candidate, ('robot', 'control_rate_hz'), whose)
    for key in ('observation', 'action'):
        wanted, got = getattr(running, key), getattr(candidate, key)
        names = [', '.join(term.name for term in terms) for terms in (wanted, got)]
        if names[0] != names[1]:
            raise SpecError(f'{key} must have the terms of {whose} ({names[0]}), '
                            f'got {names[1]}')
        for ours, theirs in zip(wanted, got):
            for field in dataclasses.fields(ours):
                a, b = getattr(ours, field.name), getattr(theirs, field.name)
                if a != b:
                    raise SpecError(f'{key} {ours.name}.{field.name} must be {a} as that of '
                                    f'{whose}, got {b}')
    _check_same(running, candidate, ('eps_dim',), whose)  # recorders have room for as much


def _check_same(running, candidate, keys, whose):
    for key in keys:
        wanted, got = getattr(running, key), getattr(candidate, key)
        if wanted != got:
            raise SpecError(f'{key} must be {wanted} as that of {whose}, got {got}')


class ModelLoader:
    """A thread that loads models on request, or whenever a watched file changes.

    The newest request counts; a model that cannot be used is refused and changes nothing.
    ``path`` is the file that runs, ``refusal`` why the newest request was refused, if it was, and
    ``num_loaded`` and ``num_refused`` count both.
    """

    def __init__(self, policy: OnnxPolicy, path: str, watch: bool,
                 accept: Callable[[OnnxPolicy], None], tell: Callable[[bool, str], None],
                 seen: tuple[int, ...] | None = None):
        """Start the thread.

        :param policy: the one that runs, from the file ``path``.
        :param watch: whether to load that file again when it changes.
        :param accept: takes a policy that may run; called by the thread.
        :param tell: is told whether a request was accepted, and one line about it; likewise.
        :param seen: the :func:`file_signature` of the file as the policy was read from it; None
            to take it now.
        """
        self.path, self.refusal = path, ''
        self.num_loaded = self.num_refused = 0
        self._spec, self._accept, self._tell = policy.spec, accept, tell
        self._watch, self._seen = watch, seen or file_signature(path)
        self._requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name='model_loader', daemon=True)
        self._thread.start()

    def request(self, path: str) -> None:
        """Load a model as soon as possible; returns at once."""
        self._requests.put(path)

    def close(self) -> None:
        """End the thread; a model that it is just loading is neither accepted nor told of."""
        self._accept = self._tell = lambda *words: None
        self._requests.put(None)

    def _run(self):
        while True:
            try:
                path = self._requests.get(timeout=_LOOK_S)
            except queue.Empty:
                path = self._changed()
                if not path:
                    continue
            while not self._requests.empty():
                path = self._requests.get()
            if path is None:
                return
            try:
                self._load(path)
            except Exception:  # of who accepts or is told; the next request still counts
                _logger.exception('model %s', path)

    def _changed(self):
        signature = file_signature(self.path) if self._watch else self._seen
        return self.path if signature not in (self._seen, None) else ''

    def _load(self, path):
        # Taken before the file is read: if it changes meanwhile, it is looked at again.
        signature = file_signature(path)
        try:
            policy = OnnxPolicy(path)
            check_same_contract(self._spec, policy.spec)
        except Exception as error:
            if path == self.path:
                self._seen = signature
            self.num_refused += 1
            reason = ' '.join(str(error).split())
            self.refusal = reason if path in reason else f'model file {path} refused: {reason}'
            self._tell(False, self.refusal)
            return
        self.path, self._seen, self.refusal = path, signature, ''
        self.num_loaded += 1
        self._accept(policy)
        self._tell(True, f'model {path} ({policy.content_hash[:12]})')
