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

"""The pictures of a run: learning curve, latency histogram, a film of the robot."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # noqa: E402  no screen is needed
from matplotlib import pyplot as plt
import numpy as np
from PIL import Image

from dpg_robot.sim.world import make_world, WorldConfig


def draw_learning_curve(rows: list[dict], path: Path) -> None:
    """Draw success, if the task knows it, and return against environment steps.

    :param rows: the trainer's metrics, oldest first.
    """
    has_success = any(row['success'] is not None for row in rows)
    names = ('success', 'return') if has_success else ('return',)
    figure, panels = plt.subplots(len(names), sharex=True, squeeze=False,
                                  figsize=(6, 0.5 + 2 * len(names)), layout='constrained')
    for axes, what in zip(panels[:, 0], names):
        training = 'episode_return' if what == 'return' else what
        _line(axes, rows, training, 'training, with exploration', '0.6')
        # Between two evaluations, rows repeat the last one.
        news = [row for last, row in zip([{}, *rows], rows)
                if row['eval_return'] != last.get('eval_return')]
        _line(axes, news, f'eval_{what}', 'evaluation, deterministic, same noise', 'C0', 'o')
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        if what == 'success':
            axes.set_ylim(-0.03, 1.03)
    panels[0, 0].legend(loc='lower right')
    panels[-1, 0].set_xlabel('environment steps')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axes, rows, key, label, color, marker=None):
    points = [(row['env_steps'], row[key]) for row in rows if row[key] is not None]
    axes.plot(*np.array(points).reshape(-1, 2).T, label=label, color=color,
              marker=marker, markersize=4)


def draw_latency(latencies_us: np.ndarray, path: Path) -> None:
    """Draw the histogram of state-to-command latencies [us], shape (N,)."""
    figure, axes = plt.subplots(figsize=(6, 3), layout='constrained')
    p50, p99, largest = np.percentile(latencies_us, (50, 99, 100))
    limit = 1.3 * p99
    axes.hist(np.minimum(latencies_us, limit), bins=np.linspace(0, limit, 80), color='C0')
    for value, name in ((p50, 'p50'), (p99, 'p99')):
        axes.axvline(value, color='C3', linestyle='--', linewidth=1)
        axes.annotate(f' {name} {value:.0f}', (value, 0.95), color='C3', va='top',
                      xycoords=('data', 'axes fraction'))
    axes.set(xlabel=f'state stamp to command stamp [us], last bin up to {largest:.0f}',
             ylabel='commands',
             title=f'{len(latencies_us)} commands over ROS 2 topics')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def film(policy, world: WorldConfig, path: Path, seed: int, episodes: int = 4,
         steps: int = 30) -> None:
    """Film a policy in its noisy world as an animated GIF, in real time.

    :param policy: a :class:`dpg_robot.runtime.onnx_policy.OnnxPolicy`.
    :param steps: control periods to show of each episode.
    :raises Exception: whatever MuJoCo raises where it cannot draw.
    """
    env, frames = make_world(world, render_mode='rgb_array'), []
    try:
        for episode in range(episodes):
            obs, _ = env.reset(seed=seed + episode)
            for _ in range(steps):
                frames.append(Image.fromarray(env.render()).quantize(64))
                obs, *_ = env.step(policy.spec.normalised(policy(obs.astype(np.float32))))
    finally:
        env.close()
    save_film(frames, path, policy.spec.control_dt)


def save_film(frames: list[Image.Image], path: Path, period_s: float) -> None:
    """Write an animated GIF, one frame each ``period_s``."""
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0,
                   duration=round(1000 * period_s), optimize=True)
