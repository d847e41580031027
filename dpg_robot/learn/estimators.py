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

"""Per-sample estimates of g(s, a) = grad_a E[y | s, a] (docs/mathematics.md).

``y = r + gamma * (1 - terminated) * V(s')`` is the one-step target, ``a`` the denoised action,
``b(s, a)`` a baseline, ``score = grad_a log p(o | s, a)`` the denoiser's, ``h_i`` gradients of
learned functions: a critic, a model of the world. A sample's estimate is
``sum_i c_i h_i + correction``: noisy, so it is regressed on (s, a).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.linear import eliminate

MAX_LEAN = 1.5
RIDGE = 1e-3
# They tell one number, not a disturbance of each element of the action.
SCALAR_OUTCOMES = ('reward', 'value')


class Sample(NamedTuple):
    """What an estimator may use, for a batch of transitions.

    :param advantage: y - b(s, a), shape (B,).
    :param score: estimated grad_a log p(o | s, a), shape (B, action_dim).
    :param guides: the gradients h_i, shape (num_guides, B, action_dim).
    :param disturbance: xi = F^-1 score with F = E[score score^T | s, a], shape (B, action_dim):
        what the world added to the action, read from the outcome.
    :param lean: the coefficients c_i, shape (num_guides,); see :func:`best_lean`.
    :param instrument: the instrumental variable z of :func:`regression_loss`, shape (B,
        action_dim), in normalised action units; None if nothing is regressed on the disturbance.
    """

    advantage: torch.Tensor
    score: torch.Tensor
    guides: torch.Tensor
    disturbance: torch.Tensor
    lean: torch.Tensor
    instrument: torch.Tensor | None = None


def denoising(sample: Sample) -> torch.Tensor:
    """Return (y - b) score: the score-function identity, without a model or a critic."""
    return sample.advantage[:, None] * sample.score


def doubly_robust(sample: Sample) -> torch.Tensor:
    """Return (y - b - sum_i c_i h_i . xi) score, the correction to sum_i c_i h_i.

    Their sum has the mean E[(y - b) score] for any h and any c, as far as E[xi score^T] = I: then
    a critic or a model cannot bias it. If h is right, c = 1 leaves only the part of y - b that
    h . xi does not explain. A wrong score biases it as it biases :func:`denoising`.
    """
    return unexplained(sample)[:, None] * sample.score


def reinforce(sample: Sample) -> torch.Tensor:
    """Return (y - b) score + h, with the score -grad_a log p(a | s) and h = grad_a b.

    Integration by parts: over the actions that were taken in s, its mean is that of g(s, a), not
    at each a. h makes up for a baseline that depends on the action: a control variate.
    """
    return sample.advantage[:, None] * sample.score + sample.guides.sum(0)


def explained_by_guides(sample: Sample) -> torch.Tensor:
    """Return h_i . xi, what each guide makes of the disturbance, shape (num_guides, B)."""
    return (sample.guides * sample.disturbance).sum(-1)


def unexplained(sample: Sample) -> torch.Tensor:
    """Return y - b - sum_i c_i h_i . xi, shape (B,)."""
    return sample.advantage - sample.lean @ explained_by_guides(sample)


def regression_error(guess: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Return y - b - guess . xi: how far a guess of g(s, a) is from explaining a transition.

    Unlike the distance from (y - b) score, it does not take for noise what the guess explains
    already: it is its own control variate.

    :param guess: shape (num_members, B, action_dim).
    :return: shape (num_members, B).
    """
    return sample.advantage - (guess * sample.disturbance).sum(-1)


def regression_loss(guess: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Return a loss of which descent solves E[(y - b - guess . xi) z | s, a] = 0.

    With z = xi it is the square of :func:`regression_error`, and the guess E[(y - b) score], if xi
    = F^-1 score. With z = a - a_hat, the error of the answer without the outcome, an instrumental
    variable (Reiersøl 1945; docs/mathematics.md), the guess is right also where xi has errors that
    y depends on, as long as a_hat is right and E[xi score^T | s, a] = I, but rests on less. Here z
    is the mean of both.

    The loss is ``(y - b)^2 - (guess . z) (2 (y - b) - guess . xi)``, least on average where the
    equation holds, as E[xi z^T | s, a] is symmetric and positive definite if xi is right. Its
    gradient is taken as if that were so in each transition: only what the guess leaves unexplained
    moves it.

    :param guess: shape (num_members, B, action_dim).
    :return: shape (num_members, B).
    """
    error = regression_error(guess, sample).detach()
    moved, explained = (guess * sample.instrument).sum(-1), sample.advantage - error
    return sample.advantage.square() - 2 * error * moved - (explained * moved).detach()


def lean_moments(sample: Sample, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Return the moments that decide how far to lean on each guide.

    If y - b = sum_i c_i h_i . xi up to noise, the c solve ``M c = v`` with
    ``M_ij = <(h_i . w xi) (h_j . xi)>`` and ``v_i = <(h_i . w xi) (y - b)>``, for any weights w.
    With w = 1 that is least squares; but the xi of an element of the action that the outcome
    hardly depends on is large, mostly noise, and must not decide. To be averaged over batches.
    M is not symmetric: the h_i . w xi are instruments.

    :param weight: w, shape (action_dim,).
    :return: [M, v], shape (num_guides, num_guides + 1).
    """
    weighed = (weight * sample.guides * sample.disturbance).sum(-1)
    known = torch.cat([explained_by_guides(sample), sample.advantage[None]])
    return weighed @ known.T / len(sample.advantage)


def best_lean(moments: torch.Tensor) -> torch.Tensor:
    """Return the best coefficients c_i within 0 and ``MAX_LEAN``, without waiting for a device.

    Each solves its own equation with the others as they are, or is at the bound that keeps it
    from that: every choice of who is at which bound is solved at once, and the one taken that is
    least wrong. A guide whose instrument tells nothing of it, M_ii <= 0, gets nothing.

    :param moments: averages of :func:`lean_moments`, of a few guides.
    """
    matrix, covariance = moments[:, :-1].double(), moments[:, -1].double()
    useful = matrix.diagonal() > 0
    # Two guides may nearly agree; a small ridge then shares the weight between them.
    matrix = matrix + torch.diag(RIDGE * matrix.diagonal())
    axes = [torch.arange(3, device=moments.device)] * len(moments)
    choice = torch.cartesian_prod(*axes).view(-1, len(moments))  # 0 and 1: the bounds; 2: free
    choice = torch.where(useful, choice, 0)
    free, bound = choice == 2, MAX_LEAN * (choice == 1).double()
    both_free = free[:, :, None] & free[:, None, :]
    system = torch.where(both_free, matrix, torch.diag_embed((~free).double()))
    goal = torch.where(free, covariance - bound @ matrix.T, bound)
    lean = eliminate(system, goal[..., None])[..., 0]
    # Where each would go with the others as they are, and may; one that has left the box is wrong.
    wanted = lean + (covariance - lean @ matrix.T) / matrix.diagonal()
    wrong = torch.where(useful, wanted.clamp(0, MAX_LEAN) - lean, 0.0).abs().amax(-1)
    best = wrong.nan_to_num(nan=torch.inf).argmin()  # not a number where a system is singular
    return lean.index_select(0, best[None])[0].to(moments.dtype)


def check_outcome(name: str, estimator: str, outcome: str) -> None:
    """Check that the outcome tells the estimator enough.

    :param name: of the settings, for the message.
    :raises SpecError: naming the key, the rule and the value.
    """
    if estimator in ('doubly_robust', 'disturbance_critic') and outcome in SCALAR_OUTCOMES:
        raise SpecError(f'{name}.outcome must be state or achieved_goal for the estimator '
                        f'{estimator}, which reads a disturbance of each action element from '
                        f'it, got {outcome}')


def check_achieved_goal(name: str, outcome: str, achieved_goal: tuple[int, ...]) -> None:
    """Check that the outcome is something that the task has.

    :param name: of the settings, for the message.
    :param achieved_goal: places of the achieved goal in the observation.
    :raises SpecError: naming the key, the rule and the value.
    """
    if outcome == 'achieved_goal' and not achieved_goal:
        raise SpecError(f'{name}.outcome must not be achieved_goal, since the task has no '
                        'achieved goal, got achieved_goal')


class Estimator(NamedTuple):
    """How one estimator is put together.

    :param correction: its per-sample correction, shape (B, action_dim); None if it has none.
    :param leans: whether it adds sum_i c_i h_i, the gradients of its guides.
    """

    correction: Callable[[Sample], torch.Tensor] | None
    leans: bool = False


ESTIMATORS = {
    'denoising': Estimator(denoising),
    'doubly_robust': Estimator(doubly_robust, leans=True),
    'critic': Estimator(None),
    'disturbance_critic': Estimator(None),
    'model': Estimator(None),
    'discriminative': Estimator(denoising),
    'reinforce': Estimator(reinforce),
}
