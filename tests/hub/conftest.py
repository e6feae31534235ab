"""A loopback Hub, and a client of it."""

import pytest
from hub_client import Client
from loopback import Hub


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    client = Client(hub.url, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
