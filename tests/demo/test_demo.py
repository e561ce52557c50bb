"""The demonstration's files are written once, and an interrupted writing is done again."""

import subprocess
import sys


def test_the_module_writes_scenes_and_broken_files_once(tmp_path):
    command = [sys.executable, "-m", "spark_vision.demo", str(tmp_path), "--count", "2"]
    subprocess.run(command, check=True, timeout=120)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert len(written) == 2 * 2 + 3 + 1
    assert tmp_path / "scenes" / "truncated.jpg" in written
    subprocess.run(command, check=True, timeout=120)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    (tmp_path / "scenes" / "scenes.jsonl").unlink()
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "scenes" / "scenes.jsonl").is_file()
