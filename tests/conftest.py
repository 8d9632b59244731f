"""What tests of several kinds need."""

from collections.abc import Iterator

import pytest
from spark_cluster import SparkCluster, running_cluster


@pytest.fixture(scope="session")
def spark_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A real Spark cluster for all tests of the session; it takes some 10 s to start."""
    with running_cluster(tmp_path_factory.mktemp("spark-cluster")) as cluster:
        yield cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of a file run in one, as they share what is prepared; so do
    those of the cluster."""
    for item in items:
        needs_cluster = "spark_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("spark_cluster" if needs_cluster else item.path.name))
