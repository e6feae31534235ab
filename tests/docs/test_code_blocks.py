"""Every code block and command of README.md and docs/ is executed, or parsed where executing it needs what a test lacks."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_blocks import PAGES, ROOT, blocks, commands, console, script, short_command, words
from forked_scripts import run_python

sys.path.append(str(ROOT / "tests" / "hub"))
from loopback import Hub

# Names that the blocks of a page use and that their reader has: what is before a page's first block.
PRELUDES = {
    "README.md": "import matplotlib; matplotlib.use('Agg')\n",
    "docs/gpu.md": "from stable_baselines3.common.envs import FakeImageEnv\nenv = FakeImageEnv(discrete=True)\n",
    "docs/doctor.md": (
        "from pathlib import Path\nfrom sb3_policyopt import PPO\nfrom sb3_policyopt.recording import RunRecorder\n"
        "Path('logs/ppo/HalfCheetah-v5_1').mkdir(parents=True)\n"
        "PPO('MlpPolicy', 'HalfCheetah-v5').learn(4096, callback=RunRecorder('logs/ppo/HalfCheetah-v5_1'))\n"
    ),
    "docs/scale.md": (
        "from stable_baselines3.common.env_util import make_vec_env\n"
        "from stable_baselines3.common.vec_env import VecNormalize\n"
        "from sb3_policyopt import PPO\nenv = VecNormalize(make_vec_env('CartPole-v1'))\nmodel = PPO('MlpPolicy', env)\n"
    ),
    "docs/scores.md": (
        "from stable_baselines3.common.env_util import make_vec_env\n"
        "from stable_baselines3.common.evaluation import evaluate_policy\nfrom sb3_policyopt import TRPO\nseed = 10\n"
    ),
}
# The same in the middle of a page: before the block that has the word in it.
INSERTED: dict[str, dict[str, str]] = {
    "docs/hub.md": {
        "vec_normalize.norm_reward": (  # the agent to train further
            "from stable_baselines3.common.env_util import make_vec_env\n"
            "from stable_baselines3.common.vec_env import VecNormalize\n"
            "normalized = PPO('MlpPolicy', VecNormalize(make_vec_env('Pendulum-v1')), n_steps=64, batch_size=64)\n"
            "push_to_hub(normalized, 'YOUR_NAME/ppo-Pendulum-v1', n_eval_episodes=1, video_length=0)\n"
        ),
    },
    # Simulators that need a GPU, as fakes with their methods.
    "docs/tensors.md": {
        "from_isaaclab": (
            f"import sys, types, gymnasium\nsys.path.append({str(ROOT / 'tests' / 'tensors')!r})\n"
            "from fake_simulator import FakeIsaacLab, FakeManiSkill, FakeRslRl\n"
            "env_cfg, make = types.SimpleNamespace(), gymnasium.make\n"
            "gymnasium.make = lambda name, cfg: FakeIsaacLab(1024, compute_final_obs=cfg.compute_final_obs)\n"
        ),
        "ManiSkillVectorEnv": (
            "parts = 'mani_skill.vector.wrappers.gymnasium'.split('.')\n"
            "for name in ('.'.join(parts[: n + 1]) for n in range(4)):\n"
            "    sys.modules[name] = types.ModuleType(name)\n"
            "sys.modules[name].ManiSkillVectorEnv = lambda env: env\n"
            "gymnasium.make = lambda name, num_envs: FakeManiSkill(num_envs)\n"
        ),
        "from_rsl_rl": "gymnasium.make = make\nrsl_rl_env = FakeRslRl(8)\n",
        "from_jax(": (
            "try:\n    from fake_jax import FakeGymnax\n    jax_env = FakeGymnax()\n"
            "except ImportError:  # JAX is not installed\n"
            "    from sb3_policyopt.envs import tensors\n    jax_env = None\n"
            "    tensors.from_jax = lambda env, num_envs, seed: None\n"
        ),
    },
}
# Pages whose Python blocks take more than a few seconds.
SLOW = {
    "README.md": "publishes with a video",
    "docs/hub.md": "publishes with a video",
    "docs/envpool.md": "EnvPool, Atari",
    "docs/scores.md": "LunarLander",
    "docs/envs.md": "starts worker processes",
    "docs/tensors.md": "4,096 environments, JAX",
    "docs/masks-and-memory.md": "trains nine models",
}
# Commands that no test executes or parses: the beginning of the command, and why.
SKIPPED = {
    "hf auth login": "needs a token",
    "head=": "Slurm",
    "srun ": "Slurm",
    "make install": "installs software",
    "git clone": "fetches the repository",
    "cd sb3-policyopt": "enters it",
    'pip install "./sb3-policyopt': "installs software",
    "make test": "runs this test",
}
# Pages whose commands are executed in order in one folder, shortened; the others' are parsed.
EXECUTED = ("docs/tutorial.md", "docs/hub.md")

WITHOUT_OPTIONS = ("benchmarks.guards", "benchmarks.quick")  # they measure at once

PYTHON_PAGES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
EVERY_COMMAND = [(page, line, command) for page in PAGES for line, command in commands(page)]


def environment(folder: Path, hub: Hub | None = None) -> dict[str, str]:
    """Of a child: this checkout, no display, and the Hub on this machine or none."""
    url = hub.url if hub is not None else "http://127.0.0.1:9"
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_ENDPOINT": url,
        "HF_TOKEN": "hf_me",
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "SDL_VIDEODRIVER": "dummy",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.tokens = {"hf_me": "YOUR_NAME"}
        yield hub


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [], id=page) for page in PYTHON_PAGES]
)
def test_python_blocks(page: str, tmp_path: Path, hub: Hub) -> None:
    """In order, in one process, in an empty folder; output that is quoted in a ``text`` block is compared."""
    code, expected = script(page, PRELUDES.get(page, ""), INSERTED.get(page, {}))
    (tmp_path / "page.py").write_text(code)
    done = run_python(["page.py"], tmp_path, environment(tmp_path, hub), timeout=550)
    outputs = done.stdout.split("\x1e")[1:]
    last = outputs[-1].partition("\n")[0] if outputs else "the prelude"
    assert done.returncode == 0, f"{page}, block at line {last}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
    assert len(outputs) == len(expected)
    for (line, quoted), output in zip(expected, outputs, strict=True):
        if quoted:
            assert output.partition("\n")[2].strip() == quoted.strip(), f"{page}, block at line {line}"


def test_every_command_is_parsed_by_its_program(tmp_path: Path) -> None:
    """Options that do not exist, modules that are gone, targets that the Makefile lacks."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    parsed, faults = [], []
    for page, line, command in EVERY_COMMAND:
        place = f"{page}:{line}: {command}"
        if any(command.startswith(beginning) for beginning in SKIPPED):
            continue
        program, *arguments = words(command)
        if program == "pip":
            for names in re.findall(r"\[([\w,]+)\]", command):
                faults += [f"{place}: no extra {name}" for name in names.split(",") if name not in extras]
        elif program == "make":
            faults += [f"{place}: no target {word}" for word in arguments if "=" not in word and word not in targets]
        elif program == "pytest":
            faults += [] if arguments[0] == "-k" else [f"{place}: not parsed"]  # tests/test_formula_numbers.py runs -k
        elif program == "torchrun":
            rest = re.sub(r"^torchrun( --[\w-]+ \d+)+ ", "", command)
            if rest.startswith("-m sb3_policyopt "):
                parsed.append((place, ["sb3-policyopt", *words(rest)[2:]]))
            elif rest.split()[0] != "train.py":
                faults.append(f"{place}: not parsed")
        elif program == "python" and arguments[0] == "-m":
            name = "sb3-policyopt" if arguments[1] == "sb3_policyopt" else arguments[1]
            if name in WITHOUT_OPTIONS:
                faults += [] if importlib.util.find_spec(name) else [f"{place}: no such module"]
            elif name != "sb3-policyopt" or arguments[2:]:
                parsed.append((place, [name, *arguments[2:]]))
        elif program == "python":
            faults += [] if (ROOT / arguments[0]).exists() else [f"{place}: no such file"]
        elif program == "sb3-policyopt":  # the name alone stands for the command
            parsed.append((place, [program, *arguments] if arguments[1:] else [program, *arguments, "--help"]))
        else:
            faults.append(f"{place}: neither parsed nor in the table of skipped commands")
    for name in ("my.yml", "hyperparameters.yml"):  # what the readers of these pages have
        shutil.copy(ROOT / "hyperparams" / "ppo.yml", tmp_path / name)
    (tmp_path / "reach.py").write_text(next(b.text for b in blocks("docs/own-environment.md") if b.language == "python"))
    own = [block.text for block in blocks("docs/own-algorithm.md") if block.language == "python"]
    (tmp_path / "mine.py").write_text(next(text for text in own if "register(" in text))
    runs = (("ppo", "CartPole-v1"), ("trpo", "CartPole-v1"), ("ppo", "Reach-v0"), ("mine", "CartPole-v1"))
    for algorithm, env_id in runs:
        (tmp_path / "logs" / algorithm / f"{env_id}_1").mkdir(parents=True)
        (tmp_path / "logs" / algorithm / f"{env_id}_1" / f"{env_id}.zip").touch()
    driver = [sys.executable, str(Path(__file__).parent / "parse_commands.py")]
    names = json.dumps([command for _, command in parsed])
    env = environment(tmp_path)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)  # where the command would look for modules
    done = subprocess.run(driver, cwd=tmp_path, env=env, input=names, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.rpartition("\x1e")[2])
    faults += [f"{place}: {answer}" for (place, _), answer in zip(parsed, answers, strict=True) if answer]
    assert not faults, "\n".join(faults)


@pytest.mark.fast
def test_no_entry_of_the_tables_is_out_of_date() -> None:
    assert set(PRELUDES) | set(SLOW) <= set(PYTHON_PAGES)
    for beginning in SKIPPED:
        assert any(command.startswith(beginning) for _, _, command in EVERY_COMMAND), beginning


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED)
def test_commands_of_a_page(page: str, tmp_path: Path, hub: Hub) -> None:
    """In order, in one folder, with few timesteps. ``doctor`` may find something in so short a run."""
    for line, command in commands(page, inline=False):
        program, *arguments = words(command)
        if program != "sb3-policyopt":
            continue
        done = subprocess.run(
            [sys.executable, "-m", "sb3_policyopt", *short_command(arguments)],
            cwd=tmp_path,
            env=environment(tmp_path, hub),
            capture_output=True,
            text=True,
            timeout=550,
        )
        allowed = (0, 1) if arguments[0] == "doctor" else (0,)
        assert done.returncode in allowed, f"{page}:{line}: {command}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"


def test_console_blocks(tmp_path: Path) -> None:
    """The output that is quoted below each command, in one process."""
    (tmp_path / "logs" / "trpo" / "CartPole-v1_1").mkdir(parents=True)  # the run that the page has trained
    run = (
        "import json, sys\nfrom sb3_policyopt.cli.main import main\n"
        "for words in json.load(sys.stdin):\n    main(words)\n    print('\\x1e', file=sys.stderr)"
    )
    pairs = [pair for page in PAGES for pair in console(page)]
    done = subprocess.run(
        [sys.executable, "-c", run],
        cwd=tmp_path,
        env=environment(tmp_path),
        input=json.dumps([words(command)[1:] for command, _ in pairs]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    answers = done.stderr.split("\x1e")
    assert len(answers) == len(pairs) + 1 and pairs, done.stderr
    for (command, output), answer in zip(pairs, answers, strict=False):
        assert output in [line.strip() for line in answer.splitlines()], f"{command}: {answer}"
