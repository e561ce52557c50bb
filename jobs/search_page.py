"""spark_vision/jobs/search_page.py, as a file for spark-submit."""

from spark_vision.jobs.search_page import main

if __name__ == "__main__":
    raise SystemExit(main())
