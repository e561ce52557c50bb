"""`python -m spark_vision.demo FOLDER` writes the demo's scenes and some broken files, once."""

import argparse
from pathlib import Path

SCENE_COUNT = 100
RENDERING_COUNT = 2
SEED = 2026


def main() -> None:
    """Write `FOLDER/scenes`, unless it exists."""
    parser = argparse.ArgumentParser(prog="python -m spark_vision.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="the output folder")
    parser.add_argument("--count", type=int, default=SCENE_COUNT, help="scenes to draw, twice each")
    arguments = parser.parse_args()
    folder = arguments.folder / "scenes"
    # This file is written last: without it, an earlier run was interrupted.
    if not (folder / "scenes.jsonl").is_file():
        from spark_vision.demo.scene_files import write_scenes

        write_scenes(folder, arguments.count, SEED, renderings=RENDERING_COUNT, broken=True)


if __name__ == "__main__":
    main()
