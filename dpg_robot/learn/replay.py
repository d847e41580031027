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

"""Replay: the transitions seen so far, in preallocated tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

RUN = 50


class Batch(NamedTuple):
    """Transitions: obs, next_obs (B, obs_dim); action (B, action_dim); the rest (B,).

    ``held_out`` is 1 for transitions that nothing is fitted to, else 0.
    ``log_prob`` is log p(a | s) of the behaviour when it acted, NaN where nobody recorded it.
    """

    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    next_obs: torch.Tensor
    terminated: torch.Tensor
    held_out: torch.Tensor
    log_prob: torch.Tensor = torch.tensor(torch.nan)


class Replay:
    """A ring of the newest ``capacity`` transitions.

    ``next_obs`` is the true next observation, also where an episode was truncated; only
    ``terminated`` stops the bootstrap.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int,
                 device: torch.device | str = 'cpu'):
        """Reserve the memory."""
        self.capacity, self.size, self.position = capacity, 0, 0
        self.device = torch.device(device)
        widths = ((obs_dim,), (action_dim,), (), (obs_dim,), (), ())
        self.data = Batch(*(torch.zeros(capacity, *width, device=device) for width in widths),
                          torch.full((capacity,), torch.nan, device=device))

    def add(self, batch: Batch) -> None:
        """Store a batch of transitions over the oldest ones.

        :raises ValueError: if the batch is larger than the whole replay.
        """
        count = batch.reward.shape[0]
        if count > self.capacity:
            raise ValueError(f'replay capacity must be at least one batch, {count}, '
                             f'got {self.capacity}')
        index = torch.arange(self.position, self.position + count,
                             device=self.device) % self.capacity
        for store, values in zip(self.data, batch):
            store[index] = values
        self.position = (self.position + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, batch_size: int, num_new: int = 0) -> Batch:
        """Draw transitions that are not held out, uniformly, with replacement.

        :param num_new: the newest ones that are not to be drawn.
        """
        return self._take(self._draw(batch_size, num_new))

    def _draw(self, batch_size, num_new):
        # Few are held out, so twice as many draws are enough.
        age = torch.randint(num_new, self.size, (2 * batch_size,), device=self.device)
        index = (self.position - 1 - age) % self.capacity
        held_out = self.data.held_out[index]
        # The first ones that are not, found without asking a device how many there are.
        first = held_out.argsort(stable=True)[:batch_size]
        chosen = index[first]
        return torch.where(held_out[first] == 0, chosen, chosen[0])

    def _take(self, index):
        return Batch(*(store.index_select(0, index) for store in self.data))

    def newest(self, count: int) -> Batch:
        """Return the newest transitions, the oldest of them first; ``count`` is at most size."""
        return self._take(self._newest(count))

    def _newest(self, count):
        return torch.arange(self.position - count, self.position,
                            device=self.device) % self.capacity

    def held_out(self, count: int) -> Batch:
        """Return the newest transitions that are held out, at most ``count``."""
        oldest_first = self._newest(self.size)
        index = oldest_first[self.data.held_out[oldest_first] == 1][-count:]
        return self._take(index)

    def state_dict(self) -> dict:
        """Return the filled part."""
        return {'position': self.position, 'data': [x[:self.size].clone() for x in self.data]}

    def load_state_dict(self, state: dict) -> None:
        """Take back what :meth:`state_dict` gave.

        :raises ValueError: if it does not fit, or wrapped around at another capacity.
        """
        position, size = state['position'], len(state['data'][0])
        if size > self.capacity or (position < size != self.capacity):
            raise ValueError(f'replay capacity must be {size}, as when it was stored, '
                             f'got {self.capacity}')
        self.position, self.size = position, size
        for store, values in zip(self.data, state['data']):
            store[:self.size] = values


def row_bytes(obs_dim: int, action_dim: int) -> int:
    """Return the memory of one transition [bytes]."""
    return 4 * (2 * obs_dim + action_dim + 4)


def hold_out(rows: torch.Tensor, every: int) -> torch.Tensor:
    """Return 1 for each so many-th run of rows, else 0, shape (B,).

    :param rows: numbers of the transitions in time; runs of ``RUN`` stay together, since
        neighbours are alike.
    """
    return (rows // RUN % every == every - 1).float()
