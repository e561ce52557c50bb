"""spark_vision/jobs/caption_images.py, as a file for spark-submit."""

from spark_vision.jobs.caption_images import main

if __name__ == "__main__":
    raise SystemExit(main())
