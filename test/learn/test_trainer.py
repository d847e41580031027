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

"""The trainer: what it remembers, what it reports, and that it can stop and go on anywhere."""

from dataclasses import asdict
import json
import logging
import math
import re
import shutil

import numpy as np
import pytest
from small_training import (
    assert_same_parameters,
    parameters_of,
    stop_after,
    tiny_config,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import torch
import yaml

from dpg_robot import experiment
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import open_trainer
from dpg_robot.learn import off_policy as module
from dpg_robot.learn.checkpoint import load_checkpoint, save_checkpoint
from dpg_robot.learn.learner import Learner
from dpg_robot.learn.off_policy import MIN_NEW, OffPolicy
from dpg_robot.learn.replay import Replay, RUN
from dpg_robot.learn.run_log import Progress, RunLog

EVALUATED = ('trainer.eval_every_steps=100', 'trainer.eval_episodes=1')


@pytest.fixture(scope='module')
def progresses():
    """Return what the run of :func:`whole` reported."""
    return []


@pytest.fixture(scope='module')
def whole(tmp_path_factory, progresses):
    """Return a finished training with evaluations."""
    return train(tiny_config(*EVALUATED), tmp_path_factory.mktemp('whole'),
                 on_progress=progresses.append)


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]


def test_replay_holds_the_true_last_observation(tmp_path, monkeypatch):
    """Episodes last 50 steps; the observation after the 50th is that of the old episode."""
    batches = []
    add = Replay.add
    monkeypatch.setattr(Replay, 'add', lambda self, batch: (batches.append(batch),
                                                            add(self, batch)))
    trainer = open_trainer(tiny_config('trainer.env_steps=104'), tmp_path, resume=False)
    resets, finals = [], []
    envs = trainer.worlds.envs
    step = envs.step

    def watch(action):
        obs, reward, terminated, truncated, info = step(action)
        if truncated.any():
            assert truncated.all() and not terminated.any()
            resets.append(obs.copy())
            finals.append(np.stack(info['final_obs']))
        return obs, reward, terminated, truncated, info
    monkeypatch.setattr(envs, 'step', watch)
    trainer.run()
    assert len(batches) == 52 and len(resets) == 1
    last = batches[49]
    torch.testing.assert_close(last.next_obs, torch.tensor(finals[0], dtype=torch.float32),
                               rtol=0, atol=0)
    # The goal (the last three elements) is that of the episode; a reset draws another.
    assert torch.equal(last.next_obs[:, 6:], last.obs[:, 6:])
    assert not torch.equal(last.next_obs, torch.tensor(resets[0], dtype=torch.float32))
    assert not last.terminated.any()
    # The next transition begins where the reset left the worlds.
    assert torch.equal(batches[50].obs, torch.tensor(resets[0], dtype=torch.float32))
    for before, after in zip(batches[:49], batches[1:50]):
        assert torch.equal(before.next_obs, after.obs)


def test_evaluation_moves_no_random_state(whole, tmp_path):
    other = train(tiny_config(), tmp_path)
    assert_same_parameters(whole, other)
    assert torch.equal(whole.algorithm.replay.data.obs, other.algorithm.replay.data.obs)
    assert whole.last_eval is not None and other.last_eval is None


def test_another_seed_gives_other_parameters(whole, tmp_path):
    other = train(tiny_config('trainer.seed=1'), tmp_path)
    name = 'policy.net.weight0'
    assert not torch.equal(parameters_of(whole)[name], parameters_of(other)[name])


@pytest.mark.parametrize('num_rounds', [
    3,   # before learning began
    25,  # in the middle of an episode, between two checkpoints
    50,  # at the end of an episode
    99])
def test_stopped_and_resumed_equals_uninterrupted(whole, tmp_path, num_rounds):
    config = tiny_config(*EVALUATED)
    stopped = train(config, tmp_path, should_stop=stop_after(num_rounds))
    assert stopped.env_steps == 2 * num_rounds and not stopped.finished
    resumed = train(config, tmp_path)
    assert resumed.finished
    assert_same_parameters(whole, resumed)
    assert resumed.last_eval == whole.last_eval
    times = ('steps_per_second', 'remaining_s', 'train_seconds')
    for ours, theirs in zip(rows_of(tmp_path), rows_of(whole.run_dir), strict=True):
        assert {k: v for k, v in ours.items() if k not in times} == \
            {k: v for k, v in theirs.items() if k not in times}


def test_processes_for_the_worlds_change_nothing(whole, tmp_path):
    stopped = train(tiny_config(*EVALUATED, 'trainer.workers=2'), tmp_path,
                    should_stop=stop_after(20))
    assert not stopped.finished
    assert_same_parameters(whole, train(tiny_config(*EVALUATED), tmp_path))


def test_a_finished_training_can_be_extended(whole, tmp_path):
    extended = tmp_path / 'extended'
    train(tiny_config('trainer.env_steps=100'), extended)
    assert_same_parameters(whole, train(tiny_config('trainer.env_steps=200'), extended))
    with pytest.raises(SpecError, match='^trainer.env_steps must be at least 200, the steps '
                       'already taken in .*/extended, got 100$'):
        open_trainer(tiny_config('trainer.env_steps=100'), extended, resume=True)
    # The refusal has changed nothing.
    assert open_trainer(None, extended, resume=True).finished


@pytest.mark.parametrize('override, message', [
    ('trainer.seed=5', r'^trainer.seed must be 0, as the training in .* began with, got 5$'),
    ('learner.sigma=0.5', r'^learner.sigma must be 0.2, as the training in .*, got 0.5$'),
    ('learner.hidden=[8]', r'^learner.hidden must be \[16\], as the training in .*, got \[8\]$'),
    ('world.noise.actuator=0', r'^world.noise.actuator must be 0.3, as .*, got 0.0$'),
    ('world.noise.observation={goal_position: 0.1}',
     r'^world.noise.observation.goal_position must be None, as .*, got 0.1$')])
@pytest.mark.parametrize('has_config_file', [True, False])
def test_another_config_is_refused(whole, tmp_path, override, message, has_config_file):
    for name in ('checkpoint.pt', 'metrics.jsonl', 'config.yaml')[:3 if has_config_file else 2]:
        (tmp_path / name).write_bytes((whole.run_dir / name).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SpecError, match=message):
        open_trainer(tiny_config(*EVALUATED, override), tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_progress(whole, progresses):
    assert [p.env_steps for p in progresses] == list(range(20, 201, 20))
    assert all(p.total_steps == 200 for p in progresses)
    # One update for each two steps, from the end of the warm-up, at step 20, on.
    assert [p.updates for p in progresses] == [1 + 10 * i for i in range(10)]
    first, last = progresses[0], progresses[-1]
    assert math.isnan(first.episode_return) and math.isnan(first.eval_success)
    assert first.remaining_s > 0 and last.remaining_s == 0
    assert all(p.steps_per_second > 0 for p in progresses)
    # Minus the distance [m] over 50 steps: the arm can reach about a metre.
    assert -50 < last.episode_return < 0 and -50 < last.eval_return < 0
    assert 0 <= last.success <= 1 and 0 <= last.eval_success <= 1
    assert last.eval_return == whole.last_eval['return_mean']
    assert len(whole.worlds.recent) == 4  # 200 steps make four episodes of 50
    assert last.episode_return == np.mean([total for total, _ in whole.worlds.recent])


def test_rows_of_metrics(whole, progresses):
    rows = rows_of(whole.run_dir)
    assert [row['env_steps'] for row in rows] == [p.env_steps for p in progresses]
    for row, progress in zip(rows, progresses):
        for name, value in asdict(progress).items():
            assert row[name] == (value if math.isfinite(value) else None)
    assert rows[0]['episode_return'] is None
    assert rows[-1]['train_seconds'] > rows[1]['train_seconds'] > 0
    assert {'loss/policy', 'loss/denoiser', 'policy/entropy'} <= set(rows[-1])


def test_curves_in_tensorboard(whole, progresses):
    events = EventAccumulator(str(whole.run_dir / 'tensorboard')).Reload()
    tags = events.Tags()['scalars']
    assert {f'training/{name}' for name in Progress.__dataclass_fields__} <= set(tags)
    scalars = events.Scalars('training/episode_return')
    assert [event.step for event in scalars] == [p.env_steps for p in progresses]
    for event, progress in zip(scalars, progresses):
        assert event.value == pytest.approx(progress.episode_return, rel=1e-6, nan_ok=True)
    losses = events.Scalars('loss/policy')
    assert losses[-1].value == pytest.approx(rows_of(whole.run_dir)[-1]['loss/policy'], rel=1e-6)


def test_curves_go_on_where_a_training_was_stopped(tmp_path):
    train(tiny_config(), tmp_path, should_stop=stop_after(20))  # at a step that was logged
    train(tiny_config(), tmp_path)
    steps = [row['env_steps'] for row in rows_of(tmp_path)]
    assert steps == list(range(20, 201, 20))
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert [event.step for event in events.Scalars('training/updates')] == steps


def test_rows_after_the_last_checkpoint_are_forgotten(whole, tmp_path):
    for name in ('checkpoint.pt', 'config.yaml'):
        (tmp_path / name).write_bytes((whole.run_dir / name).read_bytes())
    text = (whole.run_dir / 'metrics.jsonl').read_text()
    # A killed run: a whole row too many, then one cut short.
    (tmp_path / 'metrics.jsonl').write_text(text + '{"env_steps": 220}\n{"env_steps": 24')
    train(None, tmp_path)
    assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_an_exception_keeps_the_last_checkpoint(tmp_path, whole):
    config = tiny_config(*EVALUATED, 'trainer.checkpoint_every_steps=40')

    def fail_at(progress):
        if progress.env_steps >= 100:
            raise RuntimeError('out of luck')
    with pytest.raises(RuntimeError, match='out of luck'):
        train(config, tmp_path, on_progress=fail_at)
    trainer = open_trainer(None, tmp_path, resume=True)
    assert trainer.env_steps == 80
    trainer.run()
    assert_same_parameters(whole, trainer)


def test_a_log_that_cannot_be_written_costs_no_training(tmp_path, whole, monkeypatch):
    def full(log, progress, metrics):
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(RunLog, 'write', full)
        train(tiny_config(*EVALUATED), tmp_path)
    trainer = open_trainer(None, tmp_path, resume=True)
    assert 0 < trainer.env_steps < whole.env_steps
    trainer.run()
    assert_same_parameters(whole, trainer)


@pytest.mark.parametrize('at, message', [
    (0, 'the actions of the policy'), (1, 'the actions of the policy'),
    (2, r'the parameters policy\..*')])
def test_a_training_that_has_diverged_says_so_and_keeps_the_last_checkpoint(
        whole, tmp_path, at, message):
    """Whether a step, an evaluation or a checkpoint comes first behind it."""
    shutil.copytree(whole.run_dir, tmp_path / 'run')
    config = tiny_config(*EVALUATED, f'trainer.env_steps={whole.config.env_steps + 100}')
    trainer = open_trainer(config, tmp_path / 'run', resume=True)
    before = trainer.checkpoint_path.read_bytes()
    act = (trainer.round, lambda: trainer.evaluate(1), trainer.save)[at]
    with torch.no_grad():
        next(trainer.learner.policy.parameters()).fill_(math.nan)
    with pytest.raises(SpecError, match=f'^{message} must be finite, got nan for '
                                        r'\d+ of \d+: the training has diverged, and '):
        act()
    assert trainer.checkpoint_path.read_bytes() == before
    trainer.close()


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    first = open_trainer(tiny_config(), tmp_path, resume=True)
    second = open_trainer(tiny_config(), tmp_path, resume=True)
    asked = []

    def start_the_second():
        if not asked:
            asked.append(True)
            with pytest.raises(SpecError, match='must have one training at a time'):
                second.run()
        return len(asked) > 1
    assert first.run(should_stop=start_the_second)
    assert asked


@pytest.mark.parametrize('begun', [False, True])
def test_what_another_training_did_meanwhile_is_not_lost(tmp_path, begun):
    if begun:
        train(tiny_config(), tmp_path, should_stop=stop_after(30))
    late = open_trainer(tiny_config(), tmp_path, resume=True)
    train(tiny_config(), tmp_path)
    with pytest.raises(SpecError, match='^.*checkpoint.pt must be the one that this training '
                       'began with, and another process has written it since: open it anew$'):
        late.run()
    assert open_trainer(tiny_config(), tmp_path, resume=True).env_steps == 200
    assert rows_of(tmp_path)[-1]['env_steps'] == 200


def test_a_training_goes_on_behind_its_own_checkpoint(whole, tmp_path):
    trainer = open_trainer(tiny_config(*EVALUATED), tmp_path, resume=True)
    trainer.run(should_stop=stop_after(30))
    assert trainer.run()
    assert_same_parameters(whole, trainer)


def test_a_run_of_an_earlier_version_goes_on(whole, tmp_path):
    train(tiny_config(*EVALUATED), tmp_path, should_stop=stop_after(30))
    config = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    state = load_checkpoint(tmp_path / 'checkpoint.pt')
    for identity in config, state['identity']:  # a key that came later, at its default
        del identity['learner']['weigh_action']
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    save_checkpoint(tmp_path / 'checkpoint.pt', state)
    with pytest.raises(SpecError, match='^learner.weigh_action must be False, as the training'):
        open_trainer(tiny_config(*EVALUATED, 'learner.weigh_action=true'), tmp_path, resume=True)
    assert_same_parameters(whole, train(None, tmp_path))


def test_a_training_too_short_to_learn_says_so(tmp_path, caplog):
    train(tiny_config('trainer.env_steps=18'), tmp_path)
    assert caplog.messages == [
        'trainer.env_steps must be at least trainer.warmup_steps (20), and so many that '
        'trainer.updates_per_step makes one update of them, to learn anything, got 18']


def test_training_worlds_are_not_those_of_an_evaluation(tmp_path, monkeypatch):
    """Evaluations count up from round numbers; a training's seed must not lead there."""
    seen = []
    make = experiment.make_vector

    def watch(*arguments):
        envs = make(*arguments)
        reset = envs.reset
        monkeypatch.setattr(envs, 'reset', lambda seed: seen.extend(seed) or reset(seed=seed))
        return envs
    monkeypatch.setattr(experiment, 'make_vector', watch)
    for seed in (0, 100, 200, 300):
        open_trainer(tiny_config(f'trainer.seed={seed}'), tmp_path / str(seed), False).close()
    assert len(set(seen)) == 8
    assert not any(1e6 * k <= seed < 1e6 * k + 1000 for seed in seen for k in (1, 2, 3))


def hold_out_more(monkeypatch):
    """Hold out every third run, so that a short training has something to measure."""
    monkeypatch.setattr(module, 'HELD_OUT_EVERY', 3)
    monkeypatch.setattr(module, 'MIN_HELD_OUT', 10)


def test_looking_at_held_out_transitions_does_not_change_a_training(tmp_path, monkeypatch):
    hold_out_more(monkeypatch)
    looking = train(tiny_config(), tmp_path / 'looking')
    rows = [row for row in rows_of(tmp_path / 'looking') if 'held_out/loss/critic' in row]
    assert len(rows) >= 4
    assert {'held_out/loss/denoiser', 'held_out/score/explained',
            'held_out/gradient/calibration'} <= rows[-1].keys()
    monkeypatch.setattr(OffPolicy, 'measure', lambda self: {})
    blind = train(tiny_config(), tmp_path / 'blind')
    assert not any('held_out/loss/critic' in row for row in rows_of(tmp_path / 'blind'))
    assert_same_parameters(looking, blind)


def test_held_out_transitions_are_measured_and_never_learned_from(tmp_path, monkeypatch):
    hold_out_more(monkeypatch)
    trainer = open_trainer(tiny_config(), tmp_path, resume=False)
    learned, measured = [], []
    update, measure = trainer.learner.update, trainer.learner.measure
    monkeypatch.setattr(trainer.learner, 'update',
                        lambda batch, report: (learned.append(batch), update(batch, report))[1])
    monkeypatch.setattr(trainer.learner, 'measure',
                        lambda batch: (measured.append(batch), measure(batch))[1])
    trainer.run()
    assert learned and all((batch.held_out == 0).all() for batch in learned)
    assert measured and all((batch.held_out == 1).all() for batch in measured)
    assert all(len(batch.held_out) == 32 for batch in learned)


def test_only_rounds_that_are_logged_are_asked_for_scalars(tmp_path, monkeypatch):
    trainer, asked = open_trainer(tiny_config(), tmp_path, resume=False), {}
    update = trainer.learner.update

    def spied(batch, report):
        asked.setdefault(trainer.env_steps + trainer.algorithm.steps_per_round, set()).add(report)
        return update(batch, report)
    monkeypatch.setattr(trainer.learner, 'update', spied)
    trainer.run()
    logged = {row['env_steps'] for row in rows_of(tmp_path) if 'loss/critic' in row}
    assert len(logged) > 5
    assert asked == {step: {step in logged} for step in asked}


def test_what_is_held_out_follows_time_and_worlds(tmp_path, monkeypatch):
    hold_out_more(monkeypatch)
    trainer = train(tiny_config(), tmp_path)
    held_out = trainer.algorithm.replay.data.held_out[:200].reshape(100, 2)
    assert (held_out[:RUN] == torch.tensor([0.0, 0.0])).all()
    assert (held_out[RUN:] == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize('num_worlds, updates_per_step, capacity, num_new', [
    (1, 0.5, 1000, MIN_NEW), (1, 2, 1000, MIN_NEW), (5, 0.2, 1000, 35), (40, 0.1, 1000, 40),
    (1, 0.5, 30, 15), (1, 1, 1, 1)])
def test_what_is_new_is_seen_once_and_before_it_is_learned_from(
        tmp_path, monkeypatch, num_worlds, updates_per_step, capacity, num_new):
    observe, update, shown, seen, order = Learner.observe, Learner.update, [], set(), ''

    def watched_observe(self, batch):
        nonlocal order
        order += 'n'
        shown.append(batch.obs)
        seen.update(map(tuple, batch.obs.tolist()))
        observe(self, batch)

    def watched_update(self, batch, report):
        nonlocal order
        order += 'u'
        assert seen.issuperset(map(tuple, batch.obs.tolist()))
        return update(self, batch, report)
    monkeypatch.setattr(Learner, 'observe', watched_observe)
    monkeypatch.setattr(Learner, 'update', watched_update)
    collect, collected = OffPolicy._collect, []
    monkeypatch.setattr(OffPolicy, '_collect', lambda self, env_steps: (
        collected.append(self.worlds.obs.clone()), collect(self, env_steps)))
    steps = 70 + 5 * num_new
    train(tiny_config(f'trainer.num_worlds={num_worlds}', f'trainer.env_steps={steps}',
                      'trainer.warmup_steps=70',
                      f'trainer.replay_capacity={max(capacity, num_worlds)}',
                      f'trainer.updates_per_step={updates_per_step}'), tmp_path)
    num_first = order.index('u')  # until learning begins, at once
    assert num_first and {len(obs) for obs in shown[:num_first]} == {num_worlds}
    assert len(shown) > num_first + 2 and {len(obs) for obs in shown[num_first:]} == {num_new}
    shown, collected = torch.cat(shown), torch.cat(collected)
    assert torch.equal(shown, collected[:len(shown)])
    assert len(collected) - len(shown) < num_new


def test_what_is_new_and_not_yet_seen_is_resumed(tmp_path):
    config = tiny_config('trainer.num_worlds=1', 'trainer.env_steps=100',
                         'trainer.updates_per_step=0.25')
    stopped = train(config, tmp_path / 'parts', should_stop=stop_after(62))
    assert stopped.algorithm.state_dict()['num_new'] > 1
    assert_same_parameters(
        train(config, tmp_path / 'whole'), train(config, tmp_path / 'parts'))


@pytest.mark.parametrize('stop_rounds', [0, 61])
def test_rounds_without_an_update_log_the_newest_one(tmp_path, caplog, stop_rounds):
    """With half an update a step, updates and logged steps may never meet; nor be resumed so."""
    config = tiny_config('trainer.num_worlds=1', 'trainer.updates_per_step=0.5',
                         'trainer.env_steps=100', 'learner.sigma=5')
    if stop_rounds:
        train(config, tmp_path, should_stop=stop_after(stop_rounds))
    with caplog.at_level(logging.WARNING, 'dpg_robot'):
        train(config, tmp_path)
    rows = rows_of(tmp_path)
    assert [row['env_steps'] for row in rows] == [20, 40, 60, 80, 100]
    assert all(math.isfinite(row['loss/critic']) for row in rows[1:])
    assert [text for text in caplog.messages if 'exploration must be' in text]


def test_a_narrow_exploration_is_reported_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, 'dpg_robot'):
        # A slow denoiser: the spread stays where it begins, at a tenth of sigma.
        train(tiny_config('learner.sigma=5.0', 'learner.denoiser_rate=1e-6'), tmp_path / 'narrow')
    narrow = [row['exploration/spread_over_sigma'] for row in rows_of(tmp_path / 'narrow')[1:]]
    assert max(narrow) < 0.25
    told = [record.getMessage() for record in caplog.records if 'exploration' in record.message]
    assert len(told) == 1
    assert re.match(r'exploration must be at least 0.25 of learner.sigma \(5\).*, got 0\.[01]',
                    told[0])
    caplog.clear()
    with caplog.at_level(logging.WARNING, 'dpg_robot'):
        train(tiny_config('learner.sigma=0.2'), tmp_path / 'wide')
        train(tiny_config('learner.estimator=critic'), tmp_path / 'critic')
    assert not [record for record in caplog.records if 'exploration' in record.message]
