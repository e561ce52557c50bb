"""spark_vision/jobs/show_demo.py, as a file for spark-submit."""

from spark_vision.jobs.show_demo import main

if __name__ == "__main__":
    raise SystemExit(main())
