"""Downloads resume, and give the file its name only when it is whole; against a server on this machine."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rlseq.data import _d4rl_table, _download, open_dataset
from rlseq.data._download import download
from rlseq.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)


class _Server(ThreadingHTTPServer):
    content = CONTENT
    ranges = True
    cut = None  # bytes after which an answer breaks off
    status = 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/set.hdf5"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        total = len(server.content)
        if server.status != 200:
            self.send_error(server.status)
            return
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with _Server() as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_a_whole_file_arrives_and_no_part_stays(server, tmp_path):
    download(server.url, tmp_path / "new/folder/set.hdf5")
    assert (tmp_path / "new/folder/set.hdf5").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["set.hdf5"]


def test_a_broken_connection_leaves_a_part_and_the_next_call_goes_on_from_there(server, tmp_path):
    server.cut = 100_000
    target = tmp_path / "set.hdf5"
    with pytest.raises(DataError, match="100000 of 300000 bytes.*goes on where it stopped"):
        download(server.url, target)
    assert not target.exists()
    server.cut = None
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_server_without_ranges_sends_the_file_anew(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(b"x" * 1000)
    server.ranges = False
    download(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_only_gets_its_name(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(CONTENT + b"x")
    with pytest.raises(DataError, match="longer than the file's 300000 bytes"):
        download(server.url, tmp_path / "set.hdf5")
    download(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT


def test_a_refusal_is_one_line_with_the_address_and_where_to_put_the_file(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError) as caught:
        download(server.url, tmp_path / "set.hdf5")
    assert not list(tmp_path.iterdir()), "nothing came, so nothing is left"
    message = str(caught.value)
    assert server.url in message
    assert str(tmp_path / "set.hdf5") in message
    assert "status 404" in message
    assert "\n" not in message


def test_no_server_is_one_line(tmp_path):
    with _Server() as gone:
        url = gone.url
    with pytest.raises(DataError, match="must arrive whole, got"):
        download(url, tmp_path / "set.hdf5")
    assert not list(tmp_path.iterdir())


def test_a_part_of_which_nothing_is_left_is_removed(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(b"x" * 1000)
    server.ranges, server.cut = False, 0
    with pytest.raises(DataError, match="0 of 300000 bytes"):
        download(server.url, tmp_path / "set.hdf5")
    assert not list(tmp_path.iterdir())


def test_a_part_that_holds_anything_outlives_a_refusal(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(CONTENT[:1000])
    server.status = 503
    with pytest.raises(DataError, match="status 503"):
        download(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5.part").read_bytes() == CONTENT[:1000]


def test_a_file_that_another_process_finished_leaves_no_part(server, tmp_path):
    (tmp_path / "set.hdf5").write_bytes(CONTENT)
    download(server.url, tmp_path / "set.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["set.hdf5"]
    assert server.asked == []


def test_a_part_that_was_removed_before_the_lock_is_not_written_to(server, tmp_path, monkeypatch):
    lock = _download._lock

    def after_another_process_gave_up(file, part):
        part.unlink()
        lock(file, part)

    monkeypatch.setattr(_download, "_lock", after_another_process_gave_up)
    with pytest.raises(DataError, match="another process"):
        download(server.url, tmp_path / "set.hdf5")
    assert server.asked == []


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null", "/dev/null/x"])
def test_a_cache_that_cannot_be_made_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", folder)
    with pytest.raises(DataError, match=rf"{folder}/hopper_medium-v2.hdf5 must be .*D4RL_DATASET_DIR") as caught:
        open_dataset("d4rl:hopper-medium-v2")
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_write_into_one_part(server, tmp_path):
    import fcntl

    with (tmp_path / "set.hdf5.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            download(server.url, tmp_path / "set.hdf5")


def test_a_d4rl_id_is_downloaded_once(server, tmp_path, monkeypatch, d4rl_arrays, write_d4rl):
    server.content = write_d4rl(d4rl_arrays).read_bytes()
    entry = _d4rl_table.D4RLEntry(server.url, 1000, (0.0, 1.0))
    monkeypatch.setitem(_d4rl_table.TABLE, "tiny-v0", entry)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    stores = [open_dataset("d4rl:tiny-v0") for _ in range(2)]
    assert [store.steps for store in stores] == [12, 12]
    assert len(server.asked) == 1
