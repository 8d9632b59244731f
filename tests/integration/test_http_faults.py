"""A network that cuts, swallows and delays, and servers that go and come: every write is applied once."""

from __future__ import annotations

import contextlib
import enum
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpo.core.errors import ClaimLost, StoreUnreachable
from hpo.core.trial import Answer, Claim, Completed, Failed, Kind, State
from hpo.keeper import Keeper
from hpo.stores import Store, connect
from hpo.stores.http import HttpCatalog, HttpStore, Patience
from hpo.stores.server import serving
from hpo.testing import IDENTITY

TOKEN = "a token of this test"


class Fault(enum.Enum):
    """What happens to one request on its way."""

    CUT_REQUEST = "the connection is cut before it arrives"
    CUT_ANSWER = "the connection is cut when it has been answered"
    LOSE_REQUEST = "it never arrives, and nobody says so"
    LOSE_ANSWER = "its answer never arrives, and nobody says so"
    CUT_IN_REQUEST = "the connection is cut in its middle"
    CUT_IN_ANSWER = "the connection is cut in the middle of its answer"


@dataclass
class Network:
    """A TCP proxy that does to the next requests what ``faults`` say; those after them pass.

    ``requests`` counts those that came, ``answered`` is called when the answer of a faulty one is there.
    """

    upstream: int
    faults: list[Fault] = field(default_factory=list)
    answered: Callable[[], None] = lambda: None
    is_down: bool = False
    requests: int = 0
    opened: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def go_down(self) -> None:
        self.is_down = True

    def cut(self) -> None:
        """End the connections there are."""
        for one in self.opened:
            _end(one)
        self.opened.clear()

    @staticmethod
    def _start(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.is_down:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                self.requests += 1
                _end(client)
                continue
            self.opened += [client, server]
            _Connection(self, client, server).start()


@dataclass
class _Connection:
    network: Network
    client: socket.socket
    server: socket.socket
    fault: Fault | None = None

    def start(self) -> None:
        Network._start(self._pump, self.client, self.server, self._ask)
        Network._start(self._pump, self.server, self.client, self._answer)

    def _pump(self, source: socket.socket, target: socket.socket, pass_on: Callable[[bytes], bool]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not pass_on(data):
                    break
        _end(source)
        _end(target)

    def _ask(self, data: bytes) -> bool:
        if data.startswith(b"POST "):
            self.network.requests += 1
            self.fault = self.network.faults.pop(0) if self.network.faults else None
        elif self.fault is Fault.CUT_IN_REQUEST:
            self.server.sendall(data[: len(data) // 2])
            return False
        if self.fault is Fault.CUT_REQUEST:
            return False
        if self.fault is not Fault.LOSE_REQUEST:
            self.server.sendall(data)
        return True

    def _answer(self, data: bytes) -> bool:
        if self.fault in (Fault.CUT_ANSWER, Fault.LOSE_ANSWER):
            answered, self.network.answered = self.network.answered, lambda: None
            answered()
            return self.fault is Fault.LOSE_ANSWER
        if self.fault is Fault.CUT_IN_ANSWER:
            self.client.sendall(data[: len(data) // 2])
            return False
        self.client.sendall(data)
        return True


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


# Who gets no answer asks again soon.
PATIENCE = Patience(seconds=20, training_seconds=10, answer_seconds=1, file_seconds=1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture
def direct(url: str) -> Iterator[Store]:
    """The store as it is, past any network."""
    with closing(connect(url, create=True)) as catalog:
        store = catalog.create(IDENTITY)
        for number in (0, 1):
            store.add(number, {"x": number}, {})
        yield store


@pytest.fixture
def servers(url: str, direct: Store) -> Iterator[Servers]:
    with contextlib.closing(Servers(url)) as servers:
        yield servers


class Servers:
    """One server at a time, each at the port of the first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._running = contextlib.ExitStack()
        self.port = 0
        self.start()

    def start(self) -> None:
        server = self._running.enter_context(serving(self._url, port=self.port, token=TOKEN))
        self.port = int(server.url.rpartition(":")[2])
        self.url = server.url

    def close(self) -> None:
        self._running.close()

    def restart(self) -> None:
        self.close()
        self.start()


@pytest.fixture
def network(servers: Servers) -> Iterator[Network]:
    with closing(Network(servers.port)) as network:
        yield network


@pytest.fixture
def opened(network: Network) -> Iterator[Callable[[Patience], HttpStore]]:
    """``opened(patience)``: the store over the network."""
    with contextlib.ExitStack() as closing_all:

        def opened(patience: Patience) -> HttpStore:
            catalog = closing_all.enter_context(closing(HttpCatalog(network.url, TOKEN, patience)))
            return catalog.open("digits")

        yield opened


@pytest.fixture
def store(opened: Callable[[Patience], HttpStore]) -> HttpStore:
    return opened(PATIENCE)


# --- one request

WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "add": lambda store, claim: store.add(9, {"x": 1}, {}),
    "add_all": lambda store, claim: store.add_all([(9, {"x": 1}, {})]),
    "claim": lambda store, claim: store.claim("v"),
    "claim, waiting": lambda store, claim: store.claim("v", wait_seconds=2),
    "report": lambda store, claim: store.report(claim, 0, 0.5, {}, time=1.0),
    "finish": lambda store, claim: store.finish(claim, Completed(0.5)),
    "release": lambda store, claim: store.release(claim),
    "lose": lambda store, claim: store.lose(claim.worker, Failed(Kind.SIGNAL, "killed"), 1),
    "recall": lambda store, claim: store.recall([claim.number]),
}
ON_THE_WAY = [Fault.CUT_REQUEST, Fault.CUT_ANSWER, Fault.LOSE_REQUEST, Fault.LOSE_ANSWER]


def claimed(store: Store, number: int) -> Claim:
    claim = store.claim("w", number)
    assert claim is not None
    return claim


@pytest.mark.parametrize("fault", ON_THE_WAY, ids=lambda fault: fault.name)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_on_a_bad_network_is_applied_once(
    write: str, fault: Fault, store: HttpStore, direct: Store, network: Network
) -> None:
    claim = claimed(direct, 0)
    before = direct.record().revision
    network.faults = [fault, fault]

    result = WRITES[write](store, claim)

    assert network.faults == []
    assert direct.record().revision == before + 1
    if write.startswith("claim"):
        assert isinstance(result, Claim)
        assert [(t.number, t.worker, t.attempts) for t in direct.trials()] == [(0, "w", 1), (1, "v", 1)]
        assert direct.renew(result) is Answer.CONTINUE


@pytest.mark.parametrize("fault", [*ON_THE_WAY, Fault.CUT_IN_REQUEST], ids=lambda fault: fault.name)
def test_files_on_a_bad_network_arrive_whole_and_leave_nothing_behind(
    fault: Fault, store: HttpStore, direct: Store, network: Network, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "model").write_bytes(content)
    claim = claimed(direct, 0)
    network.faults = [fault]

    store.put_files({"artifacts/model": tmp_path / "model"}, 0, claim=claim)

    assert network.faults == []
    assert direct.get_file("artifacts/model", tmp_path / "back", 0)
    assert (tmp_path / "back").read_bytes() == content
    assert [file.name for file in direct.files(0)] == ["artifacts/model"]
    until(lambda: not list((tmp_path / "hpo.db.files").glob(".*")), "the temporary files to go")


@pytest.mark.parametrize("fault", [*ON_THE_WAY, Fault.CUT_IN_ANSWER], ids=lambda fault: fault.name)
def test_files_come_back_whole_over_a_bad_network(
    fault: Fault, store: HttpStore, direct: Store, network: Network, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "model").write_bytes(content)
    direct.put_files({"model": tmp_path / "model"}, 0)
    network.faults = [fault]

    assert store.get_file("model", tmp_path / "back", 0)

    assert network.faults == []
    assert (tmp_path / "back").read_bytes() == content
    assert sorted(path.name for path in tmp_path.glob("*back*")) == ["back"]


def test_a_long_answer_that_is_cut_is_read_on_where_it_was(
    store: HttpStore, direct: Store, network: Network
) -> None:
    direct.add_all([(number, {"x": number}, {"x": "y" * 100}) for number in range(2, 3000)])
    network.faults = [Fault.CUT_IN_ANSWER]

    numbers = [trial.number for trial in store.trials()]

    assert network.faults == []
    assert numbers == list(range(3000))


def test_an_error_that_was_lost_on_its_way_is_the_answer_all_the_same(
    store: HttpStore, direct: Store, network: Network
) -> None:
    claim = claimed(direct, 0)
    direct.recall()
    network.faults = [Fault.CUT_ANSWER]

    with pytest.raises(ClaimLost, match="trial 0"):
        store.finish(claim, Completed(0.5))

    assert direct.trial(0).state is State.WAITING


# --- a server that is away


def test_a_claim_that_the_servers_end_has_swallowed_is_the_one_that_is_asked_for_again(
    store: HttpStore, direct: Store, network: Network, servers: Servers
) -> None:
    network.faults, network.answered = [Fault.CUT_ANSWER], servers.restart

    claim = store.claim("v")

    assert claim is not None
    assert [(t.number, t.worker, t.attempts) for t in direct.trials()] == [(0, "v", 1), (1, None, 0)]
    assert direct.renew(claim) is Answer.CONTINUE


def test_a_result_that_is_sent_again_to_the_next_server_ends_its_trial_once(
    store: HttpStore, direct: Store, network: Network, servers: Servers
) -> None:
    claim = claimed(direct, 0)
    for write in (
        lambda: store.report(claim, 0, 0.5, {}, time=1.0),
        lambda: store.finish(claim, Completed(0.5)),
    ):
        network.faults, network.answered = [Fault.CUT_ANSWER], servers.restart
        write()

    assert [(report.epoch, report.loss) for report in direct.reports(0)] == [(0, 0.5)]
    assert (direct.trial(0).state, direct.trial(0).loss) == (State.COMPLETED, 0.5)


def test_a_claim_whose_answer_was_lost_for_longer_than_anybody_waits_is_not_lost(
    opened: Callable[[Patience], HttpStore], direct: Store, network: Network
) -> None:
    store = opened(Patience(seconds=0.5))
    network.faults, network.answered = [Fault.CUT_ANSWER], network.go_down
    with pytest.raises(StoreUnreachable):
        store.claim("v")
    network.is_down = False

    claim = store.claim("v")

    assert claim is not None
    assert [(t.number, t.worker, t.attempts) for t in direct.trials()] == [(0, "v", 1), (1, None, 0)]


def test_a_claim_goes_on_waiting_at_the_next_server(
    store: HttpStore, direct: Store, network: Network, servers: Servers
) -> None:
    for number in (0, 1):
        direct.finish(claimed(direct, number), Completed(0.1))
    asked = network.requests
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.claim, "v", wait_seconds=60)
        until(lambda: network.requests > asked, "the claim to be asked for")
        servers.restart()
        direct.add(2, {}, {})

        claim = waiting.result(60)

    assert claim is not None
    assert (claim.number, direct.trial(2).attempts) == (2, 1)


def test_a_server_that_closes_ends_what_waits_at_it(
    opened: Callable[[Patience], HttpStore], direct: Store, network: Network, servers: Servers
) -> None:
    store = opened(Patience(seconds=0.5))
    for number in (0, 1):
        direct.finish(claimed(direct, number), Completed(0.1))
    asked = network.requests
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.claim, "v", wait_seconds=1000)
        until(lambda: network.requests > asked, "the claim to be asked for")

        servers.close()

        with pytest.raises(StoreUnreachable):
            waiting.result(60)


def test_a_training_waits_once_for_a_server_that_is_away_and_then_hardly_at_all(
    opened: Callable[[Patience], HttpStore], direct: Store, network: Network
) -> None:
    store = opened(Patience(training_seconds=1))
    claim = claimed(direct, 0)
    network.go_down()
    network.cut()
    attempts = []
    for epoch in range(3):
        before = network.requests
        with pytest.raises(StoreUnreachable):
            store.report(claim, epoch, 0.5, {}, time=1.0)
        attempts.append(network.requests - before)
    network.is_down = False

    assert store.report(claim, 3, 0.5, {}, time=1.0) is Answer.CONTINUE

    assert attempts[0] > 2
    assert attempts[1:] == [1, 1]


def test_the_keeper_keeps_a_claim_through_a_servers_absence(
    direct: Store, servers: Servers, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_TOKEN", TOKEN)
    claim = claimed(direct, 0)
    with closing(Keeper(servers.url, "digits", lease_seconds=0.6)) as keeper:
        keeper.watch(claim, tmp_path / "log")
        until(lambda: beats(tmp_path) > 0, "the first renewal")

        servers.close()
        before = beats(tmp_path)
        servers.start()

        until(lambda: beats(tmp_path) > before, "a renewal at the next server")
    assert direct.renew(claim) is Answer.CONTINUE


def beats(folder: Path) -> int:
    """The heartbeat counter of trial 0."""
    with closing(sqlite3.connect(f"file:{folder}/hpo.db?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT beats FROM trials WHERE number = 0").fetchone()[0])


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.02)
