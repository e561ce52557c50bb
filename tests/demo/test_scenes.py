"""Scenes are what their captions say, belong to one split each, and follow from their seed."""

import pytest

from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.scenes import (
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    OPPOSITES,
    SPLITS,
    Scene,
    SceneObject,
    draw_scenes,
)

LEARNT = ("train", "validation", "test")


@pytest.fixture(scope="module")
def scenes():
    return {split: draw_scenes(800, seed=11, split=split) for split in SPLITS}


def stated(scene):
    first = scene.objects[0].shape
    for thing, relation in zip(scene.objects[1:], scene.relations, strict=True):
        yield first, relation, thing.shape
        yield thing.shape, OPPOSITES[relation], first


def test_no_scene_is_in_two_splits(scenes):
    drawn = [set(map(caption, scenes[split])) for split in SPLITS]
    assert sum(map(len, drawn)) == len(set.union(*drawn)) == 800 * len(SPLITS)


def test_what_is_held_out_is_never_learnt_and_always_asked(scenes):
    for split in SPLITS:
        for scene in scenes[split]:
            pairs = {(thing.colour, thing.shape) for thing in scene.objects}
            new_pair = bool(pairs & HELD_OUT_PAIRS)
            new_relation = bool({*stated(scene)} & HELD_OUT_RELATIONS)
            if split in LEARNT:
                assert not new_pair, scene
                assert not new_relation, scene
            elif split == "held_out_pairs":
                assert new_pair, scene
            else:
                assert new_relation, scene
                assert not new_pair, scene


def test_scenes_are_varied_and_ordered(scenes):
    everything = [scene for split in SPLITS for scene in scenes[split]]
    assert {len(scene.objects) for scene in everything} == {1, 2, 3}
    assert {relation for scene in everything for relation in scene.relations} == set(OPPOSITES)
    things = {thing for scene in everything for thing in scene.objects}
    assert len(things) == 8 * 6 * 2
    for scene in everything:
        orders = [thing.order for thing in scene.objects]
        assert orders == sorted(set(orders))


def test_seed_decides_scenes():
    assert draw_scenes(30, seed=1) == draw_scenes(50, seed=1)[:30]
    assert draw_scenes(30, seed=1) != draw_scenes(30, seed=2)


def test_captions_say_what_is_there():
    red = SceneObject("small", "red", "circle")
    blue = SceneObject("large", "blue", "square")
    green = SceneObject("small", "green", "star")
    scene = Scene((red, green, blue), ("above", "left of"))
    assert caption(Scene((red,), ())) == "a small red circle"
    assert caption(scene) == (
        "a small red circle above a small green star and left of a large blue square"
    )
    assert caption_zh(scene) == (
        "一个小的红色圆形在一个小的绿色星形的上面,在一个大的蓝色正方形的左边"
    )


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split got 'tset'; .*train, validation, test"):
        draw_scenes(1, seed=0, split="tset")
