"""spark_vision/jobs/index_vectors.py, as a file for spark-submit."""

from spark_vision.jobs.index_vectors import main

if __name__ == "__main__":
    raise SystemExit(main())
