"""Captions of scenes in English and Chinese: one sentence per scene."""

from spark_vision.demo.scenes import Scene, SceneObject

COLOURS_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "black": "黑色",
    "white": "白色",
}
SHAPES_ZH = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "cross": "十字形",
    "ring": "圆环",
}
SIZES_ZH = {"small": "小", "large": "大"}
RELATIONS_ZH = {"left of": "左边", "right of": "右边", "above": "上面", "below": "下面"}


def caption(scene: Scene) -> str:
    """Describe a scene in English.

    Args:
        scene: The scene.

    Returns:
        For example `a small red circle left of a large blue square and above a small green star`,
        where the first object is above the third. Different scenes have different captions.
    """
    first, *others = (_phrase(thing) for thing in scene.objects)
    related = [
        f"{relation} {other}" for relation, other in zip(scene.relations, others, strict=True)
    ]
    return " ".join([first, " and ".join(related)]).strip()


def caption_zh(scene: Scene) -> str:
    """Describe a scene in Chinese.

    Args:
        scene: The scene.

    Returns:
        For example `一个小的红色圆形在一个大的蓝色正方形的左边,在一个小的绿色星形的上面`.
    """
    first, *others = (_phrase_zh(thing) for thing in scene.objects)
    related = [
        f"在{other}的{RELATIONS_ZH[relation]}"
        for relation, other in zip(scene.relations, others, strict=True)
    ]
    return first + ",".join(related)


def _phrase(thing: SceneObject) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def _phrase_zh(thing: SceneObject) -> str:
    return f"一个{SIZES_ZH[thing.size]}的{COLOURS_ZH[thing.colour]}{SHAPES_ZH[thing.shape]}"
