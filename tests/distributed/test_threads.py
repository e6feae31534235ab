"""The threads by which ranks talk to each other."""

import json
import os
import sys

import pytest
import torch as th
from launch import run
from torch.torch_version import TorchVersion


@pytest.mark.skipif(TorchVersion(th.__version__) < "2.9", reason="torch gave these threads no names")
@pytest.mark.skipif(sys.platform != "linux", reason="policies of threads are Linux's")
def test_gloo_does_not_interrupt_the_training() -> None:
    for ended in run(2, "listener.py"):
        assert ended.code == 0, ended.output
        policies = json.loads(ended.output.splitlines()[-1])
        listeners = {name: policy for name, policy in policies.items() if name.startswith("gloo")}
        assert listeners and set(listeners.values()) == {os.SCHED_BATCH}
        assert os.SCHED_OTHER in policies.values(), "the training itself is not a batch"
