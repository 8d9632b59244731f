"""Studies that a server keeps, `hpo serve` or a driver: the store of every worker that is elsewhere.

A call that gets no answer is asked again under the same key, so that no write is applied twice (`server.py`).
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import NameResolutionError, ProtocolError

from hpo.core.errors import StoreError, StoreRefused, StoreUnreachable, UsageError
from hpo.core.study import Driver, Identity, StudyRecord, WorkerRecord
from hpo.core.trial import Answer, Changes, Claim, Failed, Outcome, Point, Report, State, Trial, Verdict
from hpo.stores.documents import (
    claim_document,
    driver_document,
    dump,
    headed,
    identity_document,
    load,
    outcome_document,
    read_changes,
    read_claim,
    read_driver,
    read_file,
    read_loss,
    read_record,
    read_report,
    read_trial,
    read_worker,
    verdict_document,
)
from hpo.stores.protocol import StoredFile
from hpo.stores.rpc import (
    CALL,
    GET_FILE,
    KEY_HEADER,
    LONGEST_POLL_SECONDS,
    MOST_BODY_BYTES,
    MOST_CHANGES,
    PROTOCOL,
    PROTOCOL_HEADER,
    PUT_FILES,
    SHA256_HEADER,
    STREAM,
    TOKEN_VARIABLE,
    is_loopback,
    read_error,
)

BYTES_PER_SECOND = 10e6  # the slowest disk a file is written to by a server that is not taken for dead
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.05, 2.0
AGAIN_SECONDS = 0.5  # after an answer that was cut

CHUNK_BYTES = 1 << 20

# Errors that may be over the next time.
PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits for a server that does not answer.

    ``seconds`` in all, ``training_seconds`` where a training, or a person, waits meanwhile;
    ``connect_seconds``, ``answer_seconds`` and ``file_seconds`` (until a file, or its next part, comes) for
    one attempt.
    """

    seconds: float = 20.0
    training_seconds: float = 5.0
    connect_seconds: float = 2.0
    answer_seconds: float = 10.0
    file_seconds: float = 30.0


class HttpCatalog:
    """The studies of one server. See `hpo.stores.protocol.Catalog`.

    Args: token: what the server wants to see, by default the environment's HPO_TOKEN.
    Raises StoreUnreachable, within seconds, when nobody answers, or not as hpo does; StoreRefused without the
    server's token.
    """

    def __init__(self, url: str, token: str | None = None, patience: Patience = Patience()) -> None:
        self.url = url.rstrip("/")
        given = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self._line = _Line(self.url, given, patience)
        try:
            self.names()
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        names = self._line.call(None, "names", {}, is_training=True)
        return [str(name) for name in names]

    def create(self, identity: Identity) -> HttpStore:
        self._line.call(identity.study, "create", {"identity": identity_document(identity)})
        return HttpStore(self.url, identity.study, self._line)

    def open(self, study: str) -> HttpStore:
        self._line.call(study, "open", {})
        return HttpStore(self.url, study, self._line)

    def close(self) -> None:
        self._line.close()


class HttpStore:
    """One study on a server. See `hpo.stores.protocol.Store`."""

    def __init__(self, url: str, study: str, line: _Line) -> None:
        self.url = url
        self.study = study
        self._line = line
        self._unanswered: tuple[str, int | None, str] | None = None  # a claim: worker, number, token

    # --- the study

    def record(self) -> StudyRecord:
        return self._read(read_record, "record")

    def lead(self, driver: Driver, instead_of: Driver | None = None) -> Driver:
        before = None if instead_of is None else driver_document(instead_of)
        return self._read(read_driver, "lead", driver=driver_document(driver), instead_of=before)

    def resign(self, driver: Driver) -> None:
        self._call("resign", driver=driver_document(driver))

    def use_snapshot(self, sha256: str) -> None:
        self._call("use_snapshot", sha256=sha256)

    def note(self, name: str, value: Any) -> None:
        self._call("note", name=name, value=value)

    # --- the driver's side of trials

    def add(self, number: int, point: Point, params: Mapping[str, Any], run_id: str | None = None) -> None:
        self._call("add", number=number, point=dict(point), params=params, run_id=run_id)

    def add_all(self, trials: Iterable[tuple[int, Point, Mapping[str, Any]]]) -> None:
        documents = [{"number": n, "point": dict(point), "params": params} for n, point, params in trials]
        self._call("add_all", trials=documents)

    def track(self, number: int, run_id: str | None) -> None:
        self._call("track", number=number, run_id=run_id)

    def lose(self, worker: str, failure: Failed, retries: int) -> list[int]:
        return self._read(list, "lose", worker=worker, failure=outcome_document(failure), retries=retries)

    def expire(self, lease_seconds: float, retries: int) -> list[int]:
        # By the server's clock: it is one observer, too.
        return self._read(list, "expire", lease_seconds=lease_seconds, retries=retries)

    def recall(self, numbers: Sequence[int] | None = None) -> list[int]:
        return self._read(list, "recall", numbers=None if numbers is None else list(numbers))

    def stop(self, number: int, verdict: Verdict | None = None) -> None:
        self._call("stop", number=number, verdict=None if verdict is None else verdict_document(verdict))

    # --- the worker's side

    def announce(self, worker: str, offers: Mapping[str, Any]) -> None:
        self._call("announce", worker=worker, offers=dict(offers))

    def retire(self, worker: str) -> None:
        self._call("retire", worker=worker)

    def workers(self) -> list[WorkerRecord]:
        return self._read(lambda found: list(map(read_worker, found)), "workers")

    def claim(
        self,
        worker: str,
        number: int | None = None,
        *,
        gpus: Sequence[str] = (),
        wait_seconds: float = 0.0,
        token: str | None = None,
    ) -> Claim | None:
        # The answer to an earlier attempt may have been lost with its connection, for longer than this was
        # patient: the same token brings the trial that was claimed then.
        if token is None and self._unanswered is not None and self._unanswered[:2] == (worker, number):
            token = self._unanswered[2]
        token = token or secrets.token_hex(8)
        self._unanswered = worker, number, token
        deadline = time.monotonic() + wait_seconds
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            seconds = min(left, LONGEST_POLL_SECONDS)
            found = self._call(
                "claim",
                poll_seconds=seconds,
                worker=worker,
                number=number,
                gpus=list(gpus),
                wait_seconds=seconds,
                token=token,
            )
            if found is not None or left <= LONGEST_POLL_SECONDS:
                break
        self._unanswered = None
        return None if found is None else _read(read_claim, found, self.url)

    def renew(self, claim: Claim) -> Answer:
        return self._read(Answer, "renew", is_training=True, claim=claim_document(claim))

    def report(
        self, claim: Claim, epoch: int, loss: float | None, metrics: Mapping[str, float], *, time: float
    ) -> Answer:
        return self._read(
            Answer,
            "report",
            is_training=True,
            claim=claim_document(claim),
            epoch=epoch,
            loss=loss,
            metrics=dict(metrics),
            time=time,
        )

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        self._call("finish", claim=claim_document(claim), outcome=outcome_document(outcome))

    def release(self, claim: Claim) -> None:
        self._call("release", claim=claim_document(claim))

    # --- reading

    def changes(self, since: int, limit: int | None = None) -> Changes:
        most = MOST_CHANGES if limit is None else min(limit, MOST_CHANGES)
        portion = self._read(read_changes, "changes", since=since, limit=most)
        if limit is not None:
            return portion
        # In portions, so that no answer keeps the server from its heartbeats. A trial that has changed again
        # since an earlier one is told as it stands now.
        trials = {trial.number: trial for trial in portion.trials}
        reports = {(report.number, report.epoch): report for report in portion.reports}
        while len(portion.trials) + len(portion.reports) >= most:
            portion = self._read(read_changes, "changes", since=portion.revision, limit=most)
            trials |= {trial.number: trial for trial in portion.trials}
            reports |= {(report.number, report.epoch): report for report in portion.reports}
        return Changes(
            portion.revision,
            tuple(sorted(trials.values(), key=lambda trial: trial.revision)),
            tuple(sorted(reports.values(), key=lambda report: report.revision)),
        )

    def trial(self, number: int) -> Trial:
        return self._read(read_trial, "trial", number=number)

    def trials(self, *states: State) -> Iterator[Trial]:
        asked = {"states": [state.value for state in states]}
        yield from self._lines(read_trial, "trials", asked, lambda trial: trial.number)

    def reports(self, number: int) -> list[Report]:
        return self._read(lambda found: list(map(read_report, found)), "reports", number=number)

    def losses(self) -> Iterator[tuple[int, int, float | None]]:
        yield from self._lines(read_loss, "losses", {}, lambda loss: loss[:2])

    def best(self) -> Trial | None:
        return self._read(lambda found: None if found is None else read_trial(found), "best")

    # --- files

    def put_files(
        self,
        files: Mapping[str, Path],
        trial: int | None = None,
        *,
        drop: Collection[str] = (),
        claim: Claim | None = None,
    ) -> list[StoredFile]:
        header = {
            "study": self.study,
            "trial": trial,
            "drop": list(drop),
            "claim": None if claim is None else claim_document(claim),
        }
        kept = self._line.put(header, files, is_training=claim is not None)
        return _read(lambda found: list(map(read_file, found)), kept, self.url)

    def get_file(self, name: str, path: Path, trial: int | None = None) -> bool:
        asked = {"study": self.study, "name": name, "trial": trial}
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            is_there = self._line.get(asked, copy)
            if is_there:
                os.replace(copy, path)
            return is_there
        finally:
            copy.unlink(missing_ok=True)

    def files(self, trial: int | None = None) -> list[StoredFile]:
        return self._read(lambda found: list(map(read_file, found)), "files", trial=trial)

    def close(self) -> None:
        self._line.close()

    # --- calls

    def _call(
        self, name: str, /, is_training: bool = False, poll_seconds: float = 0.0, **arguments: Any
    ) -> Any:
        return self._line.call(
            self.study, name, arguments, is_training=is_training, poll_seconds=poll_seconds
        )

    def _read(self, read: Callable[[Any], T], name: str, /, is_training: bool = False, **arguments: Any) -> T:
        return _read(read, self._call(name, is_training, **arguments), self.url)

    def _lines(
        self, read: Callable[[Any], T], name: str, arguments: Mapping[str, Any], key: Callable[[T], Any]
    ) -> Iterator[T]:
        """The items of a long answer, in the order of their keys; one that is cut is asked for again."""
        asked = {"study": self.study, "call": name, "with": arguments}
        last = None
        patience = self._line.patience.seconds
        deadline = time.monotonic() + patience
        while True:
            try:
                for document in self._line.lines(asked):
                    item = _read(read, document, self.url)
                    if last is None or key(item) > last:
                        last = key(item)
                        yield item
                        deadline = time.monotonic() + patience
                return
            except _Cut as cut:
                if time.monotonic() > deadline:
                    raise StoreUnreachable(
                        f"the answers of the server at {self.url} are cut", "check the network, and any proxy"
                    ) from cut
                time.sleep(AGAIN_SECONDS)


class _Cut(Exception):
    """An answer ended before it was whole."""


class _Token(AuthBase):
    """As requests' authentication, so that no .netrc replaces it."""

    def __init__(self, token: str) -> None:
        self._header = b"Bearer " + token.encode(errors="surrogateescape")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


class _Line:
    """The connection to a server: asks until there is an answer, and says in one sentence why there is none.

    Not patient any more once a server was found to be away: then each call is one short attempt, until one
    succeeds.
    """

    def __init__(self, url: str, token: str, patience: Patience) -> None:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                f"the address of the store on {parts.hostname} has a user name or password in it",
                f"write http://HOST:PORT, and put the token into {TOKEN_VARIABLE}",
            )
        try:
            host = parts.hostname
            parts.port  # noqa: B018 - raises for what is no port
        except ValueError as error:
            raise UsageError(f"{url} is no address: {error}", "write http://HOST:PORT") from None
        if not host or parts.path.strip("/") or parts.query or parts.fragment:
            raise UsageError(f"{url} is no store's address", "write http://HOST:PORT")
        token = token.strip()
        if not (token and token.isprintable()):
            raise StoreRefused(
                f"{url} wants a token, and {TOKEN_VARIABLE} holds none",
                f"set {TOKEN_VARIABLE} to the token that the server printed",
            )
        self.patience = patience
        self._url = url
        self._session = requests.Session()
        self._session.auth = _Token(token)
        self._session.headers.update({PROTOCOL_HEADER: PROTOCOL, "Accept-Encoding": "identity"})
        if is_loopback(host):
            # A proxy would look for the server on its own machine.
            self._session.trust_env = False
            self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        self._is_away = False

    def call(
        self,
        study: str | None,
        name: str,
        arguments: Mapping[str, Any],
        *,
        is_training: bool = False,
        poll_seconds: float = 0.0,
    ) -> Any:
        """The result of one operation. Raises the error that it ended with at the server.

        Args: is_training: a training is held up meanwhile; poll_seconds: how long the server may wait itself.
        """
        body = dump({"study": study, "call": name, "with": arguments}).encode()
        if len(body) > MOST_BODY_BYTES:
            raise StoreError(
                f"{name}: {len(body)} bytes at once are more than the server at {self._url} takes",
                "put large results into files in run.directory",
            )
        answer_seconds = self.patience.answer_seconds + poll_seconds
        if is_training:  # so that it can be asked twice
            answer_seconds = min(answer_seconds, self.patience.training_seconds / 2)
        return self._result(self._ask(CALL, body, answer_seconds, is_training=is_training))

    def lines(self, asked: Mapping[str, Any]) -> Iterator[Any]:
        """The documents of a long answer. Raises _Cut where it ends too early."""
        body = dump(asked).encode()
        with self._ask(STREAM, body, self.patience.file_seconds, is_stream=True) as response:
            if response.status_code != 200:
                self._result(response)
            try:
                for line in response.iter_lines(CHUNK_BYTES):
                    document = _read(load, line, self._url)
                    if isinstance(document, dict) and "stopped" in document:
                        if document["stopped"] is not None:
                            raise _read(read_error, document["stopped"], self._url)
                        return
                    yield document
            except requests.RequestException as error:
                raise _Cut from error
        raise _Cut

    def put(self, header: dict[str, Any], files: Mapping[str, Path], *, is_training: bool) -> Any:
        """Send files, all in one request."""
        sizes = {name: path.stat().st_size for name, path in files.items()}
        first = headed(header | {"files": [{"name": n, "size": size} for n, size in sizes.items()]})
        seconds = self.patience.answer_seconds + sum(sizes.values()) / BYTES_PER_SECOND
        upload = _Upload(first, [(path, sizes[name]) for name, path in files.items()])
        return self._result(self._ask(PUT_FILES, upload, seconds, is_training=is_training))

    def get(self, asked: Mapping[str, Any], path: Path) -> bool:
        """Write a file to a new path; False if there is none, or not as it was kept."""
        body = dump(asked).encode()
        deadline = time.monotonic() + self.patience.seconds
        while True:
            with self._ask(GET_FILE, body, self.patience.file_seconds, is_stream=True) as response:
                if response.status_code == 204:
                    return False
                if response.status_code != 200:
                    self._result(response)
                digest = hashlib.sha256()
                try:
                    with open(path, "wb") as file:
                        for chunk in response.iter_content(CHUNK_BYTES):
                            digest.update(chunk)
                            file.write(chunk)
                        file.flush()
                        os.fsync(file.fileno())
                except requests.RequestException as error:
                    if time.monotonic() > deadline:
                        raise self._unreachable(error) from error
                    time.sleep(AGAIN_SECONDS)
                    continue
                if digest.hexdigest() == response.headers.get(SHA256_HEADER):
                    return True
                if time.monotonic() > deadline:
                    raise StoreError(f"{self._url} sends other bytes than it keeps", "check the network")

    def close(self) -> None:
        self._session.close()

    def _ask(
        self,
        path: str,
        body: bytes | _Upload,
        answer_seconds: float,
        *,
        is_training: bool = False,
        is_stream: bool = False,
    ) -> requests.Response:
        """One request, sent again under the same key until there is an answer."""
        key = secrets.token_hex(16)
        patience = self.patience.training_seconds if is_training else self.patience.seconds
        deadline = time.monotonic() + patience
        delay = FIRST_DELAY_SECONDS
        is_first = True
        while True:
            try:
                response = self._session.post(
                    self._url + path,
                    data=body,
                    headers={KEY_HEADER: key},
                    timeout=(self.patience.connect_seconds, answer_seconds),
                    allow_redirects=False,
                    stream=is_stream,
                )
                if response.status_code not in (502, 503, 504):
                    self._check(response)
                    self._is_away = False
                    return response
                error: Exception = _Cut(f"the server answers {response.status_code}")
                response.close()
            except requests.exceptions.SSLError as fault:
                raise self._unreachable(fault) from fault
            except PASSING as fault:
                if isinstance(body, _Upload) and body.failure is not None:
                    raise body.failure from None
                error = fault
            except requests.RequestException as fault:
                raise self._unreachable(fault) from fault
            pause = delay * random.uniform(0.5, 1.0)
            # One that was lost may have taken all the time there is: it is asked for again all the same.
            if self._is_away or (not is_first and time.monotonic() + pause > deadline):
                self._is_away = True
                raise self._unreachable(error) from error
            time.sleep(pause)
            is_first, delay = False, min(2 * delay, LONGEST_DELAY_SECONDS)

    def _check(self, response: requests.Response) -> None:
        """Whether it was hpo that answered, and lets this client in."""
        spoken = response.headers.get(PROTOCOL_HEADER)
        if spoken is None:
            raise StoreUnreachable(
                f"what answers at {self._url} is no server of hpo (HTTP {response.status_code})",
                "check the address: `hpo serve` prints it",
            )
        if spoken != PROTOCOL:
            raise StoreRefused(
                f"the server at {self._url} is of another version of hpo: it speaks protocol {spoken},"
                f" this one {PROTOCOL}",
                "install the same version of hpo on both machines",
            )
        if response.status_code == 401:
            raise StoreRefused(
                f"the server at {self._url} does not know this token",
                f"set {TOKEN_VARIABLE} to the token that the server printed",
            )

    def _result(self, response: requests.Response) -> Any:
        try:
            document = _read(load, response.content, self._url)
        except requests.RequestException as cut:
            raise self._unreachable(cut) from cut
        if isinstance(document, dict) and "result" in document:
            return document["result"]
        error = _read(read_error, document.get("error") if isinstance(document, dict) else None, self._url)
        raise error

    def _unreachable(self, error: Exception) -> StoreUnreachable:
        hint = "is the server running, and reachable from this machine?"
        reason = _reason(error)
        if isinstance(error, requests.exceptions.SSLError) and "WRONG_VERSION_NUMBER" in str(reason):
            text = f"what is at {self._url} speaks no TLS"
            hint = "write http:// where the server is `hpo serve` itself"
        elif isinstance(error, requests.exceptions.SSLError):
            text = f"{self._url} shows no certificate that this machine trusts: {reason}"
            hint = "check the address, or set REQUESTS_CA_BUNDLE to the file of your authority"
        elif isinstance(reason, NameResolutionError):
            text = f"no machine is called {urlsplit(self._url).hostname}: {self._url} can't be reached"
            hint = "check the address: `hpo serve` prints it"
        elif isinstance(error, requests.Timeout):
            text = f"the server at {self._url} did not answer in time"
        elif isinstance(reason, ProtocolError):
            text = f"what is at {self._url} ended the connection without an answer"
        else:
            text = f"no server answers at {self._url}"
        return StoreUnreachable(text, hint)


class _Upload:
    """The body of an upload, as often as it is sent: a header, and the files' bytes.

    Files are opened one by one: there may be more than a process may have open. ``failure``: the error of a
    file, which looks like one of the connection otherwise.
    """

    def __init__(self, header: bytes, files: Sequence[tuple[Path, int]]) -> None:
        self._header = header
        self._files = files
        self.failure: OSError | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield self._header
        try:
            for path, size in self._files:
                with open(path, "rb") as file:
                    while size > 0:
                        if not (chunk := file.read(min(size, CHUNK_BYTES))):
                            raise OSError(f"{path} became shorter while it was kept")
                        size -= len(chunk)
                        yield chunk
        except OSError as error:
            self.failure = error
            raise


def _read(read: Callable[[Any], T], document: Any, url: str) -> T:
    try:
        return read(document)
    except (ValueError, TypeError) as error:
        raise StoreUnreachable(
            f"the server at {url} answers what hpo does not: {error}",
            "install the same version of hpo on both machines",
        ) from error


def _reason(error: Exception) -> Any:
    """What lies behind an error of requests: urllib3's own."""
    found: Any = error.args[0] if error.args else error
    return getattr(found, "reason", found)
