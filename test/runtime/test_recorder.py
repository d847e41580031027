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

"""The flight recorder: what it keeps, what it costs, and what it survives."""

import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import time

from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
import numpy as np
from policy_files import joint_spec, pose_spec
import pytest
from rcl_interfaces.msg import Log
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from dpg_robot.contract.observation import Fault
from dpg_robot.contract.strict import SpecError
from dpg_robot.runtime import flight_writer
from dpg_robot.runtime.flight_file import part_names, Segment
from dpg_robot.runtime.flight_reader import read_flight
from dpg_robot.runtime.recorder import FlightRecorder, Ring, STATES

HASH = 'ab' * 32
SPEC = joint_spec()


def random_ticks(num, seed=0):
    """Return observations (float32), noises, actions and commands, one row for each tick."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num, 4)).astype(np.float32),
            rng.standard_normal((num, 2)).astype(np.float32),
            rng.standard_normal((num, 2)).astype(np.float32), rng.standard_normal((num, 2)))


def record(recorder, num, first=0):
    """Record ticks whose numbers tell which they are."""
    command = np.zeros(2)
    for k in range(first, first + num):
        recorder.step(float(k), np.full(4, k, np.float32), np.full(2, k, np.float32), command)


def wait_for(condition, what, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_what_is_recorded_is_read_back_to_the_bit(tmp_path):
    observations, noises, actions, commands = random_ticks(50)
    stale = Fault('position', 'stale', 'joint_states is 0.3 s old')
    began_ns = time.time_ns()
    recorder = FlightRecorder(tmp_path, SPEC, HASH, model_path=tmp_path / 'a.onnx')
    for k in range(50):
        if k == 30:
            recorder.use_model('cd' * 32, tmp_path / 'b.onnx')
        if k in (20, 21):
            recorder.step(0.1 * k, None, None, np.array([0.0, np.nan]), is_driven=False,
                          faults=(stale,), state='safe')
            continue
        recorder.step(0.1 * k, observations[k], actions[k], commands[k],
                      eps=noises[k] if k >= 40 else None, tick_s=1e-4 * k, latency_s=2e-4)
    recorder.event('WARN', 'wind, auf Deutsch: Böe')
    recorder.close()

    flight = read_flight(tmp_path)
    ran = np.array([k not in (20, 21) for k in range(50)])
    assert flight.spec == SPEC
    assert flight.models == {0: (HASH, str(tmp_path / 'a.onnx')),
                             1: ('cd' * 32, str(tmp_path / 'b.onnx'))}
    np.testing.assert_array_equal(flight.numbers['model'], [0] * 30 + [1] * 20)
    np.testing.assert_array_equal(flight.has['observation'], ran)
    np.testing.assert_array_equal(flight.has['action'], ran)
    np.testing.assert_array_equal(flight.has['eps'], [False] * 40 + [True] * 10)
    np.testing.assert_array_equal(flight.observation[ran].astype(np.float32), observations[ran])
    np.testing.assert_array_equal(flight.action[ran].astype(np.float32), actions[ran])
    np.testing.assert_array_equal(flight.eps[40:].astype(np.float32), noises[40:])
    np.testing.assert_array_equal(flight.command[ran], commands[ran])
    np.testing.assert_array_equal(flight.command[20], [0.0, np.nan])
    assert np.isnan(flight.observation[20:22]).all()
    np.testing.assert_array_equal(flight.numbers['control_time_s'], 0.1 * np.arange(50))
    np.testing.assert_allclose(flight.numbers['tick_us'][ran], 100.0 * np.arange(50)[ran])
    assert flight.numbers['driven'].sum() == 48 and flight.numbers['faults'].sum() == 2
    assert STATES[int(flight.numbers['state'][20])] == 'safe'
    assert (np.diff(flight.times_ns) >= 0).all()
    assert began_ns - 1000 <= flight.times_ns[0] <= flight.times_ns[-1] <= time.time_ns() + 1000
    assert [(level, text) for _, level, text in flight.events] == [
        (20, 'running'), (40, f'safe: {stale}'), (20, 'running'), (30, 'wind, auf Deutsch: Böe')]
    assert (flight.num_missing, flight.damaged) == (0, [])


def test_a_segment_holds_stock_messages_with_names(tmp_path):
    spec = pose_spec()
    recorder = FlightRecorder(tmp_path, spec, HASH)
    recorder.step(1.5, np.arange(6, dtype=np.float32), np.arange(3, dtype=np.float32),
                  np.array([0.5, 0.0, -0.5]), eps=np.ones(3, np.float32))
    recorder.close()
    path, = tmp_path.glob('*.mcap')
    with open(path, 'rb') as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == 'ros2'
        assert reader.get_summary().statistics.message_count == 6
        attached, = reader.iter_attachments()
        assert attached.data.decode() == spec.to_json()
        messages = {}
        for schema, channel, message, ours in reader.iter_decoded_messages():
            assert channel.message_encoding == 'cdr' and schema.encoding == 'ros2msg'
            kind = {'sensor_msgs/msg/JointState': JointState, 'rcl_interfaces/msg/Log': Log}[
                schema.name]
            messages[channel.topic] = theirs = deserialize_message(message.data, kind)
            stamp = (theirs.header if kind is JointState else theirs).stamp
            assert stamp.sec * 10**9 + stamp.nanosec == message.log_time
            if kind is JointState:
                assert list(ours.name) == theirs.name
                np.testing.assert_array_equal(ours.position, theirs.position)
            else:
                assert (ours.level, ours.name, ours.msg) == (theirs.level, theirs.name, theirs.msg)
    xyz = ['pose.position.x', 'pose.position.y', 'pose.position.z']
    observation = messages['/flight/observation']
    assert observation.name == [f'{term}.{field}' for term in ('hand', 'goal') for field in xyz]
    assert list(observation.position) == [0, 1, 2, 3, 4, 5]
    assert messages['/flight/eps'].name == ['eps.0', 'eps.1', 'eps.2']
    assert list(messages['/flight/command'].position) == [0.5, 0.0, -0.5]
    assert messages['/flight/tick'].name == list(Ring.SCALARS)
    assert messages['/flight/tick'].position[1] == 1.5
    assert (messages['/flight/events'].level, messages['/flight/events'].msg) == (20, 'running')


def test_a_policy_without_noise_and_a_segment_without_ticks(tmp_path):
    spec = joint_spec(eps_dim=0)
    recorder = FlightRecorder(tmp_path, spec, HASH)
    record(recorder, 3)
    recorder.close()
    path, = tmp_path.glob('*.mcap')
    recording = read_flight(path)
    assert recording.eps.shape == (3, 0) and not recording.has['eps'].any()
    with open(path, 'rb') as stream:
        metadata, *_ = make_reader(stream).iter_metadata()
    # The newest segment, before its first flush.
    Segment(tmp_path / 'flight_000009_x.mcap', spec, metadata.metadata['recording'], [])
    assert len(read_flight(tmp_path).times_ns) == 3
    assert read_flight(tmp_path).damaged == [tmp_path / 'flight_000009_x.mcap']


def test_elements_are_called_by_their_joints():
    names = part_names(SPEC)
    assert names['observation'] == ('position.shoulder', 'position.elbow', 'velocity.shoulder',
                                    'velocity.elbow')
    assert names['action'] == names['command'] == ('torque.shoulder', 'torque.elbow')


def test_a_step_takes_microseconds(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    observation, action, command = np.zeros(4, np.float32), np.zeros(2, np.float32), np.zeros(2)

    def median_ns(step):
        times = []
        for _ in range(300):
            began = time.perf_counter_ns()
            step(0.0, observation, action, command, tick_s=1e-4, latency_s=1e-4)
            times.append(time.perf_counter_ns() - began)
        return np.median(times)
    recorded, nothing = median_ns(recorder.step), median_ns(lambda *args, **options: None)
    assert recorder.status()['dropped'] == 0
    recorder.close()
    # Some 10 times as long; a write to a disk, or a wait for another thread, is hundreds.
    assert recorded < 40 * nothing


def test_a_writer_that_stands_still_costs_ticks_but_no_time(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    record(recorder, 1)
    wait_for(lambda: recorder.status()['ticks'] == 1, 'the first tick on its way')
    recorder._process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    record(recorder, 1000, first=1)
    for _ in range(2000):
        recorder.event('INFO', 'x' * 100)
    assert time.monotonic() - began < 2.0
    dropped = recorder.status()['dropped']
    assert 500 < dropped < 1000 and recorder.status()['events_dropped'] > 0
    recorder._process.send_signal(signal.SIGCONT)
    wait_for(lambda: recorder.status()['ticks'] == 1001 - dropped, 'the ticks that fit')
    record(recorder, 10, first=2000)
    recorder.close()
    flight = read_flight(tmp_path)
    assert len(flight.times_ns) == 1011 - dropped
    assert flight.num_missing == dropped
    assert flight.observation[-1, 0] == 2009


def test_a_faster_robot_has_a_larger_ring(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH, rate_factor=4.0)
    record(recorder, 1)
    wait_for(lambda: recorder.status()['ticks'] == 1, 'the first tick on its way')
    recorder._process.send_signal(signal.SIGSTOP)
    record(recorder, 1599, first=1)  # 8 s of 50 Hz, four times faster
    dropped = recorder.status()['dropped']
    recorder._process.send_signal(signal.SIGCONT)
    recorder.close()
    assert dropped == 0
    np.testing.assert_array_equal(read_flight(tmp_path).observation[:, 0], np.arange(1600))


def test_the_end_of_the_node_ends_the_file(tmp_path):
    code = f"""
import os, signal, sys
import numpy as np
sys.path[:0] = {sys.path!r}
from test_recorder import FlightRecorder, HASH, record, SPEC
recorder = FlightRecorder({str(tmp_path)!r}, SPEC, HASH)
record(recorder, 200)
os.kill(os.getpid(), signal.SIGKILL)
"""
    node = subprocess.run([sys.executable, '-c', code], timeout=60,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                              [os.path.dirname(__file__), *filter(None, sys.path)])})
    assert node.returncode == -signal.SIGKILL
    # The writer still has the folder; the next recorder of a node that comes back waits for it.
    FlightRecorder(tmp_path, SPEC, HASH).close()
    first, = tmp_path.glob('flight_000001_*')
    flight = read_flight(first)
    np.testing.assert_array_equal(flight.observation[:, 0], np.arange(200))
    assert not flight.damaged
    assert flight.events[-1][2] == 'the node ended without closing the recording'


def test_a_killed_writer_leaves_all_but_its_last_second(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        record(recorder, 1, first=recorder.status()['ticks'])
        time.sleep(0.01)
    recorder._process.kill()
    killed_ns = time.time_ns()
    recorder._process.wait()
    record(recorder, 1)
    recorder.event('INFO', 'nobody hears this')
    assert recorder.status()['state'] == 'off'
    assert 'exit status -9' in recorder.problem
    recorder.close()
    flight = read_flight(tmp_path)
    assert len(flight.damaged) == 1
    # A second to the flush, and a poll or two; the rest is for a busy machine.
    assert killed_ns - flight.times_ns[-1] < 2.0e9
    assert len(flight.times_ns) > 20


def test_the_folder_is_bounded_and_keeps_the_newest(tmp_path):
    for name in ('mine.txt', 'flight_keep.mcap'):
        (tmp_path / name).write_text('not a recording')
    rng = np.random.default_rng(0)
    wide = dataclasses.replace(SPEC.observation[0], fields=tuple(
        f'position[joint_{i}]' for i in range(150)))
    spec = joint_spec(observation=(wide,))
    store = flight_writer.Store(tmp_path, spec, 2**20, 10.0)
    store.add_model({'model': 0, 'content_hash': HASH, 'path': ''})
    descriptor = os.memfd_create('ring')
    ring = Ring(descriptor, spec)
    largest = 0
    for k in range(1500):
        row = rng.standard_normal(ring.width)
        row[:len(Ring.SCALARS)] = 0
        row[0], row[1], row[len(Ring.SCALARS) - 1] = 1e-3 * k, k, 15
        store.add_tick(k, row, ring.places)
        if k % 10 == 0:
            store.flush()
            largest = max(largest, sum(f.stat().st_size for f in tmp_path.glob('flight_0*.mcap')))
    store.close()
    os.close(descriptor)
    assert 0.8 * 2**20 < largest <= 2**20
    segments = sorted(tmp_path.glob('flight_0*.mcap'))
    assert len(segments) >= 7
    flight = read_flight(tmp_path)
    ticks = flight.numbers['control_time_s']
    assert ticks[0] > 0 and ticks[-1] == 1499
    np.testing.assert_array_equal(np.diff(ticks), 1)
    assert (flight.num_missing, flight.damaged) == (0, [])
    alone = read_flight(segments[3])
    assert alone.spec == spec and alone.models == {0: (HASH, '')}
    assert (tmp_path / 'mine.txt').exists() and (tmp_path / 'flight_keep.mcap').exists()


def test_the_bound_holds_over_several_recordings(tmp_path):
    for run in range(3):
        recorder = FlightRecorder(tmp_path, SPEC, HASH, max_bytes=2**20)
        record(recorder, 50, first=1000 * run)
        recorder.close()
    assert [path.name.split('_')[1] for path in sorted(tmp_path.iterdir())] == [
        '000001', '000002', '000003']
    assert read_flight(tmp_path).observation[0, 0] == 2000  # the newest recording alone


def test_a_file_that_may_not_grow_stops_the_recording_until_it_may(tmp_path):
    """RLIMIT_FSIZE is as real as a full disk, but another process can set it and lift it."""
    recorder = FlightRecorder(tmp_path, SPEC, HASH, retry_s=0.2)
    record(recorder, 10)
    wait_for(lambda: recorder.status()['bytes'], 'the first flush')
    _, hard = resource.prlimit(recorder._process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(recorder._process.pid, resource.RLIMIT_FSIZE, (0, hard))
    record(recorder, 10, first=10)
    wait_for(lambda: recorder.problem, 'the problem')
    assert recorder.status()['state'] == 'off' and 'File too large' in recorder.problem
    record(recorder, 10, first=20)
    wait_for(lambda: recorder.status()['dropped'] == 20, 'the ticks that are lost')
    resource.prlimit(recorder._process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    time.sleep(0.3)
    record(recorder, 10, first=30)
    wait_for(lambda: not recorder.problem, 'the recovery')
    recorder.close()
    flight = read_flight(tmp_path)
    np.testing.assert_array_equal(flight.observation[:, 0], [*range(10), *range(30, 40)])
    assert flight.num_missing == 20
    assert any('20 ticks are lost' in text for _, _, text in flight.events)


def rows(num, dropped):
    """Return rows of a ring without parts, whose ticks say how many were dropped before."""
    table = np.zeros((num, len(Ring.SCALARS)))
    table[:, Ring.SCALARS.index('wall_time_s')] = 1e9 + 0.02 * np.arange(num)
    table[:, Ring.SCALARS.index('dropped')] = dropped
    return table


def test_a_segment_by_itself_misses_only_what_was_lost_within_it(tmp_path):
    segment = Segment(tmp_path / 'flight_2.mcap', SPEC, 'r', [])
    for number, row in zip((105, 106, 109, 110), rows(4, [5, 5, 5, 7])):
        segment.add_tick(number, row, {})
    segment.close()
    assert read_flight(segment.path).num_missing == 2 + 2


def test_what_was_half_written_when_the_disk_was_full_is_cut_off(tmp_path):
    segment = Segment(tmp_path / 'flight_1.mcap', SPEC, 'r', [])
    for number, row in enumerate(rows(20, 0)):
        segment.add_tick(number, row, {})
    whole_bytes = segment.flush()
    segment.add_tick(20, rows(1, 0)[0], {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole_bytes + 50, hard))
    try:
        with pytest.raises(OSError, match='File too large'):
            segment.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert segment.path.stat().st_size == whole_bytes + 50
    segment.abandon()
    assert segment.path.stat().st_size == whole_bytes
    assert len(read_flight(segment.path).times_ns) == 20


class SmallDisk(Segment):
    """A segment on a disk that holds so many bytes."""

    capacity = 0

    def flush(self):
        used = sum(f.stat().st_size for f in self.path.parent.iterdir())
        if used + self.pending_bytes > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().flush()


def test_a_full_disk_costs_the_oldest_segments_first(tmp_path, monkeypatch):
    monkeypatch.setattr(flight_writer, 'Segment', SmallDisk)
    SmallDisk.capacity = 500_000
    store = flight_writer.Store(tmp_path, SPEC, 2**20, 1000.0)
    descriptor = os.memfd_create('ring')
    ring = Ring(descriptor, SPEC)
    os.close(descriptor)
    rng = np.random.default_rng(0)

    def fly(ticks):
        for k in ticks:
            row = rng.standard_normal(ring.width)
            row[0], row[1], row[len(Ring.SCALARS) - 1] = 1e-3 * k, k, 15
            store.add_tick(k, row, ring.places)
            if k % 20 == 0:
                store.flush()
    for first in range(0, 6000, 1000):
        fly(range(first, first + 1000))
        store.close()
    names = [path.name.split('_')[1] for path in sorted(tmp_path.glob('*.mcap'))]
    assert names[0] != '000001'
    assert not store.problem
    assert read_flight(tmp_path).times_ns[-1] == 5_999_000_000
    num_lost = store.num_lost  # each time that it was full, what the flush should have written
    assert num_lost % 20 == 0 and num_lost < 600
    SmallDisk.capacity = 0  # somebody else took it all
    fly(range(6000, 6100))
    assert 'No space left on device' in store.problem
    assert sum(f.stat().st_size for f in tmp_path.glob('*.mcap')) > 2**20 / 4
    assert store.num_lost == num_lost + 100


def test_a_deleted_folder_is_made_again(tmp_path):
    folder = tmp_path / 'flight'
    recorder = FlightRecorder(folder, SPEC, HASH, retry_s=0.1)
    record(recorder, 5)
    wait_for(lambda: recorder.status()['bytes'], 'the first flush')
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    record(recorder, 5, first=5)
    wait_for(lambda: recorder.problem, 'the problem')
    time.sleep(0.2)
    record(recorder, 5, first=10)
    recorder.close()
    np.testing.assert_array_equal(read_flight(folder).observation[:, 0], np.arange(10, 15))


def test_wrong_shapes_and_late_calls_do_no_harm(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    recorder.step(0.0, np.zeros(3), np.zeros(2), np.zeros(2))
    recorder.step(0.0, np.zeros(4), 'nonsense', np.zeros(2))
    recorder.step(0.0, np.zeros(4), np.zeros(2), np.zeros(2), faults=None)
    record(recorder, 1, first=7)
    recorder.close()
    record(recorder, 1)
    recorder.event('INFO', 'too late')
    recorder.close()
    assert recorder.status()['dropped'] == 4
    assert recorder.status()['state'] == 'closed'
    flight = read_flight(tmp_path)
    np.testing.assert_array_equal(flight.observation, [[7.0] * 4])


def test_a_second_recorder_in_a_folder_is_refused(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    with pytest.raises(SpecError, match='in use by another recorder'):
        FlightRecorder(tmp_path, SPEC, HASH)
    recorder.close()
    FlightRecorder(tmp_path, SPEC, HASH).close()


def test_impossible_settings_are_refused(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SpecError, match='file cannot be used: File exists'):
        FlightRecorder(tmp_path / 'file', SPEC, HASH)
    with pytest.raises(SpecError, match='max_bytes must be at least 1048576, got 100'):
        FlightRecorder(tmp_path, SPEC, HASH, max_bytes=100)
    with monkeypatch.context() as changed:
        changed.setattr(sys, 'executable', str(tmp_path / 'no_python'))
        with pytest.raises(SpecError, match='does not start: No such file'):
            FlightRecorder(tmp_path, SPEC, HASH)
    FlightRecorder(tmp_path, SPEC, HASH).close()  # the folder is free again
    monkeypatch.setitem(sys.modules, 'mcap', None)
    with pytest.raises(SpecError, match='mcap is not installed'):
        FlightRecorder(tmp_path, SPEC, HASH)


@pytest.mark.parametrize('text, kept', [
    ('ж' * 400, 'ж' * 400), ('ж' * 600, 'ж' * 500), ('関' * 900, '関' * 333),
    ('half a path \udce9', 'half a path ?')], ids=['two bytes', 'long', 'three bytes', 'no text'])
def test_events_may_be_in_any_language(tmp_path, text, kept):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    record(recorder, 1)
    recorder.event('WARN', text)
    recorder.close()
    assert recorder.status()['events_dropped'] == 0
    assert read_flight(tmp_path).events[-1][2] == kept


def test_a_path_that_is_no_text_ends_no_recording(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH, model_path='/caf\udce9/a.onnx')
    record(recorder, 3)
    recorder.close()
    flight = read_flight(tmp_path)
    assert flight.models == {0: (HASH, '/caf\ufffd/a.onnx')}
    assert len(flight.times_ns) == 3


def test_another_fault_is_another_event(tmp_path):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    for kind in ('stale', 'stale', 'size'):
        recorder.step(0.0, None, None, np.zeros(2), is_driven=False, state='safe',
                      faults=(Fault('position', kind, 'bad'),))
    recorder.close()
    assert [text for *_, text in read_flight(tmp_path).events] == [
        'safe: position: stale, bad', 'safe: position: size, bad']


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'])
def test_the_writer_outlives_signals_to_the_group(tmp_path, name):
    recorder = FlightRecorder(tmp_path, SPEC, HASH)
    record(recorder, 1)
    wait_for(lambda: recorder.status()['ticks'] == 1, 'the first tick on its way')
    recorder._process.send_signal(getattr(signal, name))
    record(recorder, 1, first=1)
    recorder.close()
    assert len(read_flight(tmp_path).times_ns) == 2
