"""A folder on any file system that Spark reads, by Hadoop's API: names, small texts, removal."""

from collections.abc import Callable
from typing import Any, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

_Found = TypeVar("_Found")


class HadoopFolder:
    """A folder, as the session's Hadoop configuration reaches it.

    Args:
        spark: A classic session.
        path: Its place, such as `s3a://bucket/folder`; it need not be there.
    """

    def __init__(self, spark: SparkSession, path: str) -> None:
        self.path = path.rstrip("/")
        self._spark = spark
        jvm: Any = spark._jvm
        self._new_path = jvm.org.apache.hadoop.fs.Path
        configuration = spark._jsparkSession.sessionState().newHadoopConf()
        self._files = self._new_path(path).getFileSystem(configuration)

    def folder(self, name: str) -> "HadoopFolder":
        """Name a folder in this one."""
        return HadoopFolder(self._spark, f"{self.path}/{name}")

    def exists(self) -> bool:
        """Whether the folder is there."""
        return bool(self._files.exists(self._at("")))

    def names(self) -> list[str]:
        """List what is in the folder; nothing where it is not there."""
        listed = _look(lambda: self._files.listStatus(self._at("")))
        return sorted(each.getPath().getName() for each in listed or ())

    def modified(self, name: str) -> int:
        """Say when a file was last written, in milliseconds; 0 where it is not there."""
        status = _look(lambda: self._files.getFileStatus(self._at(name)))
        return int(status.getModificationTime()) if status else 0

    def touch(self, name: str) -> None:
        """Make a file empty, and its time of change the present."""
        self._files.create(self._at(name), True).close()

    def read(self, name: str) -> str | None:
        """Read a small text; None where it is not there.

        Raises:
            ValueError: It is damaged, or no UTF-8.
        """
        stream = _look(lambda: self._files.open(self._at(name)))
        if stream is None:
            return None
        try:
            return bytes(stream.readAllBytes()).decode()
        except Py4JJavaError as error:
            if error.java_exception.getClass().getSimpleName() == "ChecksumException":
                raise ValueError(f"{self.path}/{name} is damaged") from error
            raise
        finally:
            stream.close()

    def write(self, name: str, text: str) -> None:
        """Write a small text; who lists the folder sees all of it or nothing."""
        hidden = self._at(f".{name}.writing")
        stream = self._files.create(hidden, True)
        stream.write(bytearray(text.encode()))
        stream.close()
        self._files.delete(self._at(name), False)
        self._files.rename(hidden, self._at(name))

    def delete_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._files.delete(self._at(name), False)

    def delete(self) -> None:
        """Remove the folder with all that is in it."""
        self._files.delete(self._at(""), True)

    def delete_if_empty(self) -> None:
        """Remove the folder where nothing is left in it."""
        if self.exists() and not self.names():
            self.delete()

    def _at(self, name: str) -> Any:
        return self._new_path(f"{self.path}/{name}" if name else self.path)


def _look(look: Callable[[], _Found]) -> _Found | None:
    """Give what is found; None where it is not there, or has gone while it was looked for."""
    try:
        return look()
    except Py4JJavaError as error:
        if error.java_exception.getClass().getName() == "java.io.FileNotFoundException":
            return None
        raise
