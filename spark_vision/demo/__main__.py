"""`python -m spark_vision.demo FOLDER` writes the demonstration's images and checkpoint once."""

import argparse
from pathlib import Path

IMAGE_COUNT = 200


def main() -> None:
    """Write `FOLDER/images` and `FOLDER/checkpoint`, unless they are there."""
    parser = argparse.ArgumentParser(prog="python -m spark_vision.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--count", type=int, default=IMAGE_COUNT, help="images to draw")
    arguments = parser.parse_args()
    images = arguments.folder / "images"
    checkpoint = arguments.folder / "checkpoint"
    if not images.is_dir():
        from spark_vision.demo.images import write_images

        write_images(images, arguments.count)
    if not (checkpoint / "preprocessor_config.json").is_file():
        from spark_vision.demo.checkpoint import write_checkpoint

        write_checkpoint(checkpoint)


if __name__ == "__main__":
    main()
