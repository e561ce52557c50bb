"""spark_vision/jobs/run_sql.py, as a file for spark-submit."""

from spark_vision.jobs.run_sql import main

if __name__ == "__main__":
    raise SystemExit(main())
