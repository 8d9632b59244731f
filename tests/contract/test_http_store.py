"""The http store keeps the contract over a real server, and what only a network can suffer."""

import contextlib
import filecmp
import json
import multiprocessing
import os
import re
import resource
import secrets
import socket
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from hpo.core.errors import NoSuchStudy, NoSuchTrial, StoreError, StoreRefused, StoreUnreachable, UsageError
from hpo.core.trial import Completed
from hpo.stores import connect
from hpo.stores.http import HttpCatalog, HttpStore, Patience
from hpo.stores.rpc import MOST_BODY_BYTES, MOST_CHANGES, read_error
from hpo.stores.server import StoreServer, serving
from hpo.stores.sqlite import SqliteCatalog
from hpo.testing import IDENTITY, FakeClock, StoreContract

TOKEN = "a token of this test"


class TestHttpStore(StoreContract):
    @pytest.fixture
    def catalog(self, tmp_path: Path, clock: FakeClock):
        def opened(url: str) -> SqliteCatalog:
            return SqliteCatalog(url, create=True, clock=clock)

        with (
            serving(f"sqlite:///{tmp_path}/hpo.db", token=TOKEN, opened=opened) as server,
            closing(HttpCatalog(server.url, TOKEN)) as catalog,
        ):
            yield catalog

    @pytest.fixture
    def second(self, catalog: HttpCatalog):
        with closing(HttpCatalog(catalog.url, TOKEN)) as second:
            yield second


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/hpo.db"
    with closing(connect(url, create=True)) as catalog:
        catalog.create(IDENTITY)
    return url


@pytest.fixture
def server(url: str) -> Iterator[StoreServer]:
    with serving(url, token=TOKEN) as server:
        yield server


@pytest.fixture
def store(server: StoreServer) -> Iterator[HttpStore]:
    with closing(HttpCatalog(server.url, TOKEN)) as catalog:
        yield catalog.open("digits")


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def impostor() -> Iterator[Callable[[bytes], str]]:
    """``impostor(answer)``: the address of something that answers every connection with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(answer: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    def start(answer: bytes) -> str:
        threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


# --- who may enter


def test_a_wrong_token_is_refused_with_the_mend_and_never_shown(server: StoreServer) -> None:
    with pytest.raises(StoreRefused, match="does not know this token") as raised:
        HttpCatalog(server.url, "guessed-secret")

    assert "HPO_TOKEN" in raised.value.hint
    assert "guessed-secret" not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize("token", [None, "", "  ", "two\nlines"])
def test_a_missing_token_is_told_before_anything_is_sent(token: str | None, monkeypatch) -> None:
    monkeypatch.delenv("HPO_TOKEN", raising=False)

    with pytest.raises(StoreRefused, match="wants a token") as raised:
        HttpCatalog("http://127.0.0.1:9", token)

    assert "HPO_TOKEN" in raised.value.hint


def test_the_token_comes_from_the_environment(server: StoreServer, monkeypatch) -> None:
    monkeypatch.setenv("HPO_TOKEN", TOKEN)

    with closing(connect(server.url)) as catalog:
        assert catalog.names() == ["digits"]
        assert catalog.url == server.url


@pytest.mark.parametrize("path", ["/", "/call", "/docs", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_no_route_answers_without_the_token(server: StoreServer, path: str, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": token}

    for method in ("GET", "POST"):
        assert requests.request(method, server.url + path, headers=headers, timeout=10).status_code == 401


def test_a_user_name_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="user name") as raised:
        HttpCatalog("http://me:secret@127.0.0.1:8765", TOKEN)

    assert "secret" not in f"{raised.value.message} {raised.value.hint}"


def test_only_the_study_that_is_served_exists(url: str) -> None:
    with closing(connect(url)) as catalog:
        catalog.create(replace(IDENTITY, study="other"))

    with (
        serving(url, token=TOKEN, study="other") as server,
        closing(HttpCatalog(server.url, TOKEN)) as catalog,
    ):
        assert catalog.names() == ["other"]
        assert catalog.open("other").record().identity.study == "other"
        for reach in (
            lambda: catalog.open("digits"),
            lambda: catalog.create(IDENTITY),
            lambda: list(HttpStore(catalog.url, "digits", catalog._line).trials()),
            lambda: HttpStore(catalog.url, "digits", catalog._line).get_file("a", Path("a")),
        ):
            with pytest.raises(NoSuchStudy):
                reach()


# --- what is there instead


IMPATIENT = Patience(training_seconds=0.3)


def test_an_address_that_nobody_has_is_told(free_port: int) -> None:
    with pytest.raises(StoreUnreachable, match=f"no server answers at http://127.0.0.1:{free_port}"):
        HttpCatalog(f"http://127.0.0.1:{free_port}", TOKEN, IMPATIENT)


def test_a_machine_that_does_not_exist_is_told() -> None:
    with pytest.raises(StoreUnreachable, match=r"http://no-such-machine\.invalid:1"):
        HttpCatalog("http://no-such-machine.invalid:1", TOKEN, IMPATIENT)


def test_a_server_without_tls_is_told_where_https_was_asked(server: StoreServer) -> None:
    with pytest.raises(StoreUnreachable, match=r"https://.* speaks no TLS"):
        HttpCatalog(server.url.replace("http://", "https://"), TOKEN)


def test_a_server_behind_tls_is_believed_with_its_certificate_alone(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with closing(tls_in_front_of(server, tmp_path)) as front:
        address = f"https://127.0.0.1:{front.getsockname()[1]}"

        with pytest.raises(StoreUnreachable, match="no certificate that this machine trusts"):
            HttpCatalog(address, TOKEN)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
        with closing(HttpCatalog(address, TOKEN)) as catalog:
            assert catalog.names() == ["digits"]


def tls_in_front_of(server: StoreServer, folder: Path) -> socket.socket:
    """The listener of a proxy that ends TLS, as nginx would, with a certificate that it has made itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=here"]
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *more], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    host, port = server.url.removeprefix("http://").split(":")
    front = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                raw, _ = front.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):  # a client that does not believe it
                client = context.wrap_socket(raw, server_side=True)
                inner = socket.create_connection((host, int(port)))
                for ends in ((client, inner), (inner, client)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return front


@pytest.mark.parametrize(
    "address", ["http://", "http://:1", "http://h:port", "http://h:1/path", "http://h:1?a=b"]
)
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(UsageError, match="address"):
        HttpCatalog(address, TOKEN)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "no server of hpo"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "no server of hpo"),
        (b"HTTP/1.1 426 Upgrade\r\nHpo-Protocol: 99\r\nContent-Length: 2\r\n\r\n{}", "protocol 99"),
        (b"HTTP/1.1 200 OK\r\nHpo-Protocol: 1\r\nContent-Length: 2\r\n\r\n[]", "what hpo does not"),
        (b"HTTP/1.1 200 OK\r\nHpo-Protocol: 1\r\nContent-Length: 3\r\n\r\n\xff\xfe{", "what hpo does not"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "without an answer"),
        (b"", "without an answer"),
    ],
    ids=["page", "redirect", "newer", "list", "rubbish", "ssh", "silent"],
)
def test_what_is_no_server_of_hpo_is_told_as_what_it_is(answer: bytes, sentence: str, impostor) -> None:
    with pytest.raises(StoreError, match=sentence) as raised:
        HttpCatalog(impostor(answer), TOKEN, IMPATIENT)

    assert raised.value.hint


def test_a_client_of_another_version_is_refused(server: StoreServer) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Hpo-Protocol": "2"}

    answer = requests.post(server.url + "/call", headers=headers, timeout=10)

    assert (answer.status_code, answer.headers["Hpo-Protocol"]) == (426, "1")


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_told(
    server: StoreServer, url: str
) -> None:
    port = int(server.url.rpartition(":")[2])

    with pytest.raises(StoreUnreachable, match="in use"), serving(url, port=port, token=TOKEN):
        pass
    with pytest.raises(StoreUnreachable, match="Cannot assign"), serving(url, host="192.0.2.1", token=TOKEN):
        pass


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(server: StoreServer, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    with closing(HttpCatalog(server.url, TOKEN)) as catalog:
        assert catalog.names() == ["digits"]


def test_a_netrc_does_not_replace_the_token(server: StoreServer, tmp_path: Path, monkeypatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))

    with closing(HttpCatalog(server.url, TOKEN)) as catalog:
        assert catalog.names() == ["digits"]


# --- what arrives


def asks(call: object, study: object = "digits", **arguments: object) -> bytes:
    return json.dumps({"call": call, "study": study, "with": arguments}).encode()


CLAIM = {"number": 0, "token": "t", "attempt": 1, "worker": "w", "point": {}, "run_id": None}
REPORT = {"claim": CLAIM, "epoch": 0, "loss": 0.5, "metrics": {}, "time": 0.0}
ADD = {"number": 0, "point": {}, "params": {}, "run_id": None}
HOSTILE = [
    b"",
    b"{",
    b"{}",
    b"null",
    b"[]",
    b'"\\ud800"',
    b"\xff\xfe",
    b"[" * 20_000,
    b"9" * 10_000,
    b'{"call": "claim"}',
    b'{"call": "record", "study": "digits", "with": []}',
    asks("close"),
    asks("__class__"),
    asks(["claim"]),
    asks("claim", None, worker="w"),
    asks("claim", ["digits"], worker="w"),
    asks("claim", worker=7),
    asks("record", "\udc80"),
    asks("announce", worker="\udc80", offers={}),
    asks("announce", worker="w", offers="many"),
    asks("create", "new", identity={"seed": "x"}),
    asks("create", "new", identity=None),
    asks("add", **ADD | {"number": 10**30}),
    asks("add", **ADD | {"point": {"x": "y"}}),
    asks("add", **ADD | {"run_id": 0}),
    asks("renew", claim=CLAIM | {"number": True}),
    asks("finish", claim=CLAIM, outcome={"state": "waiting"}),
    asks("finish", claim=CLAIM, outcome={"state": "completed"}),
    asks("report", **REPORT | {"loss": "low"}),
    asks("report", **REPORT | {"metrics": {"f1": None}}),
    asks("stop", number=0, verdict={"epoch": "x"}),
    asks("changes", since=1e9, limit=3),
]


def post(server: StoreServer, path: str, body: object, **headers: str) -> requests.Response:
    known = {
        "Authorization": f"Bearer {TOKEN}",
        "Hpo-Protocol": "1",
        "Idempotency-Key": secrets.token_hex(16),
    }
    return requests.post(server.url + path, data=body, headers=known | headers, timeout=30)


def test_documents_that_are_none_are_refused_in_a_sentence(server: StoreServer, store: HttpStore) -> None:
    before = store.record()

    for path in ("/call", "/stream", "/files", "/file"):
        for body in HOSTILE:
            answer = post(server, path, body)

            error = answer.json()["error"]
            assert answer.status_code == 400, (path, body[:200], error)
            assert error["message"]
            assert "Traceback" not in answer.text
    assert store.record() == before
    assert store.workers() == []


def test_a_write_without_a_key_is_refused(server: StoreServer) -> None:
    body = json.dumps({"call": "note", "study": "digits", "with": {"name": "a", "value": 1}})

    answer = post(server, "/call", body, **{"Idempotency-Key": ""})

    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]["message"]


def test_a_document_that_is_too_large_is_refused_on_both_sides(server: StoreServer, store: HttpStore) -> None:
    assert post(server, "/call", b" " * (MOST_BODY_BYTES + 1)).status_code == 413
    with pytest.raises(StoreError, match="more than the server"):
        store.note("large", "x" * MOST_BODY_BYTES)

    store.note("small", "x")


def upload(content: bytes, *sizes: int, **header: object) -> bytes:
    files = [{"name": f"file {number}", "size": size} for number, size in enumerate(sizes)]
    known = {"study": "digits", "trial": 0, "drop": [], "claim": None, "files": files}
    return json.dumps(known | header).encode() + b"\n" + content


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (upload(b"1234", 5), "less arrived"),
        (upload(b"1234", 2, 3), "less arrived"),
        (upload(b"123456", 5), "more arrived"),
        (upload(b"", -1), "negative"),
        (upload(b"1234", 4, files=[{"name": "a", "size": 2}, {"name": "a", "size": 2}]), "twice"),
        (upload(b"1234", 4, claim={"number": 0}), "claim"),
        (b"no newline", "no end"),
    ],
)
def test_an_upload_that_is_not_as_announced_keeps_nothing(
    server: StoreServer, store: HttpStore, tmp_path: Path, body: bytes, sentence: str
) -> None:
    answer = post(server, "/files", body)

    assert answer.status_code == 400
    assert re.search(sentence, answer.json()["error"]["message"])
    assert store.files(0) == []
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "hpo.db.files").rglob("*") if path.name.startswith(".")]


def test_errors_of_the_store_keep_their_class_and_their_hint(server: StoreServer, store: HttpStore) -> None:
    with closing(HttpCatalog(server.url, TOKEN)) as catalog, pytest.raises(NoSuchStudy) as no_study:
        catalog.open("digit")
    with pytest.raises(NoSuchTrial, match="trial 3") as no_trial:
        store.trial(3)

    assert "did you mean digits?" in no_study.value.hint
    assert no_trial.value.hint == "list them: hpo show digits"


def test_a_class_of_error_that_is_none_of_ours_is_a_store_error() -> None:
    for name in ("SystemExit", "IntEnum", "TrialPruned", "__name__", "Later"):
        error = read_error({"class": name, "message": "m", "hint": "h"})

        assert type(error) is StoreError
        assert (error.message, error.hint) == ("m", "h")


# --- much


def test_a_file_of_50_megabytes_goes_and_comes_in_little_memory(store: HttpStore, tmp_path: Path) -> None:
    large = tmp_path / "large"
    block = os.urandom(1 << 20)
    with open(large, "wb") as file:
        for number in range(50):
            file.write(bytes([number]) + block[1:])
    tracemalloc.start()

    [kept] = store.put_files({"checkpoint/large": large}, 0)
    assert store.get_file("checkpoint/large", tmp_path / "back", 0)

    _, peak_bytes = tracemalloc.get_traced_memory()  # of client and server, which are one process here
    tracemalloc.stop()
    assert kept.size == 50 << 20
    assert filecmp.cmp(large, tmp_path / "back", shallow=False)
    assert peak_bytes < 20 << 20
    assert leftovers(tmp_path) == []


def test_many_files_are_more_than_a_process_may_have_open(store: HttpStore, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = {f"artifacts/{number}": tmp_path / f"{number}" for number in range(200)}
    for name, path in files.items():
        path.write_text(name)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        store.put_files(files, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert len(store.files(0)) == 200


def test_a_file_that_shrinks_while_it_is_sent_is_told_as_such(
    store: HttpStore, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(
        Path, "stat", lambda self, **_: os.stat_result((0o100644, 0, 0, 1, 0, 0, 200, 0, 0, 0))
    )

    with pytest.raises(OSError, match="became shorter"):
        store.put_files({"log.txt": path}, 0)

    monkeypatch.undo()
    assert store.files(0) == []


def test_changes_and_trials_of_more_than_one_answer_are_whole(store: HttpStore) -> None:
    count = 2 * MOST_CHANGES + 10
    store.add_all([(number, {"x": number}, {"x": number}) for number in range(count)])

    changes = store.changes(0)

    assert [trial.number for trial in changes.trials] == list(range(count))
    assert changes.revision == store.record().revision
    assert [trial.number for trial in store.trials()] == list(range(count))


def claim_all(url: str, name: str, queue) -> None:  # type: ignore[no-untyped-def]
    mine = []
    with closing(HttpCatalog(url, TOKEN)) as catalog:
        store = catalog.open("digits")
        while (claim := store.claim(name, wait_seconds=0.2)) is not None:
            store.report(claim, 0, 0.5, {}, time=1.0)
            store.finish(claim, Completed(claim.number / 1000))
            mine.append(claim.number)
    queue.put(mine)


def test_eight_processes_claim_each_trial_once_and_lose_none(server: StoreServer, store: HttpStore) -> None:
    store.add_all([(number, {"x": number}, {}) for number in range(200)])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=claim_all, args=(server.url, f"w{i}", queue)) for i in range(8)]
    for worker in workers:
        worker.start()

    claimed = [queue.get(timeout=120) for _ in workers]

    for worker in workers:
        worker.join()
    assert sorted(number for mine in claimed for number in mine) == list(range(200))
    assert store.record().counts["completed"] == 200
    assert len({trial.revision for trial in store.trials()}) == 200


# --- who waits


def test_more_claims_wait_than_there_are_threads_and_each_gets_its_trial(
    server: StoreServer, store: HttpStore
) -> None:
    count, before = 60, threading.active_count()
    with ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(claimed, server.url, f"w{number}", number) for number in range(count)]
        threads = threading.active_count()
        store.add_all([(number, {}, {}) for number in range(count)])

        numbers = [one.result(60) for one in waiting]

    assert numbers == list(range(count))
    assert threads - before <= count + 5


def claimed(url: str, worker: str, number: int) -> int:
    with closing(HttpCatalog(url, TOKEN)) as catalog:
        claim = catalog.open("digits").claim(worker, number, wait_seconds=60)
    assert claim is not None
    return claim.number


def test_who_hung_up_while_waiting_claims_nothing(server: StoreServer, store: HttpStore) -> None:
    asked = {"worker": "gone", "number": None, "gpus": [], "wait_seconds": 20.0, "token": None}
    body = json.dumps({"call": "claim", "study": "digits", "with": asked}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /call HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\nHpo-Protocol: 1\r\n"
        f"Idempotency-Key: {'k' * 32}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        store.record()  # the server has seen the claim by now

    store.add(0, {}, {})
    claim = store.claim("here", wait_seconds=60)

    assert claim is not None
    assert store.trial(0).worker == "here"
    assert store.trial(0).attempts == 1
