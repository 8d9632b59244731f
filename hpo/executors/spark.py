"""Trials as Spark jobs: one trial is one job of one task, in a job group of its own.

    driver  --one thread a trial: a job of one task-->  a slot of the cluster (`spark_slot.py`)
    driver  <--how it ended-- the job's result;  epochs, files and outcomes go to the store

A trial is sent when the cluster has a slot for it, so none is queued while better ones could be proposed.
What Spark does behind the driver's back (it runs lost tasks again) ends at the store, where a trial is
claimed once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import queue
import re
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from hpo import snapshot
from hpo.core.errors import HpoError, SparkUnavailable, StoreUnreachable, UsageError, WorkerBroken
from hpo.core.trial import Failed, Kind
from hpo.executors.java import prepare_java
from hpo.executors.protocol import Died, Event, Finished, WorkerSettings
from hpo.stores import file_of
from hpo.stores.rpc import TOKEN_VARIABLE, read_error

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext

logger = logging.getLogger("hpo.spark")

MASTER_SECONDS = 5.0  # for a standalone master to answer
PAUSE_SECONDS = 0.1  # between looks at a cluster that is waited for
CAPACITY_SECONDS = 0.2  # how old the count of slots may be
SETTLED_SECONDS = 3.0  # without another executor: the ones that come together have come
STARVED_SECONDS = 10.0  # without any executor before it is said
JOB_THREADS = 1024
LOG = "spark.log"  # of Spark's Java, in the study's folder of work
LOSSES_BEFORE_BROKEN = 10  # one after the other, on whatever executors
OURS = {
    # An objective that is stopped holds its slot until Spark kills its Python process.
    "spark.python.task.killTimeout": "1s",
    # One-task jobs have no place where their data would be.
    "spark.locality.wait": "0s",
    # A second copy of a training is nothing but waste: the store gives a trial to one worker.
    "spark.speculation": "false",
    "spark.ui.showConsoleProgress": "false",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where Spark is and what is asked of it.

    ``parallelism``: trials at a time, None for all the slots there are. ``driver_host``: this machine as
    executors reach it, None for Spark's own idea. ``properties_file``: as for spark-submit. ``conf``:
    Spark properties. ``patience_seconds``: how long to wait for a first executor.
    """

    master: str
    parallelism: int | None = None
    driver_host: str | None = None
    properties_file: Path | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    patience_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class _Job:
    """The job of a trial. ``losses``: how many in a row were lost when it was sent."""

    group: str
    losses: int


class SparkExecutor:
    """See `hpo.executors.protocol.Executor`.

    A Spark context that this process has already (a notebook's) is used and left as it is; else one is made,
    and stopped by `close`.

    Args: settings: with the store's address on this machine. isolate: a fresh process for every trial.
    Raises SparkUnavailable, LoadError.
    """

    def __init__(self, settings: WorkerSettings, cluster: Cluster, *, isolate: bool = False) -> None:
        self._settings = settings
        self._cluster = cluster
        self._isolate = isolate
        self._group = f"hpo-{settings.study}-{secrets.token_hex(4)}"
        self._jobs: dict[int, _Job] = {}  # by the trial's number
        self._serial = 0
        self._outcomes: queue.SimpleQueue[tuple[int, str, dict[str, Any]]] = queue.SimpleQueue()
        self._losses_in_a_row = 0
        self._capacity = (0, 0.0)
        self._has_executors = False
        self._starved_at: float | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ctrl_c_quiet())
            self._context = stack.enter_context(_context(cluster, settings))
            self._message = self._message_for(stack)
            self._threads = ThreadPoolExecutor(JOB_THREADS, thread_name_prefix="hpo-spark")
            stack.callback(self._threads.shutdown)
            stack.callback(self._cancel_jobs)
            self._wait_for_executors()
            self._warm()
            self._close = stack.pop_all().close

    @property
    def pages(self) -> str | None:
        """The address of Spark's pages on its jobs; None where they are switched off."""
        return self._context.uiWebUrl

    def room(self) -> str:
        """How many trials the cluster has room for, in words."""
        slots, asked = self._slots_of_cluster(), self._cluster.parallelism
        room = f"Spark has room for {slots} trial{'' if slots == 1 else 's'} at a time"
        if asked is None or asked == slots:
            return room
        return f"{room}; --parallelism {asked} " + ("uses fewer" if asked < slots else "would use more")

    @property
    def slots(self) -> int:
        slots, _ = self._capacity  # `free` looks at the cluster
        return slots if self._cluster.parallelism is None else min(slots, self._cluster.parallelism)

    def free(self) -> int:
        self._slots_of_cluster()
        return max(0, self.slots - len(self._jobs))

    def submit(self, number: int) -> None:
        # As `free` has seen the cluster: a slot that is lost meanwhile gets its trial when it is there again.
        if len(self._jobs) >= self.slots:
            raise IndexError("the cluster has no free slot")
        self._serial += 1
        group = f"{self._group}-{number}-{self._serial}"
        self._jobs[number] = _Job(group, self._losses_in_a_row)
        self._threads.submit(self._run, number, group)

    def wait(self, seconds: float) -> list[Event]:
        self._look_after_cluster()
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events += self._heard(*self._outcomes.get(timeout=seconds))
            while True:
                events += self._heard(*self._outcomes.get_nowait())
        return events

    def withdraw(self) -> list[int]:
        return []

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        for number in list(self._jobs):
            if numbers is None or number in numbers:
                self._cancel(self._jobs.pop(number).group)

    def close(self) -> None:
        self._close()

    # --- one trial

    def _run(self, number: int, group: str) -> None:
        """One job, in a thread of its own: Spark's job groups are the threads'."""
        try:
            answer = self._job({**self._message, "number": number}, group, f"trial {number}")
        except Exception as error:
            answer = {"lost": _reason(error)}
        self._outcomes.put((number, group, answer))

    def _job(self, message: Mapping[str, Any], group: str, what: str, tasks: int = 1) -> dict[str, Any]:
        """Run the message as a job of so many tasks; returns the first that is no success, else any."""
        context = self._context
        context.setJobGroup(group, f"hpo {self._settings.study} {what}", interruptOnCancel=True)
        payloads = context.parallelize([json.dumps(message)] * tasks, tasks)
        answers = [json.loads(text) for text in payloads.mapPartitions(_task()).collect()]
        return next((answer for answer in answers if "broken" in answer), answers[0])

    def _heard(self, number: int, group: str, answer: dict[str, Any]) -> list[Event]:
        job = self._jobs.get(number)
        if job is None or job.group != group:
            return []  # it was cancelled
        del self._jobs[number]
        if "broken" in answer:
            raise _broken(answer["broken"])
        if "done" in answer:
            self._losses_in_a_row = 0
            return [Finished(number)]
        if "died" in answer:
            self._losses_in_a_row = 0
            died = answer["died"]
            return [Died(died["worker"], number, Failed(Kind(died["kind"]), died["reason"]))]
        if "again" in answer:
            reason = "the Spark executor that ran it was lost, or the Python process of its task"
        else:
            with self._java():  # the end of all is nobody's death
                reason = answer["lost"]
        # A machine that takes all its trials along is one loss.
        self._losses_in_a_row = max(self._losses_in_a_row, job.losses + 1)
        if self._losses_in_a_row >= LOSSES_BEFORE_BROKEN:
            raise WorkerBroken(f"{self._losses_in_a_row} Spark jobs in a row were lost: {reason}", _MEND_LOST)
        return [Died(None, number, Failed(Kind.LOST, reason))]

    # --- the cluster

    def _message_for(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """What every task is told: the archive, and the study's address as executors reach it."""
        # Executors ask for it as long as the context lasts, and Spark takes a name from one place alone.
        archive = snapshot.bundle(Path(self._settings.code), Path(self._context._temp_dir))
        self._context.addFile(str(archive))
        settings, token = self._settings, os.environ.get(TOKEN_VARIABLE)
        if file_of(settings.store) and not is_local(self._context.master):
            token = secrets.token_hex(16)
            settings = replace(settings, store=self._serve(stack, token))
        return {
            "archive": archive.name,
            "settings": asdict(settings),
            "isolate": self._isolate,
            "token": token,
            "number": None,
        }

    def _serve(self, stack: contextlib.ExitStack, token: str) -> str:
        """Serve the study to the executors; returns the address that they reach."""
        from hpo.stores.server import serving

        host = self._host()
        serve = functools.partial(serving, self._settings.store, token=token, study=self._settings.study)
        try:
            return stack.enter_context(serve(host=host)).url
        except StoreUnreachable:  # a name or an address by which others know this machine, but not itself
            port = urlsplit(stack.enter_context(serve(host="0.0.0.0")).url).port
            return f"http://{host}:{port}"

    def _host(self) -> str:
        """This machine as executors reach it."""
        known_as = self._context.getConf().get("spark.driver.host")
        return self._cluster.driver_host or known_as or "127.0.0.1"

    def _wait_for_executors(self) -> None:
        """Until there are as many slots as are asked for, or executors have come and no more come."""
        deadline = time.monotonic() + self._cluster.patience_seconds
        slots, since = 0, time.monotonic()
        while not slots or time.monotonic() < since + SETTLED_SECONDS:
            self._look_after_cluster()
            if (now := self._slots_of_cluster()) > slots:
                slots, since = now, time.monotonic()
            if is_local(self._context.master) or slots >= (self._cluster.parallelism or math.inf):
                return
            if not slots and time.monotonic() >= deadline:
                raise self._no_executor()
            time.sleep(PAUSE_SECONDS)

    def _warm(self) -> None:
        """Have every slot load the objective: what an executor lacks is told before the first trial."""
        tasks, result = self.slots, []

        def probe() -> None:
            try:
                result.append(self._job(self._message, f"{self._group}-start", "start", tasks))
            except Exception as error:
                result.append({"lost": _reason(error)})

        self._threads.submit(probe)
        # With dynamic allocation this job is what brings the first executors.
        deadline = time.monotonic() + self._cluster.patience_seconds
        while not result:
            self._look_after_cluster()
            if not self._has_executors and time.monotonic() >= deadline:
                raise self._no_executor()
            time.sleep(PAUSE_SECONDS)
        [answer] = result
        if "broken" in answer:
            raise _broken(answer["broken"])
        if "lost" in answer:
            raise SparkUnavailable(
                f"no trial can run on {self._cluster.master}: {answer['lost']}", _MEND_LOST
            )

    def _no_executor(self) -> SparkUnavailable:
        return SparkUnavailable(
            f"{self._cluster.master} gave no executor within {self._cluster.patience_seconds:g} s",
            f"a worker must have free what an executor asks for: {_asked_for(self._context)};"
            f" executors must reach this machine at {self._host()} (--driver-host)",
        )

    def _slots_of_cluster(self) -> int:
        """How many tasks could run at the same time now, by cores, GPUs and whatever tasks ask for."""
        slots, when = self._capacity
        if time.monotonic() - when > CAPACITY_SECONDS:
            with self._java() as spark:
                profile = spark.resourceProfileManager().defaultResourceProfile()
                slots = spark.maxNumConcurrentTasks(profile)
            self._has_executors = slots > 0
            if self._context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true":
                # Executors come for tasks that wait, so there must be some.
                slots = self._cluster.parallelism or slots + 1
            self._capacity = slots, time.monotonic()
        return slots

    def _look_after_cluster(self) -> None:
        """Raises SparkUnavailable when the application is over; says when there is no executor."""
        if self._slots_of_cluster():
            self._starved_at = None
        elif self._starved_at is None:
            self._starved_at = time.monotonic() + STARVED_SECONDS
        elif time.monotonic() >= self._starved_at:
            self._starved_at = float("inf")
            logger.warning("Spark has no executor at the moment; waiting for one")

    @contextlib.contextmanager
    def _java(self) -> Iterator[Any]:
        """Spark's own context, in Java. Raises SparkUnavailable when the application, or Java, is over."""
        from py4j.protocol import Py4JError

        with contextlib.suppress(OSError, Py4JError):
            java = self._context._jsc  # None once it was stopped
            if java is not None and not java.sc().isStopped():
                yield java.sc()
                return
        log = self._settings.work_folder / LOG
        raise SparkUnavailable(
            f"the Spark application on {self._cluster.master} was ended from outside",
            "the same command again continues the study" + (f"; its log is {log}" if log.exists() else ""),
        )

    def _cancel_jobs(self) -> None:
        for group in [*(job.group for job in self._jobs.values()), f"{self._group}-start"]:
            self._cancel(group)
        self._jobs.clear()

    def _cancel(self, group: str) -> None:
        with contextlib.suppress(SparkUnavailable), self._java() as spark:
            # A job that its thread has yet to start is one of the future.
            spark.cancelJobGroupAndFutureJobs(group)


_MEND_LOST = "see the executors' logs in Spark's pages, and what a trial prints: hpo log STUDY TRIAL"


def is_local(master: str) -> bool:
    """Whether executors are this process's own threads: ``local``, ``local[2]``; not ``local-cluster[…]``."""
    return re.fullmatch(r"local(\[.*\])?", master) is not None


def _task() -> Callable[[Iterator[str]], Iterator[str]]:
    """What Spark runs, as a function that travels by value: an executor may know nothing of hpo yet."""

    def task(messages: Iterator[str]) -> Iterator[str]:
        import json
        import os
        import shutil
        import sys
        import tempfile
        import zipfile
        from pathlib import Path

        from pyspark import SparkFiles

        for text in messages:  # to the end: Spark keeps only such a Python process
            message = json.loads(text)
            try:
                archive = SparkFiles.get(message["archive"])
                folder = archive.removesuffix(".zip")
                if not os.path.isdir(folder):
                    fresh = tempfile.mkdtemp(dir=os.path.dirname(archive))
                    with zipfile.ZipFile(archive) as packed:
                        packed.extractall(fresh)
                    try:
                        os.rename(fresh, folder)
                    except OSError:  # another task was quicker
                        shutil.rmtree(fresh)
                if folder not in sys.path:
                    sys.path.insert(0, folder)
                from hpo.executors.spark_slot import serve

                answer = serve(message, Path(folder))
            except ImportError as error:
                hint = f"install it for the executors' Python, {sys.executable} ({os.uname().nodename})"
                answer = {
                    "broken": {
                        "class": "SparkUnavailable",
                        "message": f"an executor lacks what hpo needs: {error}",
                        "hint": hint,
                    }
                }
            yield json.dumps(answer)

    return task


@contextlib.contextmanager
def _context(cluster: Cluster, settings: WorkerSettings) -> Iterator[SparkContext]:
    """This process's Spark context if it has one, else a new one, stopped at the end."""
    try:
        with _quietly():
            from pyspark import SparkContext
    except ImportError as error:
        raise SparkUnavailable("PySpark is not installed", "pip install 'hpo[spark]'") from error
    if (running := SparkContext._active_spark_context) is not None:
        _check_running(running, cluster)
        yield running
        return
    prepare_java()
    _ask_master(cluster.master)
    conf = _conf(cluster, settings.study)
    log = settings.work_folder / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quietly(), _handlers_kept(), _java_of(conf, log) as gateway:
            context = SparkContext(conf=conf, gateway=gateway)
    except Exception as error:
        raise SparkUnavailable(
            f"Spark did not start on {cluster.master}: {_reason(error, log)}", f"its log is {log}"
        ) from error
    # A thread of PySpark's would print a traceback when Spark's Java dies.
    context._accumulatorServer.handle_error = lambda *_: None
    try:
        yield context
    finally:
        with _handlers_kept(), _quietly(), contextlib.suppress(Exception):  # of a Java that is dead
            context.setLogLevel("OFF")  # what was cancelled would be told by a stack trace
            context.stop()


def _conf(cluster: Cluster, study: str) -> SparkConf:
    """Spark's properties: the person's, and what they leave open."""
    from pyspark import SparkConf

    named = _properties(cluster.properties_file) | dict(cluster.conf)
    named.pop("spark.submit.deployMode", None)  # the driver is this process
    conf = SparkConf().setAppName(f"hpo {study}")
    for key, value in named.items():
        conf.set(key, value)
    for key, value in OURS.items():
        conf.setIfMissing(key, value)
    conf.setMaster(cluster.master)
    if cluster.driver_host:
        conf.set("spark.driver.host", cluster.driver_host)
        if not _is_own(cluster.driver_host):
            conf.setIfMissing("spark.driver.bindAddress", "0.0.0.0")
    # PySpark itself heeds the variable alone; as with spark-submit, the property goes before it.
    given = named.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = given or sys.executable
    return conf


def _is_own(host: str) -> bool:
    """Whether this machine can listen at the address; others may know it by one that it does not have."""
    try:
        socket.create_server((host, 0)).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _java_of(conf: SparkConf, log: Path) -> Iterator[Any]:
    """Spark's Java, which this process may have from an earlier context; killed by Ctrl-C meanwhile."""
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    if SparkContext._gateway is not None:
        yield SparkContext._gateway
        return
    before = psutil.Process().children()
    try:
        with open(log, "ab") as stderr:
            # In a session of its own: a terminal that closes is told to this process alone, which then has
            # its jobs cancelled.
            gateway = launch_gateway(conf, {"stderr": stderr, "start_new_session": True})
        yield gateway
    except KeyboardInterrupt:
        # A Java that is left while it starts never ends.
        for child in set(psutil.Process().children()).difference(before):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        SparkContext._gateway = SparkContext._jvm = None
        raise


def _check_running(context: SparkContext, cluster: Cluster) -> None:
    """Raises UsageError where the Spark session of this process is not the one that was asked for."""
    if context.master != cluster.master:
        raise UsageError(
            f"this process has a Spark session on {context.master}, and can't have one on {cluster.master}",
            "give that session, hpo.optimize(..., spark=session), or stop it before",
        )
    if cluster.conf or cluster.properties_file:
        raise UsageError(
            f"this process has a Spark session on {context.master}, whose properties stay as they are",
            "leave --spark-conf and --properties-file out, or stop the session before",
        )


def _ask_master(master: str) -> None:
    """Raises SparkUnavailable where no standalone master answers: Spark itself would try for a minute."""
    if not master.startswith("spark://"):
        return
    failures = []
    for address in master.removeprefix("spark://").split(","):
        try:
            parts = urlsplit(f"//{address}")
            with socket.create_connection((parts.hostname or "", parts.port or 7077), MASTER_SECONDS):
                return
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {error}")
    raise SparkUnavailable(
        f"no Spark master answers at {master} ({'; '.join(failures)})",
        "check host and port (its page shows spark://HOST:PORT), and that it runs",
    )


def _properties(path: Path | None) -> dict[str, str]:
    """A properties file as spark-submit reads it: ``key value``, ``key=value`` or ``key: value``."""
    if path is None:
        return {}
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--properties-file {path} can't be read: {error}", "name a text file of `key value` lines"
        ) from error
    found = {}
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(("#", "!")):
            key, _, value = re.sub(r"\s*[=:\s]\s*", "\0", line, count=1).partition("\0")
            found[key] = value
    return found


def _broken(answer: Mapping[str, str]) -> HpoError:
    error = read_error(answer)
    return type(error)(f"on a Spark executor: {error.message}", error.hint)


def _reason(error: Exception, log: Path | None = None) -> str:
    """Spark's own words for why a job failed, or its start, in one line. ``log``: what its Java has said."""
    try:
        text = str(error)
    except Exception:  # py4j asks Java for the words
        text = type(error).__name__
    if "JAVA_GATEWAY_EXITED" in text and log is not None:
        text = log.read_text(errors="replace").rpartition('Exception in thread "main"')[2] or text
    if match := re.search(r"\[PYTHON_VERSION_MISMATCH\][^\n]*", text):
        return f"{match.group()} (set PYSPARK_PYTHON to a Python of this version on the executors)"
    if match := re.search(r'Cannot run program "([^"]*)"', text):
        return f"executors have no Python at {match.group(1)}; name theirs with PYSPARK_PYTHON"
    if match := re.search(r"most recent failure: (.*)", text):
        return match.group(1).strip()
    if match := re.search(r"SparkException: (.*)", text):
        return match.group(1).strip()
    if match := re.search(r"(?m)^: [\w.$]+: (.*)", text):
        causes = re.findall(r"(?m)^Caused by: [\w.$]+: (.*)", text)
        return ": ".join(dict.fromkeys([match.group(1).strip(), *causes[-1:]]))
    if match := re.search(r"(?m)^: ([\w.$]+)$", text):
        return match.group(1)
    return (text.splitlines() or [type(error).__name__])[0]


def _asked_for(context: SparkContext) -> str:
    """What a worker must have free for an executor, by the properties that ask for it."""
    conf = context.getConf()
    properties = ("spark.executor.cores", "spark.executor.memory", "spark.executor.resource.gpu.amount")
    asked = {key: conf.get(key) for key in properties}
    return ", ".join(f"{key}={value}" for key, value in asked.items() if value) or "1 core and 1g of memory"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks of PySpark on other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _ctrl_c_quiet() -> Iterator[None]:
    """Without py4j's traceback in the root logger when a Ctrl-C ends what it asked of Java."""

    def keep(record: logging.LogRecord) -> bool:
        return record.module != "java_gateway"

    logging.root.addFilter(keep)
    try:
        yield
    finally:
        logging.root.removeFilter(keep)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """PySpark takes Ctrl-C for itself when it starts; it stays what it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
