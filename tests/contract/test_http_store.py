"""The http store keeps the contract over a real server, and what only a network can suffer."""

from contextlib import closing
from pathlib import Path

import pytest

from hpo.stores.http import HttpCatalog
from hpo.stores.server import serving
from hpo.stores.sqlite import SqliteCatalog
from hpo.testing import FakeClock, StoreContract

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
