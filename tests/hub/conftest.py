"""A loopback Hub, and a client of it."""

from collections.abc import Iterator

import pytest
from hub_client import Client
from loopback import Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub.url, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
