"""The places and checkpoints that documentation names, replaced by small ones that are here."""

import re


def replacing(folder, checkpoints):
    """Gives a function that puts a folder in the place of /data, and small checkpoints likewise."""
    places = {
        "/data/": f"{folder}/",
        "facebook/dinov2-base": str(checkpoints / "dinov2"),
        "openai/clip-vit-base-patch32": str(checkpoints / "clip"),
        "Qwen/Qwen2.5-VL-7B-Instruct": str(checkpoints / "qwen"),
    }
    pattern = re.compile("|".join(map(re.escape, places)))
    return lambda text: pattern.sub(lambda found: places[found[0]], text)
