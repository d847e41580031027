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

"""Export: the file does what the torch policy does, says what was trained, and shows tampering."""

import dataclasses
import json
from pathlib import Path
import re
import sys

import numpy as np
import onnx
from onnx import numpy_helper
import onnxruntime
import pytest
from small_training import assert_same_parameters, tiny_config, train
import torch

from dpg_robot import experiment, export
from dpg_robot.contract.model_file import content_hash, HASH_KEY, seal, SPEC_KEY
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import export_run, export_trainer
from dpg_robot.export import export_policy, parity, PARITY_TOLERANCE
from dpg_robot.runtime.onnx_policy import OnnxPolicy

ROOT = Path(__file__).resolve().parent.parent
# Large enough to round like the real one, and not symmetric.
CONFIG = tiny_config(
    'trainer.env_steps=1000', 'trainer.warmup_steps=100', 'learner.hidden=[128, 96]',
    'trainer.num_worlds=4', 'trainer.updates_per_step=0.1', 'trainer.seed=3')


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    """Return a short but real training."""
    return train(CONFIG, tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def exported(trainer):
    """Return the exported file, and the spec and the parity that export returned."""
    path = trainer.run_dir / 'model.onnx'
    return path, *export_trainer(trainer, CONFIG, path, episodes=10)


@pytest.fixture(scope='module')
def observations(trainer):
    return trainer.algorithm.replay.data.next_obs[:trainer.algorithm.replay.size].numpy()


def torch_actions(trainer, spec, observations, eps):
    with torch.no_grad():
        action = trainer.learner.policy(torch.from_numpy(observations), torch.from_numpy(eps))
    return action.numpy() * np.array(spec.action_scale, np.float32)


def test_parity_over_recorded_observations(trainer, exported, observations):
    """Measured here, apart from what export measured itself."""
    path, spec, found = exported
    assert found <= PARITY_TOLERANCE == 1e-5
    assert observations.shape == (1000, 9)
    term, = spec.action
    session = onnxruntime.InferenceSession(path.read_bytes())
    drawn = np.random.default_rng(1).standard_normal((1000, 3)).astype(np.float32)
    for eps in (np.zeros_like(drawn), drawn):
        theirs, = session.run(['action'], {'observation': observations, 'eps': eps})
        ours = torch_actions(trainer, spec, observations, eps)
        assert np.abs(ours - theirs).max() <= 1e-5 * (term.upper[0] - term.lower[0])
        assert theirs.std(0).min() > 0.01  # not a constant


def test_onnx_policy_gives_the_torch_policys_actions(trainer, exported, observations):
    path, spec, _ = exported
    policy = OnnxPolicy(path)
    drawn = np.random.default_rng(2).standard_normal((1000, 3)).astype(np.float32)
    zeros = np.zeros_like(drawn)
    tolerance = {'rtol': 0, 'atol': 1.5e-5}
    np.testing.assert_allclose(
        policy(observations), torch_actions(trainer, spec, observations, zeros), **tolerance)
    ours = torch_actions(trainer, spec, observations, drawn)
    np.testing.assert_allclose(policy(observations, drawn), ours, **tolerance)
    for i in range(0, 1000, 100):
        np.testing.assert_allclose(policy(observations[i], drawn[i]), ours[i], **tolerance)


def test_spec_in_the_file(trainer, exported):
    path, spec, _ = exported
    policy = OnnxPolicy(path)
    assert policy.spec == spec
    assert policy.content_hash == content_hash(path.read_bytes())
    record = spec.training
    assert (record.estimator, record.env_steps, record.seed) == ('doubly_robust', 1000, 3)
    assert record.world == dump(CONFIG.world)
    assert record.evaluation['episodes'] == 10
    assert record.evaluation == dataclasses.asdict(trainer.evaluate(10))
    assert record.versions['torch'] in (torch.__version__, torch.__version__.partition('+')[0])


def test_numbers_keep_their_full_precision(trainer, exported, observations, tmp_path):
    _, spec, _ = exported
    term = dataclasses.replace(spec.observation[0], max_age_s=0.1 + 0.2, lower=(-1 / 3,) * 3,
                               upper=(np.nextafter(1.0, 2.0),) * 3)
    spec = dataclasses.replace(spec, observation=(term, *spec.observation[1:]),
                               control_rate_hz=49 / 3)
    export_policy(trainer.learner.policy, spec, observations[:2], tmp_path / 'model.onnx')
    assert OnnxPolicy(tmp_path / 'model.onnx').spec == spec


def test_no_path_of_this_machine(exported):
    path, *_ = exported
    data = path.read_bytes()
    for place in (ROOT, path.parent, Path(torch.__file__).parents[1], Path(sys.prefix),
                  Path.home(), Path.cwd()):
        if len(place.parts) > 1:
            assert str(place).encode() not in data
    assert b'site-packages' not in data and b'.py' not in data
    assert not re.search(rb'/(home|root|tmp|usr|opt)/', data)


def test_the_same_training_gives_the_same_file(exported, trainer, tmp_path):
    path, *_ = exported
    export_run(trainer.run_dir, tmp_path / 'again.onnx', episodes=10)
    assert (tmp_path / 'again.onnx').read_bytes() == path.read_bytes()


def test_export_in_the_middle_changes_no_training(trainer, tmp_path):
    def export_once(progress):
        if progress.env_steps == 500:
            export_trainer(other, CONFIG, tmp_path / 'model.onnx', episodes=2)
    other = experiment.open_trainer(CONFIG, tmp_path, resume=False)
    other.run(export_once)
    assert OnnxPolicy(tmp_path / 'model.onnx').spec.training.env_steps == 500
    assert_same_parameters(trainer, other)


@pytest.mark.parametrize('name', ['model.md', 'model', 'reach_v1.5', 'folder.onnx'])
def test_a_file_that_is_no_policy_is_refused_before_the_evaluation(trainer, tmp_path, name):
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'model.md').write_text('keep')
    with pytest.raises(SpecError, match=rf'written to a file that ends in \.onnx, got .*/{name}'):
        export_run(trainer.run_dir, tmp_path / name, episodes=10**9)
    assert (tmp_path / 'model.md').read_text() == 'keep'


def test_notes_where_the_card_would_go_are_kept(trainer, tmp_path):
    (tmp_path / 'model.md').write_text('# notes on the policy\n')
    with pytest.raises(SpecError, match=r'must not replace another file: .*/model\.md is none'):
        export_run(trainer.run_dir, tmp_path / 'model.onnx', episodes=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ['model.md']


def test_a_joint_that_hardly_moves_has_its_parity(trainer, exported, observations, tmp_path):
    _, spec, _ = exported
    term, *rest = spec.action
    narrow = dataclasses.replace(
        term, lower=(1.4,) * term.size, upper=(1.404,) * term.size, safe=(1.4,) * term.size,
        scale=(0.002,) * term.size, offset=(1.402,) * term.size)
    spec = dataclasses.replace(spec, action=(narrow, *rest))
    # Some of so many answers are rounded up by one and down by the other.
    assert 0 < export_policy(trainer.learner.policy, spec, observations,
                             tmp_path / 'model.onnx') < PARITY_TOLERANCE


def test_nothing_to_export(tmp_path):
    trainer = experiment.open_trainer(CONFIG, tmp_path, resume=False)
    with pytest.raises(SpecError, match='^nothing to export in .*: no environment step'):
        export_trainer(trainer, CONFIG, tmp_path / 'model.onnx', episodes=0)
    assert not (tmp_path / 'model.onnx').exists()


def break_weight(model):
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def break_with_nan(model):
    weight = next(t for t in model.graph.initializer if len(t.dims) == 1)
    values = np.full_like(numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def break_noise(model):
    """Let the graph ignore half of eps: right for eps = 0, wrong for any other."""
    eps, = [n for n in model.graph.node if 'eps' in n.input]
    half = numpy_helper.from_array(np.float32(0.5), 'half')
    model.graph.initializer.append(half)
    scaled = onnx.helper.make_node('Mul', ['eps', 'half'], ['half_eps'])
    model.graph.node.insert(0, scaled)
    index = list(eps.input).index('eps')
    eps.input[index] = 'half_eps'


@pytest.mark.parametrize('spoil', [break_weight, break_with_nan, break_noise])
def test_a_graph_that_differs_is_not_written(
        trainer, exported, observations, tmp_path, monkeypatch, spoil):
    to_onnx = export.to_onnx

    def broken(module):
        model = to_onnx(module)
        spoil(model)
        return model
    monkeypatch.setattr(export, 'to_onnx', broken)
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'the old one')
    with pytest.raises(SpecError, match='model.onnx is not written: torch and ONNX must agree to '
                       r'1e-05 of the action range, got (nan|\d)'):
        export_policy(trainer.learner.policy, exported[1], observations, path)
    assert path.read_bytes() == b'the old one'
    assert list(tmp_path.iterdir()) == [path]


def test_parity_is_a_fraction_of_the_range(trainer, exported, observations):
    """Narrower limits make the same difference a larger fraction."""
    path, spec, _ = exported
    model = onnx.load_from_string(path.read_bytes())
    break_weight(model)
    wide = parity(trainer.learner.policy, spec, model, observations)
    term = dataclasses.replace(spec.action[0], lower=(-0.08125,) * 3, upper=(0.08125,) * 3)
    narrow = parity(trainer.learner.policy, dataclasses.replace(spec, action=(term,)), model,
                    observations)
    assert narrow == pytest.approx(10 * wide)


def test_a_spec_of_other_sizes_is_refused(trainer, exported, observations, tmp_path):
    spec = dataclasses.replace(exported[1], eps_dim=4)
    with pytest.raises(SpecError, match='^spec.eps_dim must be 3, the size of the policy, got 4$'):
        export_policy(trainer.learner.policy, spec, observations, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_a_spec_that_a_robot_would_refuse_is_not_written(
        trainer, exported, observations, tmp_path):
    term = dataclasses.replace(exported[1].action[0], safe=(5.0, 0.0, 0.0))
    spec = dataclasses.replace(exported[1], action=(term,))
    with pytest.raises(SpecError, match=r'action\[0\].safe\[0\] must lie within .* got 5.0'):
        export_policy(trainer.learner.policy, spec, observations, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_export_leaves_a_training_that_goes_on_alone(tmp_path):
    """Rows after the last checkpoint belong to the process that trains."""
    run_dir = tmp_path / 'run'
    train(tiny_config('trainer.env_steps=100'), run_dir)
    with open(run_dir / 'metrics.jsonl', 'a') as file:
        file.write('{"env_steps": 120}\n')
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns)
              for path in run_dir.iterdir() if path.is_file()}
    export_run(run_dir, tmp_path / 'model.onnx', episodes=10)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns)
                      for path in run_dir.iterdir() if path.is_file()}


def refused(path, data, message):
    path.write_bytes(data)
    with pytest.raises(SpecError) as caught:
        OnnxPolicy(path)
    text = str(caught.value)
    assert text.startswith(f'model file {path} refused: '), text
    assert re.search(message, text), text
    assert '\n' not in text


def test_any_flipped_byte_is_refused(exported, tmp_path):
    good = exported[0].read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(good), 200, replace=False):
        data = bytearray(good)
        data[position] ^= rng.integers(1, 256)
        refused(tmp_path / 'model.onnx', bytes(data),
                'the file was changed after export$|must hold exactly one ')


@pytest.mark.parametrize('size', [0, 1, 1000, -1])
def test_truncated_file_is_refused(exported, tmp_path, size):
    refused(tmp_path / 'model.onnx', exported[0].read_bytes()[:size],
            'the file was changed after export$|must hold exactly one ')


def test_edited_spec_is_refused(exported, tmp_path):
    good = exported[0].read_bytes()
    upper = json.dumps(exported[1].action[0].upper, separators=(',', ':'))
    edited = good.replace(f'"upper":{upper}'.encode(), f'"upper":[9{upper[2:]}'.encode())
    assert edited != good
    refused(tmp_path / 'model.onnx', edited, 'its content hash must be [0-9a-f]{12}..., got '
            '[0-9a-f]{12}...; the file was changed after export$')


def test_edited_hash_is_refused(exported, tmp_path):
    good = exported[0].read_bytes()
    digest = content_hash(good)
    other = ('0' if digest[0] != '0' else '1') + digest[1:]
    refused(tmp_path / 'model.onnx', good.replace(digest.encode(), other.encode()),
            f'its content hash must be {other[:12]}..., got {digest[:12]}')


def test_a_second_seal_is_refused(exported, tmp_path):
    good = exported[0].read_bytes()
    seals = HASH_KEY.encode() + b'\x12\x40' + b'0' * 64
    refused(tmp_path / 'model.onnx', good + seals, 'exactly one dpg_robot.content_hash, found 2')


def test_missing_seal_is_refused(exported, tmp_path):
    model = onnx.load_from_string(exported[0].read_bytes())
    kept = [p for p in model.metadata_props if p.key != HASH_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    refused(tmp_path / 'model.onnx', model.SerializeToString(),
            'exactly one dpg_robot.content_hash, found 0; was it written by dpg-robot export')


def test_a_spec_that_does_not_fit_the_graph_is_refused(exported, tmp_path):
    """Even when sealed again: the seal proves integrity, the graph must still fit."""
    model = onnx.load_from_string(exported[0].read_bytes())
    entry, = [p for p in model.metadata_props if p.key == SPEC_KEY]
    spec = json.loads(entry.value)
    spec['eps_dim'] = 2
    entry.value = PolicySpec.from_json(json.dumps(spec)).to_json()
    refused(tmp_path / 'model.onnx', seal(model.SerializeToString()),
            r'eps must have shape \(B, 2\) as the spec says')
