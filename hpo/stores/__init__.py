"""Where studies are kept and trials are claimed. One protocol (`protocol.py`), a file per kind of store."""

from pathlib import Path

from hpo.core.errors import UsageError
from hpo.stores.best import Best, best_of, means_of, unfinished_points
from hpo.stores.protocol import Catalog, Store, StoredFile

__all__ = [
    "Best",
    "Catalog",
    "Store",
    "StoredFile",
    "best_of",
    "connect",
    "file_of",
    "means_of",
    "unfinished_points",
]


def file_of(url: str) -> Path | None:
    """The file that the store at this address is, None for one that is elsewhere."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def connect(url: str, *, create: bool = False, check: bool = False) -> Catalog:
    """Open the place that ``url`` names: ``sqlite:///hpo.db`` a file, ``http://host:port`` a server that has
    one (`hpo serve`), with the token in HPO_TOKEN.

    Args: create: make it if there is none; check: look for damage first (reads the whole file).
    Raises a StoreError that names the place and the mend.
    """
    if url.startswith("sqlite:///"):
        from hpo.stores.sqlite import SqliteCatalog

        return SqliteCatalog(url, create=create, check=check)
    if url.startswith(("http://", "https://")):
        from hpo.stores.http import HttpCatalog

        return HttpCatalog(url)
    raise UsageError(
        f"{url!r} is no store's address",
        "name a file as --store sqlite:///hpo.db, or a server as --store http://HOST:PORT",
    )
