"""The one-time download of WANDS, from a real server on the loopback."""

import http.server
import threading

import pytest

from agr_trl.data.wands import BASE_URL, BLOB_IDS, download_wands, git_blob_id
from agr_trl.errors import UserError


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "served"
    root.mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *arguments):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{served.server_address[1]}", requests
        served.shutdown()
        thread.join()


def test_git_blob_id_is_that_of_git(tmp_path):
    path = tmp_path / "hello"
    path.write_text("hello\n")
    # git hash-object of the same content
    assert git_blob_id(path) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_download_once_and_verified(server, tmp_path):
    root, url, requests = server
    (root / "query.csv").write_text("hello\n")
    blob_ids = {"query.csv": "ce013625030ba8dba906f756967f9e9ca394464a"}
    folder = download_wands(tmp_path / "cache" / "wands", url, blob_ids)
    assert (folder / "query.csv").read_text() == "hello\n"
    assert [path.name for path in folder.iterdir()] == ["query.csv"]
    download_wands(folder, url, blob_ids)
    assert len(requests) == 1


def test_wrong_content_leaves_nothing(server, tmp_path):
    root, url, _ = server
    (root / "query.csv").write_text("hellO\n")
    with pytest.raises(UserError, match=r"git blob id .* point --dataset_path at their folder"):
        download_wands(tmp_path / "cache", url, {"query.csv": "ce0136"})
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_file_or_no_server_says_what_to_do(server, tmp_path):
    _, url, _ = server
    with pytest.raises(UserError, match=r"404.*--dataset_path"):
        download_wands(tmp_path / "cache", url, {"label.csv": "ce0136"})
    with pytest.raises(UserError, match=r"cannot download .*--dataset_path"):
        download_wands(tmp_path / "cache", "http://127.0.0.1:9", {"label.csv": "ce0136"})
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_commit_is_pinned():
    assert "/3b74dcf4ba29ab8ff3e6a50b5b09fc627cb882b5/" in BASE_URL
    assert set(BLOB_IDS) == {"query.csv", "product.csv", "label.csv"}
