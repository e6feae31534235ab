import pytest
import torch as th

ENGINES = ["autograd", "closed_form"]


@pytest.fixture(params=ENGINES)
def engine(request):
    """Every engine that can do an MlpPolicy on the CPU."""
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks: more threads only wait for each other."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)
