"""Code in the documentation; the places that it names are replaced by small ones that are here."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks_of(page, language):
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


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
