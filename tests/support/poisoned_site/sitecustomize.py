"""Decoders gone wild: on the PYTHONPATH of a process, Pillow there does harm to some images.

What happens depends on the image's width; all others are decoded as ever.
"""

import ctypes
import os
import re
import socket
import stat
import time

from PIL import ImageFile


def abort():
    os.abort()


def segfault():
    ctypes.string_at(0)


def be_killed():
    os.kill(os.getpid(), 9)


def loop_for_ever():
    # In C, with the interpreter's lock held.
    re.match("(a+)+$", "a" * 100 + "b")


def sleep_for_ever():
    time.sleep(10_000)


def take_all_memory():
    taken = []
    while True:
        taken.append(bytearray(2**24))


def print_much():
    for descriptor in (0, 1, 2):
        os.write(descriptor, b"noise\n" * 100_000)
    print("noise" * 1000)


def write_a_file():
    with open("/tmp/written-by-a-decoder", "w") as file:  # noqa: PTH123
        file.write("noise")


def own_socket():
    for descriptor in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return descriptor
        except OSError:
            continue
    raise AssertionError("no socket")


def close_the_pipe():
    os.close(own_socket())
    time.sleep(10_000)


def answer_nonsense():
    os.write(own_socket(), b"nonsense" * 1000)


def claim_other_pixels():
    # As a PIXELS answer with another size than was announced.
    connection = socket.socket(fileno=own_socket())
    connection.sendall(b"P" + (40_000).to_bytes(4, "big") * 2 + b"\1")
    time.sleep(10_000)


def claim_a_long_reason():
    connection = socket.socket(fileno=own_socket())
    connection.sendall(b"F" + (2**31).to_bytes(4, "big") * 2 + b"\1" + b"a" * 100)
    time.sleep(10_000)


POISONS = {
    261: abort,
    262: segfault,
    263: be_killed,
    264: loop_for_ever,
    265: sleep_for_ever,
    266: take_all_memory,
    267: print_much,
    268: write_a_file,
    269: close_the_pipe,
    270: answer_nonsense,
    271: claim_other_pixels,
    272: claim_a_long_reason,
}
load = ImageFile.ImageFile.load


def poisoned_load(image):
    if image.tile:
        POISONS.get(image.size[0], lambda: None)()
    return load(image)


ImageFile.ImageFile.load = poisoned_load
