"""Decoders in processes of their own, with real poison: each of them costs one image."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from encoded_images import as_tensor, encode, exif_with_orientation, photo, photo_with_alpha
from spark_vision.errors import RowFailure, Status
from spark_vision.images import isolated_decoding
from spark_vision.images.cost import Format
from spark_vision.images.decoding import decode
from spark_vision.images.pillow_decoding import decode_by_pillow
from spark_vision.operators import ImageLimits

POISONED_SITE = Path(__file__).parents[1] / "support" / "poisoned_site"
LIMITS = ImageLimits()
HURRIED = ImageLimits(decode_seconds=0.5)
WAIT_SECONDS = 60


def gif(width):
    return encode(photo(width, 40, seed=width), "GIF")


def by_pillow_here(data, format=Format.GIF):
    return decode_by_pillow(memoryview(data), format, lambda size: None)


def decode_to_array(data, limits=LIMITS, **options):
    return decode(as_tensor(data), limits, **options).permute(1, 2, 0).numpy()


def decoder_pids(pid=None):
    """The decoder processes of this process, or of another one, that run."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True) if decodes(child)}


def decodes(process):
    try:
        return any("decoder_process" in word for word in process.cmdline())
    except psutil.Error:
        # It has ended meanwhile.
        return False


def wait_until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def fresh_processes(monkeypatch):
    """Each test starts its own, and leaves none."""

    def end_all():
        while isolated_decoding._idle:
            isolated_decoding._idle.pop().kill()

    end_all()
    monkeypatch.setattr(isolated_decoding, "_is_possible", None)
    yield
    end_all()
    assert decoder_pids() == set()


@pytest.fixture
def poisoned(monkeypatch):
    """Decoder processes that start now have poisoned decoders; this one has not."""
    monkeypatch.syspath_prepend(POISONED_SITE)
    monkeypatch.setattr(isolated_decoding, "END_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("width", "status", "reason"),
    [
        (261, Status.DECODE_ERROR, "ended with signal 6 on this GIF"),
        (262, Status.DECODE_ERROR, "ended with signal 11 on this GIF"),
        (263, Status.DECODE_ERROR, "ended with signal 9 on this GIF"),
        (264, Status.TIMEOUT, "not decoded within 0.5 s"),
        (265, Status.TIMEOUT, "not decoded within 0.5 s"),
        (266, Status.OUT_OF_MEMORY, "not enough memory"),
        (268, Status.DECODE_ERROR, "File too large"),
        (269, Status.DECODE_ERROR, "on this GIF"),
        (270, Status.DECODE_ERROR, "invalid answer for this GIF"),
        (271, Status.DECODE_ERROR, "40000 × 40000 pixels instead of 271 × 40"),
        (272, Status.DECODE_ERROR, "a reason of 4,294,967,296 bytes"),
    ],
)
def test_poison_costs_only_its_row(poisoned, width, status, reason):
    limits = HURRIED if status is Status.TIMEOUT else LIMITS
    neighbours = gif(100), gif(101)
    before = decode_to_array(neighbours[0])
    with pytest.raises(RowFailure) as caught:
        decode_to_array(gif(width), limits)
    assert caught.value.status == status
    assert reason in caught.value.reason
    after = decode_to_array(neighbours[1])
    np.testing.assert_array_equal(before, by_pillow_here(neighbours[0]))
    np.testing.assert_array_equal(after, by_pillow_here(neighbours[1]))
    assert len(decoder_pids()) == 1


def test_output_of_a_decoder_is_discarded(poisoned, capfd):
    data = gif(267)
    np.testing.assert_array_equal(decode_to_array(data), by_pillow_here(data))
    assert capfd.readouterr() == ("", "")


def test_a_process_serves_one_image_after_the_other():
    used = set()
    for width in range(20, 40):
        decode_to_array(gif(width))
        used |= decoder_pids()
    assert len(used) == 1


def test_a_refused_image_costs_no_process():
    decode_to_array(gif(20))
    (pid,) = decoder_pids()
    for data in (gif(30)[:200], encode(photo(64, 48), "TIFF")):
        with pytest.raises(RowFailure):
            decode_to_array(data, ImageLimits(max_pixels=1300))
    decode_to_array(gif(20))
    assert decoder_pids() == {pid}


def test_a_process_that_ended_between_images_is_replaced():
    data = gif(20)
    decode_to_array(data)
    (pid,) = decoder_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not decoder_pids())
    np.testing.assert_array_equal(decode_to_array(data), by_pillow_here(data))
    assert decoder_pids() != {pid}


def test_an_image_whose_process_was_killed_from_outside_is_decoded_in_another():
    """As the kernel does if memory runs out."""
    data = gif(20)
    victims = []

    def check_size(size):
        if not victims:
            victims.extend(decoder_pids())
            os.kill(victims[0], signal.SIGKILL)

    pixels = isolated_decoding.decode_isolated(memoryview(data), Format.GIF, check_size, LIMITS)
    np.testing.assert_array_equal(pixels, by_pillow_here(data))
    assert len(victims) == 1


def test_there_are_no_more_processes_than_threads_that_decode():
    files = [gif(width) for width in range(20, 60)]
    seen, wrong = set(), []

    def work():
        for data in files:
            if not np.array_equal(decode_to_array(data), by_pillow_here(data)):
                wrong.append(data)
            seen.update(decoder_pids())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(seen) <= 3


@pytest.mark.parametrize(("width", "busy_seconds"), [(100, 0), (264, 0.8)])
def test_no_process_outlives_a_worker_that_is_killed(width, busy_seconds, tmp_path):
    (tmp_path / "image").write_bytes(gif(width))
    program = """
import sys, time
from spark_vision.images.cost import Format
from spark_vision.images.isolated_decoding import decode_isolated
from spark_vision.operators import ImageLimits
sys.path.insert(0, sys.argv[2])
data = memoryview(open(sys.argv[1], "rb").read())
print("begins", flush=True)
decode_isolated(data, Format.GIF, lambda size: None, ImageLimits(decode_seconds=8))
time.sleep(1000)
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "image", POISONED_SITE], stdout=subprocess.PIPE
    )
    assert worker.stdout.readline() == b"begins\n"
    wait_until(lambda: decoder_pids(worker.pid))
    (pid,) = decoder_pids(worker.pid)
    # By then it has started, and is caught in the loop.
    wait_until(lambda: psutil.Process(pid).cpu_times().user >= busy_seconds)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: not runs(pid))


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_decoder_has_no_secrets_and_no_descriptors_of_the_worker(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        decode_to_array(gif(20))
        (pid,) = decoder_pids()
        assert b"hf_secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        held = {number.name: str(number.readlink()) for number in Path(f"/proc/{pid}/fd").iterdir()}
    assert {held.pop(number) for number in "012"} == {"/dev/null"}
    (connection,) = held.values()
    assert connection.startswith("socket:")


def test_a_decoder_has_resource_limits():
    decode_to_array(gif(20))
    (pid,) = decoder_pids()
    limits = Path(f"/proc/{pid}/limits").read_text()
    lines = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert lines["Max file size"] == ["0", "0"]
    assert lines["Max core file size"] == ["0", "0"]
    assert int(lines["Max address space"][0]) < 4 * LIMITS.max_pixels + 2**30
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_a_decoder_process_starts_without_torch():
    program = (
        "import sys, spark_vision.images.decoder_process;"
        "print([name for name in ('torch', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert run.stdout == b"[]\n"


def test_a_forked_process_has_decoders_of_its_own(tmp_path):
    (tmp_path / "image").write_bytes(gif(100))
    program = """
import os, sys
from spark_vision.images import isolated_decoding
from spark_vision.images.cost import Format
from spark_vision.operators import ImageLimits
data = memoryview(open(sys.argv[1], "rb").read())
decode = lambda: isolated_decoding.decode_isolated(
    data, Format.GIF, lambda size: None, ImageLimits())
expected = decode()
(mine,) = isolated_decoding._idle
child = os.fork()
same = all((decode() == expected).all() for _ in range(3))
if not child:
    os._exit(0 if same and isolated_decoding._idle[0].pid != mine.pid else 1)
print(same, os.waitpid(child, 0)[1], isolated_decoding._idle == [mine])
"""
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "image"], capture_output=True, timeout=60
    )
    assert run.stdout == b"True 0 True\n", run.stderr


@pytest.mark.parametrize("interpreter", ["", "/no/such/python", "/bin/false"])
def test_without_a_process_images_are_decoded_here_with_one_warning(
    interpreter, monkeypatch, capfd
):
    monkeypatch.setattr(sys, "executable", interpreter)
    for data in (gif(50), gif(51)):
        np.testing.assert_array_equal(decode_to_array(data), by_pillow_here(data))
    jpeg = encode(photo(60, 40), "JPEG", exif=exif_with_orientation(6))
    assert decode_to_array(jpeg, isolate=True).shape == (60, 40, 3)
    output = capfd.readouterr().err
    assert output.count("no decoder process can be started") == 1


def test_after_a_started_process_no_image_is_decoded_here(monkeypatch):
    decode_to_array(gif(50))
    isolated_decoding._idle.pop().kill()
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RowFailure, match="out_of_memory: no decoder process can be started"):
            decode_to_array(gif(50))
    np.testing.assert_array_equal(decode_to_array(gif(50)), by_pillow_here(gif(50)))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_isolated_image_has_the_same_pixels(format, orientation):
    data = encode(photo(60, 40), format, exif=exif_with_orientation(orientation))
    np.testing.assert_array_equal(decode_to_array(data, isolate=True), decode_to_array(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_an_isolated_jpeg_has_the_same_pixels_in_every_mode(mode):
    data = encode(photo(131, 77).convert(mode), "JPEG", progressive=True)
    isolated, here = decode_to_array(data, isolate=True), decode_to_array(data)
    # Pillow and torchvision bring their own libjpeg.
    assert np.abs(isolated.astype(int) - here).max() <= 2
    assert np.abs(isolated.astype(int) - here).mean() <= 0.3


def test_an_image_of_many_bands_has_the_same_pixels():
    # A band is 2¹⁸ pixels, and the last one is not full.
    for format in ("GIF", "TIFF", "BMP"):
        data = encode(photo(700, 907), format)
        np.testing.assert_array_equal(decode_to_array(data), by_pillow_here(data, Format(format)))
    data = encode(photo_with_alpha(700, 907), "TIFF", exif=exif_with_orientation(8))
    np.testing.assert_array_equal(decode_to_array(data), by_pillow_here(data, Format.TIFF))
