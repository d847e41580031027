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

"""Stochastic worlds in several processes, so that all cores step them.

The process that asks for a step carries out a part of it, so on as many cores as there are
processes none waits for a core. Actions, observations, rewards and ends of episodes lie in memory
that all share. A step is one short message to each other process and one back; with the latter
come the infos.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
import contextlib
import ctypes
import math
import multiprocessing
from multiprocessing.connection import Connection
import os
import pickle
import signal
import time
import traceback
from typing import Any

from gymnasium.vector import VectorEnv
import numpy as np

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.vector import describe, each_seed, each_value

# A fork would copy locks that other threads hold, those of torch among them.
_PROCESSES = multiprocessing.get_context('spawn')
GRACE_S = 5.0
# How long to stay awake for an answer: chunks end shortly after each other, and waking takes time.
AWAKE_S = 3e-4


class WorkerVector(VectorEnv):
    """A vector of worlds in chunks, each a vector in a process; the first in this one.

    The others end when this is closed, or this process ends, however it does.
    """

    def __init__(self, make: Callable[[Any, int], VectorEnv], config: Any, num_envs: int,
                 workers: int):
        """Start the processes.

        :param make: a function of a module, which builds a vector from ``config`` and its number
            of worlds; both are pickled.
        :param workers: how many processes, this one among them; 1 to num_envs.
        :raises SpecError: if the configuration is wrong.
        """
        ends = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
        self._rows = [slice(*rows) for rows in zip(ends[:-1], ends[1:])]
        envs = make(config, ends[1])
        describe(self, num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = {**envs.metadata, **self.metadata}
        self._board = _Board(num_envs, *self.single_action_space.shape,
                             *self.single_observation_space.shape)
        self._chunk = _Chunk(envs, self._board, self._rows[0])
        self._workers = [_Worker(make, config, self._board, rows) for rows in self._rows[1:]]
        try:
            self._gather(lambda: None)
        except BaseException:
            self.close()
            raise

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict | None = None):
        """Start an episode in every world; see :class:`dpg_robot.sim.vector.VectorWorld`."""
        seeds = each_seed(seed, self.num_envs)
        infos = self._ask('reset', [(seeds[rows], options) for rows in self._rows])
        return self._board.obs.copy(), self._joined(infos)

    def step(self, actions: np.ndarray):
        """Advance every world; see :class:`dpg_robot.sim.vector.VectorWorld`."""
        board = self._board
        if np.shape(actions) != board.actions.shape:
            raise ValueError(f'actions must have the shape {board.actions.shape}, got '
                             f'{np.shape(actions)}')
        board.actions[:] = actions
        infos = self._ask('step')
        return (board.obs.copy(), board.reward.copy(), board.ended[:, 0].copy(),
                board.ended[:, 1].copy(), self._joined(infos))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of every world, or what it returns if it is a method."""
        parts = self._ask('call', [(name, args, kwargs)] * len(self._rows))
        return tuple(value for part in parts for value in part)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every world."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every world: to one value each, or all to the same."""
        values = each_value(values, self.num_envs)
        self._ask('set_attr', [(name, values[rows]) for rows in self._rows])

    def close_extras(self, **kwargs: Any) -> None:
        """Release the worlds of this process, and end the others."""
        self._chunk.envs.close()
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()

    def _ask(self, command, arguments=None):
        if self._is_waiting:
            raise RuntimeError('worlds in processes must be made anew after an interrupt: some '
                               'answers to the question before this one are still to come')
        own, *others = arguments or [()] * len(self._rows)
        for worker, argument in zip(self._workers, others):
            worker.ask(command, argument)
        return self._gather(lambda: getattr(self._chunk, command)(*own))

    def _gather(self, own_answer):
        # All answers, before one of them is raised: a later question must not find an old one.
        self._is_waiting = True
        try:
            answers = [own_answer()]
        except Exception as error:
            answers = [error]
        answers += [worker.answer() for worker in self._workers]
        self._is_waiting = False
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _joined(self, infos):
        return join_infos(infos, [rows.stop - rows.start for rows in self._rows])


def join_infos(infos: list[dict], sizes: list[int]) -> dict:
    """Join the infos of parts of a vector; where one lacks a key, there are zeros, or None."""
    joined = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        values = [info.get(key) for info in infos]
        known = next(value for value in values if value is not None)
        if isinstance(known, dict):
            joined[key] = join_infos([value or {} for value in values], sizes)
        else:
            joined[key] = np.concatenate([
                np.full((size, *known.shape[1:]), None if known.dtype == object else 0,
                        known.dtype) if value is None else value
                for value, size in zip(values, sizes)])
    return joined


class _Board:
    """Arrays that all processes see; ``ended`` holds terminations and truncations."""

    def __init__(self, num_envs, action_dim, obs_dim):
        shapes = {'actions': (num_envs, action_dim), 'obs': (num_envs, obs_dim),
                  'reward': (num_envs,), 'ended': (num_envs, 2)}
        self._shared = {}
        for name, shape in shapes.items():
            kind, size = (ctypes.c_bool if name == 'ended' else ctypes.c_double), math.prod(shape)
            self._shared[name] = _PROCESSES.RawArray(kind, size), shape, kind
        self._view()

    def _view(self):
        for name, (memory, shape, kind) in self._shared.items():
            setattr(self, name, np.frombuffer(memory, kind).reshape(shape))

    def __getstate__(self):
        return self._shared

    def __setstate__(self, shared):
        self._shared = shared
        self._view()


class _Chunk:
    """The worlds of one process, and their rows of the board."""

    def __init__(self, envs, board, rows):
        self.envs, self.board, self.rows = envs, board, rows

    def reset(self, seeds, options):
        self.board.obs[self.rows], infos = self.envs.reset(seed=seeds, options=options)
        return infos

    def step(self):
        board, rows = self.board, self.rows
        board.obs[rows], board.reward[rows], *ends, infos = self.envs.step(board.actions[rows])
        board.ended[rows] = np.transpose(ends)
        return infos

    def call(self, name, args, kwargs):
        return self.envs.call(name, *args, **kwargs)

    def set_attr(self, name, values):
        self.envs.set_attr(name, values)


class _Worker:
    """Another process, and the connection to it."""

    def __init__(self, make, config, board, rows):
        self.connection, other = _PROCESSES.Pipe()
        self.process = _PROCESSES.Process(
            target=_serve, args=(other, make, config, board, rows), daemon=True,
            name=f'worlds {rows.start} to {rows.stop - 1}')
        self.process.start()
        # So that each side sees the end of the other.
        other.close()
        # At the end of a program Python would send a signal that is ignored, and wait for ever.
        atexit.register(self.end)

    def end(self):
        """End the process."""
        self.connection.close()
        self.process.join(GRACE_S)
        if self.process.is_alive():  # in the middle of something that does not end
            self.process.kill()
            self.process.join()
        atexit.unregister(self.end)

    def ask(self, command, arguments):
        with contextlib.suppress(OSError):  # it died; the answer says so
            self.connection.send((command, arguments))

    def answer(self):
        """Return its answer, or an exception."""
        until = time.perf_counter() + AWAKE_S
        try:
            while not self.connection.poll() and time.perf_counter() < until:
                os.sched_yield()
            is_error, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(GRACE_S)
            return RuntimeError(f'the process of {self.process.name} ended by itself, with exit '
                                f'code {self.process.exitcode}')
        if not is_error:
            return value
        kind, text = value
        return SpecError(text) if kind == 'SpecError' else RuntimeError(
            f'{self.process.name}: {text}')


def _serve(connection: Connection, make, config, board, rows) -> None:
    """Step a part of the worlds until the connection is closed."""
    # A Ctrl-C, and what a closed terminal or a service's manager sends, reaches all processes;
    # this one is needed for the last checkpoint, and ends with the connection.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    chunk = None

    def build():
        nonlocal chunk
        chunk = _Chunk(make(config, rows.stop - rows.start), board, rows)

    _answer(connection, build)
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        while True:
            command, arguments = connection.recv()
            _answer(connection, getattr(chunk, command), *arguments)
    if chunk is not None:
        chunk.envs.close()


def _answer(connection, function, *arguments):
    try:
        reply = pickle.dumps((False, function(*arguments)))
    except Exception as error:
        text = str(error) if isinstance(error, SpecError) else traceback.format_exc()
        reply = pickle.dumps((True, (type(error).__name__, text)))
    connection.send_bytes(reply)
