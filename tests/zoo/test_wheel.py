"""The wheel, installed into an empty folder and used far from the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"sb3_policyopt/hyperparams/{name}" for name in ("ppo.yml", "trpo.yml", "ppo.py", "trpo.py")} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "hyperparams"))]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder / "site"


@pytest.mark.slow
def test_train_from_the_wheel(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert str(site) in python("-c", "import sb3_policyopt; print(sb3_policyopt.__file__)")
    output = python(
        "-m", "sb3_policyopt", "train", "--algo", "trpo", "--env", "CartPole-v1", "-n", "1024", "--eval-freq", "-1"
    )
    assert f"Loading hyperparameters from: {site}/sb3_policyopt/hyperparams/trpo.yml" in output
    stock = ["-m", "rl_zoo3.train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1"]
    python(*stock, "--gym-packages", "sb3_policyopt.zoo", "-conf", "sb3_policyopt.hyperparams.ppo")
    assert (tmp_path / "logs" / "trpo" / "CartPole-v1_1" / "provenance.json").is_file()
    assert (tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()
