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

"""dpg-robot tasks, a table of all, and dpg-robot view, one with and without its noise."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import dataclass, replace
import math
import multiprocessing
import os
from pathlib import Path
import time

import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

FILM_RATE_HZ = 25.0
STRIP_PICTURES = 8


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``tasks`` and ``view`` to the command line; what they need is imported when they run."""
    tasks = commands.add_parser('tasks', help='list the tasks that come with the package')
    tasks.set_defaults(run=lambda options: print(task_table()))
    parser = commands.add_parser('view', help='watch a task with and without its noise')
    parser.add_argument('task', help='a task, such as fetch_reach, or a YAML file')
    parser.add_argument('--model', type=Path, help='an exported policy; without, see --policy')
    parser.add_argument('--policy', choices=('random', 'zero'), default='random')
    parser.add_argument('--seconds', type=float, default=4.0,
                        help='to simulate (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change the world: noise.actuator=0.2')
    parser.add_argument('--output', type=Path, help='a .gif, or a .png with some pictures of it '
                        '(default: two windows, or TASK.gif where there is no screen)')
    parser.set_defaults(run=lambda options: view(View(
        options.task, tuple(options.set), options.model, options.policy, options.seconds,
        options.seed), options.output))


@dataclass(frozen=True)
class View:
    """What to look at.

    :param task: name of a task, or a YAML file.
    :param overrides: changes to its world, such as ``noise.actuator=0.2``.
    :param model: an exported policy, to act in this world, whichever it was trained in; without,
        ``policy`` is 'random' or 'zero'.
    :param seconds: simulated time to show [s].
    """

    task: str
    overrides: tuple[str, ...] = ()
    model: Path | None = None
    policy: str = 'random'
    seconds: float = 4.0
    seed: int = 0

    def open(self, noisy: bool, render_mode: str | None = None):
        """Return the world, with or without its noise, and what acts in it.

        :raises SpecError: if the task, an override or the model is wrong, or the model has been
            trained for something else.
        """
        from dpg_robot.experiment import check_world, load_config
        from dpg_robot.sim.noise import NoiseConfig
        from dpg_robot.sim.world import make_world
        config = load_config(self.task, [
            f'world.{change.removeprefix("world.")}' for change in self.overrides]).world
        policy = None
        if self.model:
            from dpg_robot.runtime.onnx_policy import OnnxPolicy
            policy = OnnxPolicy(self.model)
            if policy.spec.task != config.task:
                raise SpecError(f'{self.model} must be a policy for {config.task}, got one for '
                                f'{policy.spec.task}')
            check_world(policy.spec, config)
        world = make_world(config if noisy else replace(config, noise=NoiseConfig()), render_mode)
        return world, self._actor(world.policy_spec, policy)

    def _actor(self, spec: PolicySpec, policy) -> Callable[[np.ndarray], np.ndarray]:
        if policy:
            return lambda obs: policy.spec.normalised(policy(obs.astype(np.float32)))
        # The same actions in both worlds, so that only the noise differs.
        rng, most = np.random.default_rng(self.seed), float(self.policy == 'random')
        return lambda obs: rng.uniform(-most, most, spec.action_dim)

    def steps(self, world, act) -> Iterator[None]:
        """Run episodes one after the other, and stop before each step."""
        obs, _ = world.reset(seed=self.seed)
        for _ in range(math.ceil(self.seconds * world.policy_spec.control_rate_hz)):
            yield
            obs, _, terminated, truncated, _ = world.step(act(obs))
            if terminated or truncated:
                obs, _ = world.reset()


def view(what: View, output: Path | None = None) -> None:
    """Show a task with and without its noise, side by side.

    :param output: a .gif or a .png; without, two windows, or TASK.gif where there is no screen.
    :raises SpecError: if ``what`` is wrong, or nothing can be drawn here.
    """
    if not 0 < what.seconds < math.inf:
        raise SpecError(f'--seconds must be greater than 0 and finite, got {what.seconds}')
    if what.seed < 0:
        raise SpecError(f'--seed must be at least 0, got {what.seed}')
    if output is None and (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        _show_both(what)
        return
    output = output or Path(f'{Path(what.task).stem}.gif')
    if output.suffix not in ('.gif', '.png'):
        raise SpecError(f'--output must end in .gif or .png, got {output}')
    frames, period_s = _draw(what)
    from dpg_robot.report import save_film
    if output.suffix == '.gif':
        save_film([frame.quantize(128) for frame in frames], output, period_s)
        print(f'wrote {output}: with noise on the left, without on the right')
    else:
        some = np.linspace(0, len(frames) - 1, min(len(frames), STRIP_PICTURES)).astype(int)
        _strip([frames[i] for i in some]).save(output)
        print(f'wrote {output}: with noise above, without below')


def _draw(what):
    """Return pictures of both worlds, and the time between two [s]."""
    from PIL import Image
    os.environ.setdefault('MUJOCO_GL', _offscreen())
    if os.environ['MUJOCO_GL'] == 'disable':
        raise SpecError('a picture must be drawn by EGL or OSMesa, but neither is installed '
                        '(on Ubuntu: sudo apt install libegl1 libgl1-mesa-dri)')
    runs = [(world, what.steps(world, act)) for world, act in (
        what.open(noisy, 'rgb_array') for noisy in (True, False))]
    rate = runs[0][0].policy_spec.control_rate_hz
    every, frames = max(1, round(rate / FILM_RATE_HZ)), []
    try:
        for step, _ in enumerate(zip(*(steps for _, steps in runs))):
            if step % every == 0:
                frames.append(Image.fromarray(np.hstack([_picture(world) for world, _ in runs])))
    finally:
        for world, _ in runs:
            world.close()
    return frames, every / rate


def _offscreen():
    libraries = {'egl': 'EGL', 'osmesa': 'OSMesa'}
    return next((name for name, library in libraries.items() if find_library(library)), 'disable')


def _picture(world):
    try:
        return world.render()
    except Exception as error:  # whatever the driver says
        raise SpecError('MuJoCo can draw no picture here with MUJOCO_GL='
                        f'{os.environ["MUJOCO_GL"]}: {" ".join(str(error).split())}') from error


def _strip(frames):
    """Return one picture: below each other the two worlds, time from left to right."""
    from PIL import Image
    rows = [np.hstack([np.hsplit(np.asarray(frame), 2)[half] for frame in frames])
            for half in (0, 1)]
    return Image.fromarray(np.vstack(rows))


def _show_both(what):
    other = multiprocessing.get_context('spawn').Process(target=_show, args=(what, False))
    other.start()
    try:
        _show(what, True)
        other.join()
    finally:
        other.terminate()


def _show(what, noisy):
    """Show a world in a window of its own, in real time, until that is closed."""
    from mujoco import viewer as mujoco_viewer
    world, act = what.open(noisy)
    task = world.unwrapped
    with mujoco_viewer.launch_passive(task.sim.model, task.sim.data) as viewer:
        viewer.set_texts((None, None, 'with noise' if noisy else 'without noise', ''))
        due_s = time.monotonic()
        for _ in what.steps(world, act):
            if not viewer.is_running():
                break
            state = task.state
            task.show_goal(viewer.user_scn)
            viewer.sync()
            task.state = state
            due_s += world.policy_spec.control_dt
            time.sleep(max(0.0, due_s - time.monotonic()))


def task_table() -> str:
    """Return a table of all tasks: sizes, rates, and the messages that they speak."""
    from dpg_robot.sim.tasks import TASKS
    head = ('task', 'obs_dim', 'action_dim', 'eps_dim', 'rate [Hz]', 'steps', 'goal', 'reward',
            'reads', 'commands')
    rows = [head, *(_row(name, entry) for name, entry in TASKS.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in rows]
    return '\n'.join([lines[0], '  '.join('-' * width for width in widths), *lines[1:]])


def _row(name, entry):
    reward = 'dense, sparse' if entry.has_sparse else 'dense'
    task = entry.make if entry.needs_robot else entry.make()
    goal = 'yes' if hasattr(task, 'goal_reward') else 'no'
    if entry.needs_robot:
        return name, *['*'] * 5, goal, reward, '*', "* as the robot's YAML says"
    spec = task.policy_spec
    return (name, str(spec.obs_dim), str(spec.action_dim), str(spec.eps_dim),
            f'{spec.control_rate_hz:g}', str(task.episode_steps), goal, reward,
            *(_types(terms) for terms in (spec.observation, spec.action)))


def _types(terms):
    return ', '.join(dict.fromkeys(term.type.rpartition('/')[2] for term in terms))
