"""spark_vision/jobs/tag_images.py, as a file for spark-submit."""

from spark_vision.jobs.tag_images import main

if __name__ == "__main__":
    raise SystemExit(main())
