"""Fetched bytes and large images wait their turn, small images do not, and none waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch

from encoded_images import encode, photo
from spark_vision import ImageViTEmbedding
from spark_vision.errors import RowFailure, Status
from spark_vision.executor import image_rows
from spark_vision.executor.image_rows import ImageRows
from spark_vision.executor.resource_limits import Budget, OrderedBudget
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
    recorder = run_all(Budget(100), [60, 30, 10, 100, 99, 1, 50, 50, 50, 70, 5] * 10)
    assert recorder.most <= 100


def test_image_over_the_whole_budget_goes_on_alone():
    recorder = run_all(Budget(100), [250, 10, 250, 10, 40] * 10)
    assert recorder.most == 250


def test_small_images_are_decoded_at_the_same_time():
    budget = Budget(100)
    together = threading.Barrier(4)

    def work():
        with budget.hold(25):
            together.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(PATIENCE_SECONDS)


def test_failure_gives_the_bytes_back():
    budget = Budget(100)
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

    def inspect_image(self, image, limits, resized_sizes):
        with self._lock:
            return InspectedImage(image, inspect_image(image, limits).header, next(self._peaks))

    def decode_inspected(self, inspected, limits, *, isolate, watch):
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
    # The smallest ones do not wait.
    assert recorder.most <= most + 4 * 11
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


def test_a_later_row_waits_until_bytes_come_back():
    budget = OrderedBudget(100)
    taken = threading.Event()

    def later():
        with budget.hold(2) as take:
            take(60)
            taken.set()

    with budget.hold(1) as take:
        take(90)
        thread = threading.Thread(target=later)
        thread.start()
        assert not taken.wait(0.2)
    assert taken.wait(5)
    thread.join(5)


def test_the_oldest_row_goes_on_though_the_budget_is_spent():
    budget = OrderedBudget(10)
    with budget.hold(1) as take:
        take(1_000)
        take(1_000)


def test_many_rows_larger_than_the_budget_all_end():
    budget = OrderedBudget(100)
    ended = []
    peak = [0]

    def fetch(order):
        with budget.hold(order) as take:
            for _ in range(8):
                take(30)
                peak[0] = max(peak[0], sum(budget._held_bytes.values()))
                time.sleep(0.001)
        ended.append(order)

    threads = [threading.Thread(target=fetch, args=(order,)) for order in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ended) == list(range(12))
    # The oldest row alone may exceed the budget, by what it holds itself.
    assert peak[0] <= 100 + 8 * 30


def test_closing_frees_those_who_wait():
    budget = OrderedBudget(10)
    freed = threading.Event()

    def later():
        with budget.hold(2) as take:
            take(50)
            freed.set()

    with budget.hold(1) as take:
        take(10)
        thread = threading.Thread(target=later)
        thread.start()
        assert not freed.wait(0.1)
        budget.close()
        assert freed.wait(5)
    thread.join(5)


def test_a_slow_model_has_few_prepared_rows_waiting_from_the_first_on(monkeypatch, tmp_path):
    row_bytes, capacity, count = 1000, 4000, 60
    monkeypatch.setattr(image_rows, "IN_FLIGHT_BYTES", capacity)
    for index in range(count):
        (tmp_path / f"{index}.png").write_bytes(encode(photo(8, 8, seed=index), "PNG"))
    prepared = threading.Semaphore(0)

    def prepare(pixels, prompt):
        prepared.release()
        return torch.zeros(row_bytes, dtype=torch.uint8)

    operator = ImageViTEmbedding(allow_paths=(str(tmp_path),))
    rows = ImageRows(operator, [prepare], cpu_count=2, ahead_count=16, portion_row_count=8)
    names = pa.array([str(tmp_path / f"{index}.png") for index in range(count)])
    taken = rows.prepare([(names, None)])
    assert len(next(taken)) == 1
    # Those that fit, those that were begun meanwhile, and the one that was taken.
    most = capacity // row_bytes + 2 + 1
    ahead = 0
    while prepared.acquire(timeout=0.5):
        ahead += 1
    assert 1 <= ahead <= most
    assert sum(map(len, taken)) == count - 1
