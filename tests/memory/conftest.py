import pytest


@pytest.fixture(params=["auto", "autograd"])
def engine(request: pytest.FixtureRequest) -> str:
    """What a user gets, and the model that serves every policy."""
    return request.param
