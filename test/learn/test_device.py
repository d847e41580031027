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

"""Training on a device: nothing waits, nothing is lost, and mistakes are named."""

import gc
import itertools
import json
import math
from pathlib import Path
import subprocess
import sys
import time
from unittest import mock

from bandit_worlds import BanditsOnDevice, BanditsOnHost, LAST, mode_error
import pytest
from small_training import assert_same_parameters, stop_after, tiny_config, train
import torch
from waiting import never_waiting

from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import export_run, load_config, open_trainer
from dpg_robot.learn import device as module
from dpg_robot.learn.device import Captured, check_memory, find_device
from dpg_robot.learn.estimators import ESTIMATORS
from dpg_robot.learn.learner import LearnerConfig
from dpg_robot.learn.on_policy_learner import OnPolicyConfig
from dpg_robot.learn.trainer import Trainer, TrainerConfig
from dpg_robot.learn.worlds import DeviceVector
from dpg_robot.runtime.onnx_policy import OnnxPolicy

TINY = ('on_policy.hidden=[16]', 'on_policy.denoiser_hidden=[16]', 'on_policy.horizon=8',
        'on_policy.minibatches=2', 'trainer.num_worlds=2', 'trainer.env_steps=128',
        'trainer.log_every_steps=32', 'trainer.eval_every_steps=64', 'trainer.eval_episodes=1')
ALGORITHMS = {'off_policy': LearnerConfig, 'on_policy': OnPolicyConfig}
NETS = {'hidden': (32,), 'denoiser_hidden': (32,)}


def make_trainer(tmp_path, algorithm='off_policy', device='warp_cpu', learner=(), **settings):
    """Train in bandits, with a tiny learner; ``learner`` are changes of its settings."""
    kind = BanditsOnHost if device == 'cpu' else BanditsOnDevice
    config = TrainerConfig(**{
        'algorithm': algorithm, 'device': device, 'num_worlds': 64, 'env_steps': 10**6,
        'warmup_steps': 128, 'updates_per_step': 1 / 64, 'eval_every_steps': 0,
        'log_every_steps': 64} | settings)
    more = {'gradient_hidden': (32,)} if algorithm == 'off_policy' else {'horizon': LAST,
                                                                          'minibatches': 2}
    learner = ALGORITHMS[algorithm](**NETS | more | {'gamma': 0.9} | dict(learner))
    return Trainer(config, learner, kind(config.num_worlds), BanditsOnHost(4), tmp_path, {})


def test_what_waits_is_found():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    place = torch.tensor(1)
    for waits in (
            lambda: x[0].item(), lambda: x[mask], lambda: mask.nonzero(), lambda: float(x[1]),
            lambda: 1 if x[0] > 0 else 0, lambda: x[place], lambda: torch.tensor([1.0]),
            lambda: x.numpy(), lambda: x.tolist(), lambda: torch.equal(x, x), lambda: x[[0, 1]],
            lambda: x.unique(), lambda: torch.randperm(3),
            lambda: torch.linalg.solve(torch.eye(4), x)):
        with pytest.raises(AssertionError, match='waits for the device'), never_waiting():
            waits()
    with never_waiting():
        assert torch.where(mask, x, 0.0).sum().shape == ()


LEARNERS = [
    *(('off_policy', {'estimator': name}) for name in ESTIMATORS),
    ('off_policy', {'estimator': 'doubly_robust', 'lean_on': 'both', 'sigma_ratio': 2.0,
                    'drift': 0.1, 'outcome': 'achieved_goal'}),
    ('off_policy', {'route': 'inverted'}),
    ('off_policy', {'weigh_action': True}),
    ('off_policy', {'soft_value': True, 'value_samples': 2}),
    *(('on_policy', {'estimator': name}) for name in (
        'denoising', 'doubly_robust', 'critic', 'reinforce')),
    ('on_policy', {'outcome': 'achieved_goal', 'target_entropy': -1.0, 'corrected': True})]


@pytest.mark.parametrize('algorithm, learner', LEARNERS)
def test_a_round_never_waits(tmp_path, algorithm, learner):
    trainer = make_trainer(tmp_path, algorithm, learner=learner)
    for _ in range(4):  # acting at random, the first updates
        with never_waiting():
            trainer.round()
    assert trainer.updates >= 2


@pytest.fixture(scope='module')
def without_values():
    """Return what went wrong with each learner on a device that is not there."""
    result = subprocess.run([sys.executable, Path(__file__).with_name('fake_device.py')],
                            capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize('number, algorithm, learner',
                         [(i, *each) for i, each in enumerate(LEARNERS)])
@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU shows it itself')
def test_all_of_a_round_is_on_the_device(without_values, number, algorithm, learner):
    assert without_values[number] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU shows it itself')
def test_what_is_not_on_the_device_would_be_found(without_values):
    of_the_host, looks, number, copied = without_values[len(LEARNERS):]
    assert 'a tensor of the host' in of_the_host and 'a tensor of the host' in number
    assert looks.startswith('DataDependentOutputException')
    assert 'a tensor of the host' in copied


@pytest.mark.parametrize('algorithm', ALGORITHMS)
def test_a_round_in_worlds_of_a_device_never_waits(tmp_path, algorithm):
    trainer = open_trainer(reacher(algorithm, 'trainer.warmup_steps=4'), tmp_path, resume=False)
    trainer.round()  # kernels are compiled
    for _ in range(3 if algorithm == 'off_policy' else 1):
        with never_waiting():
            trainer.round()
    assert trainer.updates
    trainer.close()


@pytest.mark.parametrize('device', ['cpu', 'warp_cpu'])
@pytest.mark.parametrize('algorithm', ALGORITHMS)
def test_a_policy_is_learned_either_way_and_anywhere(tmp_path, algorithm, device):
    rates = {'policy_rate': 5e-3, 'denoiser_rate': 5e-3, 'temperature': 0.01, 'min_std': 0.2}
    more = {'critic_rate': 3e-3, 'gradient_rate': 3e-3} if algorithm == 'off_policy' \
        else {'value_rate': 5e-3, 'num_epochs': 2}
    trainer = make_trainer(tmp_path, algorithm, device, rates | more, num_worlds=128,
                           updates_per_step=2 / 128)
    errors = []
    for _ in range(150):
        trainer.round()
        errors.append(mode_error(trainer.learner.policy))
    assert errors[0] > 0.3 and sum(errors[-30:]) / 30 < 0.15, (errors[0], errors[-30:])


def reacher(algorithm, *overrides):
    return load_config('reacher', [
        *TINY, 'trainer.device=warp_cpu', f'trainer.algorithm={algorithm}',
        'learner.hidden=[16]', 'learner.denoiser_hidden=[16]', 'learner.gradient_hidden=[16]',
        'learner.batch_size=16', 'trainer.warmup_steps=16', 'trainer.updates_per_step=0.25',
        *overrides])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return finished trainings in worlds of a device, by their algorithm."""
    return {name: train(reacher(name), tmp_path_factory.mktemp(name)) for name in ALGORITHMS}


def figures(run_dir):
    rows = [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['episode_return'] < 0
    return [{name: value for name, value in row.items() if name not in (
        'steps_per_second', 'remaining_s', 'train_seconds')} for row in rows]


@pytest.mark.parametrize('algorithm, num_rounds', [('off_policy', 27), ('on_policy', 3)])
def test_stopped_and_resumed_on_a_device_equals_uninterrupted(whole, tmp_path, algorithm,
                                                              num_rounds):
    stopped = train(reacher(algorithm), tmp_path, should_stop=stop_after(num_rounds))
    assert not stopped.finished
    resumed = train(None, tmp_path)
    assert resumed.finished and resumed.updates == whole[algorithm].updates > 2
    assert_same_parameters(whole[algorithm], resumed)
    assert resumed.last_eval == whole[algorithm].last_eval is not None
    assert figures(tmp_path) == figures(whole[algorithm].run_dir)
    for ours, theirs in zip(resumed.worlds.state_dict()['worlds'].values(),
                            whole[algorithm].worlds.state_dict()['worlds'].values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('algorithm', ALGORITHMS)
def test_a_policy_of_a_device_is_exported_without_it(whole, tmp_path, algorithm, monkeypatch):
    trainer, path = whole[algorithm], tmp_path / 'model.onnx'
    monkeypatch.setattr('dpg_robot.experiment.make_device_vector', None)
    monkeypatch.setattr('dpg_robot.experiment.EVAL_ENVS', 1)
    spec, parity = export_run(trainer.run_dir, path, episodes=1)
    assert parity < 1e-5 and spec.training.estimator == 'doubly_robust'
    assert spec.training.env_steps == 128 and spec.training.evaluation['episodes'] == 1
    obs = trainer.algorithm.recorded(50)
    with torch.no_grad():
        ours = trainer.learner.policy(obs, torch.zeros(len(obs), 2)).numpy()
    policy = OnnxPolicy(path)
    assert policy.spec.normalised(policy(obs.numpy())) == pytest.approx(ours, abs=1e-5)


def test_on_policy_in_worlds_of_the_cpu_resumes_to_the_bit(tmp_path):
    config = tiny_config(*TINY, 'trainer.algorithm=on_policy', 'trainer.env_steps=96',
                         'trainer.eval_every_steps=0')
    one = train(config, tmp_path / 'whole')
    train(config, tmp_path / 'stopped', should_stop=stop_after(2))
    assert_same_parameters(one, train(None, tmp_path / 'stopped'))
    assert one.updates == 5  # the first rollout is for the normalisers


def test_returns_and_successes_are_summed_on_the_device(tmp_path):
    worlds = DeviceVector(BanditsOnDevice(2))
    worlds.reset(0)
    assert all(map(math.isnan, worlds.episodes()))
    rewards, successes = [], []
    step = worlds.envs.step

    def watch(action):
        result = step(action)
        rewards.append(result[1])
        successes.append(result[-1]['success'])
        return result
    worlds.envs.step = watch
    for _ in range(2 * LAST + 1):
        worlds.step(torch.zeros(2, 1))
    # Each step terminates here, and counts as an episode.
    seen = worlds.episodes()
    assert seen[0] == pytest.approx(torch.stack(rewards).double().mean().item())
    assert seen[1] == pytest.approx(torch.stack(successes).mean().item())
    assert worlds.episodes() == seen  # none since
    rewards.clear()
    worlds.step(torch.zeros(2, 1))
    assert worlds.episodes()[0] == pytest.approx(rewards[0].mean().item())


def test_a_step_on_a_device_gives_the_true_last_observation():
    worlds, results = DeviceVector(BanditsOnDevice(2)), []
    worlds.reset(0)
    step = worlds.envs.step
    worlds.envs.step = lambda action: results.append(step(action)) or results[-1]
    seen = [worlds.step(torch.zeros(2, 1)) for _ in range(LAST)]
    for found, (obs, reward, terminated, truncated, info) in zip(seen, results):
        assert torch.equal(found.next_obs, info['final_obs'])
        assert not torch.equal(found.next_obs, obs)
        assert found.reward is reward
        assert found.terminated.tolist() == [1.0, 1.0] and terminated.all()
        assert found.truncated.tolist() == truncated.tolist()
    assert torch.equal(worlds.obs, results[-1][0])
    assert seen[-1].truncated.all() and not seen[0].truncated.any()


def test_worlds_are_checked_when_figures_are_fetched(tmp_path):
    trainer = make_trainer(tmp_path, env_steps=256, log_every_steps=128)
    trainer.run()
    assert trainer.worlds.envs.num_checks == 2


@pytest.mark.parametrize('task, overrides, message', [
    ('reacher', ['trainer.device=cuda'], 'trainer.device must be cpu or warp_cpu where torch '
     'finds no NVIDIA GPU, got cuda'),
    ('reacher', ['trainer.device=tpu'], 'trainer.device must be one of cpu, cuda, warp_cpu; '),
    ('point_maze', ['trainer.device=warp_cpu'], 'world.task must be one with a version for '
     'devices .*, got point_maze'),
    ('reacher', ['trainer.device=warp_cpu', 'trainer.workers=2'], 'trainer.workers must be 1 for '
     'the device warp_cpu, which steps all worlds together, got 2'),
    ('fetch_reach', ['trainer.device=warp_cpu', 'trainer.hindsight=4'],
     'trainer.hindsight must be 0 for the device warp_cpu, .*, got 4'),
    ('fetch_reach', ['trainer.algorithm=on_policy', 'trainer.hindsight=4'],
     'trainer.hindsight must be 0 for the algorithm on_policy, .*, got 4'),
    ('reacher', ['on_policy.batch_size=4'], 'on_policy.batch_size is not a known key; known keys'),
    ('reacher', ['trainer.algorithm=on_policy', 'estimator=model'],
     'on_policy.estimator must be one of denoising, doubly_robust, critic, reinforce; got model')])
def test_mistakes_are_named(tmp_path, task, overrides, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SpecError, match=message):
        open_trainer(load_config(task, overrides), tmp_path / 'run', resume=False)
    assert not (tmp_path / 'run').exists()


def test_a_gpu_multiplies_in_tf32_whoever_asks(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    products = torch.backends.cuda.matmul
    try:
        assert find_device('cuda') == torch.device('cuda', 1)
        # The older setting raises if it is not what the newer one is.
        assert products.allow_tf32 and products.fp32_precision == 'tf32'
    finally:
        products.allow_tf32 = False


def test_a_replay_larger_than_the_memory_is_refused_beforehand(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (2**30, 2**34))
    check_memory('trainer.replay_capacity', 2**22, 200, torch.device('cuda'))
    with pytest.raises(SpecError, match='trainer.replay_capacity must be at most 4294967 for the '
                       '1.0 GiB that are free on the GPU, got 8388608, which need 1.6 GiB'):
        check_memory('trainer.replay_capacity', 2**23, 200, torch.device('cuda'))
    check_memory('trainer.replay_capacity', 2**20, 200, torch.device('cpu'))
    with pytest.raises(SpecError, match='GiB that this machine has, got 1099511627776, which '):
        check_memory('trainer.replay_capacity', 2**40, 200, torch.device('cpu'))


class Recorded(Captured):
    """A graph on the CPU: its inputs stay in their places, and its results are overwritten."""

    def __init__(self, function, device, wanted=True):
        super().__init__(function, device, wanted)
        self.wanted, self.replays = wanted, 0

    def _aside(self, tensors):
        return self.function(*tensors)

    def _record(self, tensors):
        inputs = [x.clone() for x in tensors]
        result = self.function(*inputs)
        assert not any(x.requires_grad for x in inputs)
        graph, calls = mock.Mock(), itertools.count()

        def replay():
            self.replays += 1
            if next(calls):  # the first is what was just computed
                new = self.function(*inputs)
                for place, value in zip(*([x] if torch.is_tensor(x) else x.values()
                                          for x in (result, new))):
                    place.copy_(value)
        graph.replay = replay
        return graph, inputs, result


@pytest.mark.parametrize('algorithm, learner', LEARNERS)
def test_recorded_updates_are_the_updates(tmp_path, monkeypatch, algorithm, learner):
    plain = make_trainer(tmp_path / 'plain', algorithm, learner=learner)
    made = []

    def record(*given):
        made.append(Recorded(*given))
        return made[-1]
    for name in ('off_policy', 'on_policy_learner'):
        monkeypatch.setattr(f'dpg_robot.learn.{name}.Captured', record)
    recorded = make_trainer(tmp_path / 'recorded', algorithm, learner=learner)
    for trainer in (plain, recorded):
        torch.manual_seed(1)
        for _ in range(8):
            metrics = trainer.round()
    assert_same_parameters(plain, recorded)
    assert recorded.updates >= 7
    assert metrics and all(torch.isfinite(x).all() for x in metrics.values())
    graphs = [captured for captured in made if captured.replays]
    is_classical = learner.get('estimator') == 'reinforce'
    assert len(graphs) == (1 if algorithm == 'off_policy' else 2 if is_classical else 3)


def test_no_garbage_is_collected_while_an_update_is_recorded():
    seen = []
    captured = Recorded(lambda x: seen.append(gc.isenabled()) or x + 1, torch.device('cpu'))
    for _ in range(module.NUM_WARM_UP + 1):
        captured(torch.tensor(1.0))
    assert seen == [True] * module.NUM_WARM_UP + [False] and gc.isenabled()


def test_a_graph_that_cannot_be_recorded_ends_the_training():
    captured = Recorded(lambda x: x + 1, torch.device('cpu'))
    captured._record = mock.Mock(side_effect=RuntimeError(
        'operation not permitted\nwhen stream is capturing'))
    for i in range(module.NUM_WARM_UP):
        assert captured(torch.tensor(float(i))).item() == i + 1
    with pytest.raises(SpecError, match='trainer.cuda_graphs must be false here, since recording '
                       'an update failed, got true: operation not permitted$'):
        captured(torch.tensor(0.0))


def test_time_of_training_is_that_of_the_device(tmp_path, monkeypatch):
    trainer, clock = make_trainer(tmp_path, env_steps=256, log_every_steps=128), [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(trainer.worlds, 'wait', lambda: clock.insert(0, clock[0] + 2.0))
    trainer.run()
    assert trainer.train_seconds == 4.0  # two rows, before each of which the device was behind


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_recorded_update_is_the_update():
    device = find_device('cuda')
    finals = []
    for wanted in (True, False):
        weight = torch.nn.Parameter(torch.ones(3, device=device))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True, capturable=True)

        def update(x, weight=weight, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=True)
            loss = (weight * x).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()
        captured = Captured(update, device, wanted)
        losses = [captured(torch.full((3,), float(i), device=device)).item() for i in range(9)]
        finals.append((losses, weight.tolist()))
    assert finals[0][0] == pytest.approx(finals[1][0])
    assert finals[0][1] == pytest.approx(finals[1][1])
