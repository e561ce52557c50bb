"""Large images wait for each other, small ones do not, and none waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch

from encoded_images import encode, photo
from spark_vision import ImageViTEmbedding
from spark_vision.errors import RowFailure, Status
from spark_vision.executor import image_rows
from spark_vision.executor.decoding_budget import DecodingBudget
from spark_vision.executor.image_rows import ImageRows
from spark_vision.images import cost
from spark_vision.images.decoding import InspectedImage, inspect_image
from spark_vision.operators import ImageLimits

PATIENCE_SECONDS = 60


class Recorder:
    """Counts the bytes of those that are inside at a time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.most_together = 0
        self.sizes = []

    def enter(self, count):
        with self.lock:
            self.inside += count
            self.sizes.append(count)
            self.most = max(self.most, self.inside)
            self.most_together = max(self.most_together, len(self.sizes))

    def leave(self, count):
        with self.lock:
            self.inside -= count
            self.sizes.remove(count)


def run_all(budget, counts, thread_count=8):
    recorder = Recorder()

    def work(count):
        with budget.hold(count):
            recorder.enter(count)
            threading.Event().wait(0.001)
            recorder.leave(count)

    with ThreadPoolExecutor(thread_count) as pool:
        for done in [pool.submit(work, count) for count in counts]:
            done.result(PATIENCE_SECONDS)
    return recorder


def test_images_together_never_take_more_than_the_budget():
    recorder = run_all(DecodingBudget(100), [60, 30, 10, 100, 99, 1, 50, 50, 50, 70, 5] * 10)
    assert recorder.most <= 100


def test_image_over_the_whole_budget_goes_on_alone():
    recorder = run_all(DecodingBudget(100), [250, 10, 250, 10, 40] * 10)
    assert recorder.most == 250


def test_small_images_are_decoded_at_the_same_time():
    budget = DecodingBudget(100)
    together = threading.Barrier(4)

    def work():
        with budget.hold(25):
            together.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(PATIENCE_SECONDS)


def test_failure_gives_the_bytes_back():
    budget = DecodingBudget(100)
    for _ in range(3):
        with pytest.raises(ValueError, match="corrupt"), budget.hold(90):
            raise ValueError("corrupt")
    assert run_all(budget, [100, 100]).most == 100


class FakeDecoding:
    """Stands for the decoder: each image takes as many bytes as its width says, for a while."""

    def __init__(self, peaks):
        self.recorder = Recorder()
        self._peaks = iter(peaks)
        self._lock = threading.Lock()

    def inspect_image(self, image, limits):
        with self._lock:
            return InspectedImage(image, inspect_image(image, limits).header, next(self._peaks))

    def decode_inspected(self, inspected, limits, *, isolate=False):
        self.recorder.enter(inspected.peak_bytes)
        threading.Event().wait(0.002)
        if inspected.peak_bytes % 2:
            self.recorder.leave(inspected.peak_bytes)
            raise RowFailure(Status.DECODE_ERROR, "odd")
        return inspected.peak_bytes


def prepare_with(monkeypatch, peaks, limits):
    decoding = FakeDecoding(peaks)
    monkeypatch.setattr(image_rows, "inspect_image", decoding.inspect_image)
    monkeypatch.setattr(image_rows, "decode_inspected", decoding.decode_inspected)

    def resize(peak_bytes, prompt):
        # The pixels are in memory until they are resized.
        decoding.recorder.leave(peak_bytes)
        return torch.zeros(1, dtype=torch.uint8)

    images = pa.array([encode(photo(8, 8), "PNG")] * len(peaks), pa.binary())
    rows = ImageRows(
        ImageViTEmbedding(limits=limits),
        [resize],
        cpu_count=4,
        ahead_count=16,
        portion_row_count=2,
    )
    prepared = [each for portion in rows.prepare([(images, None)]) for (each,) in portion]
    return prepared, decoding.recorder


def test_images_of_a_task_share_one_budget(monkeypatch):
    limits = ImageLimits(max_pixels=1000)
    most = cost.max_decode_bytes(limits)
    peaks = [most, most // 2, most - 1, 10, most // 3 * 2, 11, most // 2] * 8
    prepared, recorder = prepare_with(monkeypatch, peaks, limits)
    failed = sum(isinstance(each, RowFailure) for each in prepared)
    assert (len(prepared), failed) == (len(peaks), sum(peak % 2 for peak in peaks))
    assert recorder.most <= most
    assert not recorder.sizes


def test_small_images_of_a_task_do_not_wait(monkeypatch):
    others = threading.Semaphore(0)
    is_first = iter([True])
    enter = Recorder.enter

    def enter_and_meet(self, count):
        enter(self, count)
        if next(is_first, False):
            # Ends only when another image is decoded meanwhile.
            assert others.acquire(timeout=PATIENCE_SECONDS)
        else:
            others.release()

    monkeypatch.setattr(Recorder, "enter", enter_and_meet)
    prepared, recorder = prepare_with(monkeypatch, [1000] * 20, ImageLimits(max_pixels=1000))
    assert not any(isinstance(each, RowFailure) for each in prepared)
    assert recorder.most_together > 1
