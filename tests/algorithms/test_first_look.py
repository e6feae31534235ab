"""The first look at sb3-contrib's classes, by two threads at once."""

import subprocess
import sys

SCRIPT = '''
import sys
import threading
from types import ModuleType

from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from sb3_policyopt.identity import originals
from sb3_policyopt.rollout import buffers

model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu")


def all_found(name, look):
    """What two threads find: the one that looks into a module first is interrupted there until the other has looked."""
    real, found = sys.modules[name], []

    class Interrupted(ModuleType):
        def __getattr__(self, attribute):
            if sys.modules[name] is self:
                sys.modules[name] = real
                other = threading.Thread(target=lambda: found.append(look()))
                other.start()
                other.join()
            return getattr(real, attribute)

    sys.modules[name] = Interrupted(name)
    found.append(look())
    assert sys.modules[name] is real, "nobody looked"
    return [*found, look()]


def of_policy():
    return originals.is_original(model.policy, RecurrentActorCriticPolicy, "forward")


def of_buffer():
    return buffers.is_stock(model.rollout_buffer, "add")


print(all_found("sb3_contrib.common.recurrent.policies", of_policy))
print(all_found("sb3_contrib.common.recurrent.buffers", of_buffer))
'''


def test_a_thread_that_is_interrupted_in_it() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[True, True, True]"] * 2, done.stdout + done.stderr
