"""A checkpoint is published without the state of its training, which holds what callbacks know."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from runs import make_run
from stable_baselines3.common.callbacks import BaseCallback

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.cli.main import main
from sb3_policyopt.errors import HubUserError
from sb3_policyopt.hub import push_to_hub

TOKEN = "hf_a_token_of_the_script"


class Secretive(BaseCallback):
    """Gets a token while it runs."""

    token = ""

    def _on_step(self) -> bool:
        self.token = TOKEN
        return True


def checkpoint(folder: Path) -> tuple[PPO, Path]:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(64, callback=[Secretive(), ResumableCheckpointCallback(folder, 32)])
    path = folder / "rl_model_64_steps.zip"
    with zipfile.ZipFile(path) as archive:
        assert TOKEN.encode() in archive.read("training_state.pkl")
    return model, path


def is_without_state(published: Path, original: Path) -> None:
    """Check that the entries are those of the original but for one, and that nothing of that one is left in the file."""
    with zipfile.ZipFile(published) as copy, zipfile.ZipFile(original) as archive:
        assert copy.testzip() is None
        assert [*copy.namelist(), "training_state.pkl"] == archive.namelist()
        for entry in copy.infolist():
            content = copy.read(entry)
            assert content == archive.read(entry.filename) and TOKEN.encode() not in content
        assert copy.getinfo("data").date_time == archive.getinfo("data").date_time
    assert b"training_state" not in published.read_bytes()


def test_a_checkpoint_is_published_without_the_state_of_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = checkpoint(tmp_path / "checkpoints")
    original = path.read_bytes()
    folder = Path(push_to_hub(model, "me/x", zip_path=path, dry_run=tmp_path / "dry", video_length=0, n_eval_episodes=1))
    published = folder / "ppo-CartPole-v1.zip"
    is_without_state(published, path)
    assert "training_state.pkl" in capsys.readouterr().out and path.read_bytes() == original
    recorded = json.loads((folder / "provenance.json").read_text())
    assert recorded["zip_sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert recorded["zip_sha256"] in (folder / "README.md").read_text()
    loaded = PPO.load(published, device="cpu", safe=True)
    for one, other in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert bool((one == other).all())


@pytest.mark.parametrize("options", ["--load-last-checkpoint", "--load-checkpoint 64"])
def test_the_command_leaves_it_out_too(options: str, tmp_path: Path) -> None:
    _, path = checkpoint(make_run(tmp_path / "logs", "ppo", "CartPole-v1", records=False, n_timesteps=128))
    push = f"push_to_hub --algo ppo --env CartPole-v1 -f {tmp_path / 'logs'} -orga me --no-video {options}"
    assert main([*push.split(), "--dry-run", str(tmp_path / "dry")]) == 0
    is_without_state(tmp_path / "dry" / "ppo-CartPole-v1.zip", path)


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    model, path = checkpoint(tmp_path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("policy.pth")
    content = bytearray(path.read_bytes())
    content[entry.header_offset + entry.compress_size // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(HubUserError, match=r"rl_model_64_steps.zip is damaged \(Bad CRC-32"):
        push_to_hub(model, "me/x", zip_path=path, dry_run=tmp_path / "dry", video_length=0, n_eval_episodes=1)
    assert not (tmp_path / "dry").exists()
