"""Written scenes can be read, follow from their seed, and show what is written beside them."""

import json

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from spark_vision.demo import write_scenes
from spark_vision.demo.rendering import COLOUR_VALUES, render
from spark_vision.demo.scenes import OPPOSITES, Scene, SceneObject

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNT, seed=5, renderings=2)
    return folder


@pytest.fixture(scope="module")
def truths(folder):
    return [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]


def middle(box):
    left, top, right, bottom = box
    return np.array([left + right, top + bottom]) / 2


def test_files_decode_in_every_format_and_shape(folder, truths):
    images = [Image.open(folder / truth["file"]) for truth in truths]
    for image in images:
        image.load()
    assert {image.format for image in images} == {"JPEG", "PNG", "WEBP"}
    assert {image.width > image.height for image in images} == {True, False}
    assert len({image.size for image in images}) >= 5
    assert len(images) == 2 * COUNT


def test_objects_have_their_colour_and_size_where_the_truth_says(folder, truths):
    for truth in truths:
        with Image.open(folder / truth["file"]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        edge = min(pixels.shape[:2])
        for thing in truth["objects"]:
            left, top, right, bottom = thing["box"]
            assert 0 <= left < right <= pixels.shape[1]
            assert 0 <= top < bottom <= pixels.shape[0]
            assert ((right - left) / edge < 0.205) == (thing["size"] == "small"), truth
            x, y = middle(thing["box"])
            if thing["shape"] == "ring":
                # Its middle is a hole.
                y = top + 0.12 * (bottom - top)
            x, y = round(x), round(y)
            seen = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
            distances = {
                colour: np.linalg.norm(seen - value) for colour, value in COLOUR_VALUES.items()
            }
            assert min(distances, key=distances.get) == thing["colour"], (truth, seen)


def test_a_ring_has_a_hole_and_a_circle_has_none():
    def middle_is_filled(shape):
        scene = Scene((SceneObject("large", "white", shape),), ())
        picture = render(scene, np.random.default_rng(3))
        x, y = middle(picture.boxes[0])
        return min(picture.image.getpixel((round(x), round(y)))) > 215

    assert middle_is_filled("circle")
    assert not middle_is_filled("ring")


def test_relations_are_true_along_their_axis(truths):
    assert {item["relation"] for truth in truths for item in truth["relations"]} == set(OPPOSITES)
    for truth in truths:
        for item in truth["relations"]:
            boxes = [truth["objects"][item[role]]["box"] for role in ("subject", "object")]
            right, down = middle(boxes[1]) - middle(boxes[0])
            truly = {"left of": right, "right of": -right, "above": down, "below": -down}
            assert max(truly, key=truly.get) == item["relation"], truth
            across = min(abs(right), abs(down))
            assert truly[item["relation"]] > 1.4 * across, truth


def test_objects_do_not_overlap(truths):
    for truth in truths:
        boxes = [thing["box"] for thing in truth["objects"]]
        for one, other in [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]:
            radii = (max(box[2] - box[0], box[3] - box[1]) / 2 for box in (one, other))
            assert np.linalg.norm(middle(one) - middle(other)) > 0.9 * sum(radii), truth


def test_renderings_of_a_scene_differ(folder, truths):
    for one, other in zip(truths[::2], truths[1::2], strict=True):
        assert one["caption"] == other["caption"]
        assert [thing["box"] for thing in one["objects"]] != [
            thing["box"] for thing in other["objects"]
        ]


def test_seed_decides_every_byte(tmp_path):
    def contents(name, count, seed):
        return [path.read_bytes() for path in write_scenes(tmp_path / name, count, seed)]

    assert contents("a", 6, 1) == contents("b", 8, 1)[:6]
    assert contents("a", 6, 1) != contents("c", 6, 2)


def test_broken_files_are_broken_each_in_its_way(tmp_path):
    empty, text, truncated = write_scenes(tmp_path, 1, seed=0, broken=True)[-3:]
    assert empty.read_bytes() == b""
    with pytest.raises(UnidentifiedImageError):
        Image.open(text)
    with pytest.raises(OSError, match="truncated"):
        Image.open(truncated).load()
    assert len((tmp_path / "scenes.jsonl").read_text().splitlines()) == 1


def test_truth_is_not_there_before_all_files_are(tmp_path):
    (tmp_path / "truncated.jpg").mkdir()
    with pytest.raises(IsADirectoryError):
        write_scenes(tmp_path, 1, seed=0, broken=True)
    assert (tmp_path / "text.jpg").is_file()
    assert not (tmp_path / "scenes.jsonl").exists()
