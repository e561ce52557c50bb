"""Fills an index with demo scenes, and serves the page over it in a thread."""

import threading
from contextlib import contextmanager
from pathlib import Path

MARKUP = "<script>document.title='changed'</script><img src=x onerror=alert(1)>"


def fill(index, scenes):
    """Fill an index with all scenes."""
    index.create(scenes.records.schema, len(scenes.records["vector"][0]))
    assert not index.upsert(scenes.records).rejected
    index.write_properties(scenes.properties)
    return index


@contextmanager
def serve(source, model, folder):
    """Serve a page in a thread; yields its port."""
    from spark_vision.search_page.page import SearchPage
    from spark_vision.search_page.pictures import Pictures
    from spark_vision.search_page.server import listen, make_server

    pictures = Pictures(model.reader, Path(folder))
    server = make_server(SearchPage(source, model, pictures).application(("127.0.0.1",)))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=[[listener]])
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        pictures.close()
