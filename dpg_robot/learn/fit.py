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

"""Fit estimators of g(s, a) hard to a fixed set of transitions and a fixed target.

The same networks and losses as in training, in two stages: first what the estimates are made of,
then the amortised gradients. Each network keeps the parameters with the least held-out loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.action_gradient import ActionGradient
from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.learner import LearnerConfig
from dpg_robot.learn.networks import RunningNorm, set_products
from dpg_robot.learn.outcome import change_and_reward
from dpg_robot.learn.replay import Batch, hold_out, RUN

NUM_STEPS = 6000
CHECK_EVERY = 250
BATCH_SIZE = 256
FINAL_RATE = 0.03
WEIGHT_DECAY = {'critic': 0.3, 'gradient': 0.3, 'denoiser': 0.0, 'model': 0.0}
RATE = 1e-3  # of critics, world model and amortised gradients
NUM_CRITICS = NUM_GRADIENTS = 4
HELD_OUT_EVERY = 10
NUM_DRAWS = 10  # of denoising noise, to average over
# What a fit has in place of the learner's settings.
SETTINGS = {'batch_size': BATCH_SIZE, 'critic_rate': RATE, 'gradient_rate': RATE,
            'num_critics': NUM_CRITICS, 'num_gradients': NUM_GRADIENTS,
            'weight_decay': WEIGHT_DECAY}
REPLACED = ('estimator', 'num_critics', 'num_gradients', 'gradient_rate', 'gradient_weight_decay',
            'denoiser_weight_decay')


def check_fit(names: Sequence[str], num_transitions: int, parts: int = 1) -> None:
    """Check that estimators can be fitted on so many transitions, or on one of as many parts.

    :raises SpecError: if a name is unknown, or there are too few transitions.
    """
    for name in names:
        if name not in ESTIMATORS:
            raise SpecError(f'estimators must be among {", ".join(ESTIMATORS)}, got {name}')
    least = parts * RUN * HELD_OUT_EVERY
    if num_transitions < least:
        raise SpecError(f'transitions must be at least {least}, so that some are held out, '
                        f'got {num_transitions}')


def fit_gradient(config: LearnerConfig, names: Sequence[str], data: Batch, policy, value,
                 seed: int, achieved_goal: tuple[int, ...] = ()
                 ) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Fit estimators to the same transitions and the same target y.

    :param names: of estimators.
    :param data: transitions, N of them in the order of time.
    :param policy: gives the normaliser of observations; ``value`` is V, from normalised
        observations: both stay as they are.
    :param achieved_goal: places of the achieved goal in the observation.
    :return: for each name a function of physical observations (n, obs_dim) and normalised
        actions (n, action_dim) that gives gradients (n, action_dim).
    :raises SpecError: if a name is unknown, or there are too few transitions.
    """
    check_fit(names, len(data.reward))
    data = data._replace(held_out=hold_out(torch.arange(len(data.reward)), HELD_OUT_EVERY))
    config = replace(config, critic_rate=RATE, gradient_rate=RATE, num_critics=NUM_CRITICS,
                     num_gradients=NUM_GRADIENTS)
    dims, fits = (data.obs.shape[1], data.action.shape[1]), {}
    for name in names:
        torch.manual_seed(seed)
        fits[name] = ActionGradient(
            replace(config, estimator=name), *dims, policy.norm, value, achieved_goal)
        set_products(fits[name], config.precision)
    set_products(value, 'float32')  # y is the same for all, and as in the truth
    outcome_norm = RunningNorm(dims[0] + 1)
    outcome_norm.update(change_and_reward(data))
    for fit in fits.values():
        fit.outcome_norm = outcome_norm
        fit.set_scale(data)
    shared: dict[tuple[str, str], torch.nn.Module] = {}
    for network in ('denoiser', 'model', 'critic', 'gradient'):
        for name, fit in fits.items():
            if getattr(fit, network) is None:
                continue
            key = network, _kind(network, name, fit)
            if key in shared:
                setattr(fit, network, shared[key])
            else:
                _fit(fit, network, data, seed)
                shared[key] = getattr(fit, network)
                if network == 'denoiser':
                    _take_moments(fit, data)
            if network == 'gradient' and fit.on_disturbance:
                _weigh(fit, data)
    return {name: fit.eval() for name, fit in fits.items()}


def _kind(network, name, fit):
    """Return what tells apart the fits of a network that cannot be shared."""
    if network == 'critic' and name == 'disturbance_critic':
        return 'of the executed action'
    if network == 'critic' and fit.weighs_action:
        return 'of the weighed action'
    return name if network == 'gradient' and not fit.on_disturbance else ''


def _fit(fit: ActionGradient, network: str, data: Batch, seed: int) -> None:
    """Train one network, the others as they are, and keep its best parameters."""
    torch.manual_seed(seed)
    module = getattr(fit, network)
    group, = (group for group in fit.parameter_groups()
              if group['params'][0] is next(module.parameters()))
    group['weight_decay'] = WEIGHT_DECAY[network]
    optimizer = torch.optim.AdamW([group], fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, NUM_STEPS, group['lr'] * FINAL_RATE)
    rows = torch.arange(len(data.reward))
    unseen, rows = _unseen(data), rows[data.held_out == 0]
    least, best = float('inf'), None
    for step in range(1, NUM_STEPS + 1):
        chosen = rows[torch.randint(len(rows), (BATCH_SIZE,))]
        loss = fit.train().losses(
            _rows(data, chosen), (network,), report=False)[0][network]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=group['params'])
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            now = _held_out_loss(fit, network, unseen)
            if now < least:
                least, best = now, [p.detach().clone() for p in group['params']]
    with torch.no_grad():
        for parameter, value in zip(group['params'], best):
            parameter.copy_(value)


def _take_moments(fit, data):
    """Take the denoiser's moments from transitions that it was not fitted to, and keep them."""
    unseen, denoiser = _unseen(data), fit.denoiser
    powers = []
    handle = denoiser.register_forward_hook(
        lambda module, args, denoised: powers.append(denoised.power))
    for draw in range(NUM_DRAWS):
        denoiser.moment_rate = 1 / (draw + 1)
        with torch.no_grad():
            # Moments follow in training mode.
            fit.train().losses(unseen, ('denoiser',), report=False)
    denoiser.moment_rate = 0.0
    handle.remove()
    # What a transition tells is its mean over the draws.
    num = len(unseen.reward)
    denoiser.follow_unseen(torch.stack(powers).mean(0), num, num)


def _weigh(fit, data):
    """Take the shares of guides and gradient from transitions that neither was fitted to."""
    unseen = _unseen(data)
    fit.eval()
    for draw in range(NUM_DRAWS):
        sample, own = fit.per_sample(unseen)
        fit.follow(sample, own, 1 / (draw + 1))


def _unseen(data):
    return _rows(data, data.held_out == 1)


def _rows(data, rows):
    return Batch(*(x[rows] for x in data))


def _held_out_loss(fit, network, unseen):
    fit.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same noise each time, so that losses can be compared
        parts = [fit.losses(Batch(*part), (network,), report=False)[0][network].item()
                 * len(part[0]) for part in zip(*(x.split(2048) for x in unseen))]
    return sum(parts)
