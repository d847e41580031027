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

"""A training small enough for tests; other processes import this too."""

from pathlib import Path

import torch

from dpg_robot.experiment import ExperimentConfig, load_config, open_trainer

TINY = (
    'learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
    'learner.batch_size=32', 'trainer.num_worlds=2', 'trainer.warmup_steps=20',
    'trainer.log_every_steps=20', 'trainer.eval_every_steps=0', 'trainer.env_steps=200')


def tiny_config(*overrides: str) -> ExperimentConfig:
    """Return fetch_reach with tiny networks, changed by overrides."""
    return load_config('fetch_reach', [*TINY, *overrides])


def train(config: ExperimentConfig | None, run_dir: Path, resume: bool = True, **callbacks):
    """Train until done, or until a callback says so, and return the trainer."""
    trainer = open_trainer(config, run_dir, resume)
    try:
        trainer.run(**callbacks)
    finally:
        trainer.close()
    return trainer


def stop_after(num_rounds: int):
    """Return a ``should_stop`` that lets a number of rounds pass."""
    rounds = iter([False] * num_rounds)
    return lambda: next(rounds, True)


def parameters_of(trainer) -> dict[str, torch.Tensor]:
    """Return every tensor that learning changes, of networks and optimiser, by name."""
    tensors = dict(trainer.learner.state_dict())
    for index, state in trainer.learner.optimizer.state_dict()['state'].items():
        tensors |= {f'optimizer.{index}.{name}': value for name, value in state.items()}
    return tensors


def assert_same_parameters(one, other) -> None:
    """Check two trainers for equality to the bit."""
    first, second = parameters_of(one), parameters_of(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
