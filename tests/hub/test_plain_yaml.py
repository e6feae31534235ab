"""YAML from other authors is data or an error; published YAML contains no facts about the machine."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sb3_policyopt.hub.plain_yaml import check_config, is_literal, without_private_facts, wrappers
from sb3_policyopt.hyperparams.zoo_yaml import NamingLoader, dump_plain, load_plain

pytestmark = pytest.mark.fast


def test_files_of_the_zoo_are_read() -> None:
    written = OrderedDict([("policy", "MlpPolicy"), ("n_envs", 2), ("nested", OrderedDict(a=(1, 2)))])
    assert load_plain(yaml.dump(written), "config.yml") == {"policy": "MlpPolicy", "n_envs": 2, "nested": {"a": [1, 2]}}
    assert load_plain("", "empty") == {}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "a: !!python/object/new:subprocess.Popen [[touch, pwned]]",
        "a: !!python/name:os.system",
        "a: !!python/module:antigravity",
        "!!python/object/apply:collections.OrderedDict [[[a, !!python/object/apply:os.getcwd []]]]",
        "!!python/object/apply:collections.OrderedDict [1, 2, 3]",
        "!!python/object/apply:collections.OrderedDict [7]",
        "!!python/object/apply:collections.OrderedDict text",
        "a: !!python/tuple text",
        "[a, b]",
        "a: [",
    ],
)
def test_everything_else_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"config\.yml is not"):
        load_plain(text, "config.yml")
    assert not list(tmp_path.iterdir())


def test_other_objects_of_python_can_be_read_as_their_names() -> None:
    text = "a: !!python/name:os.system\nb: !!python/object/apply:os.getcwd []\nc: !!python/tuple [1, 2]\n"
    names = {"a": "name:os.system", "b": "object/apply:os.getcwd", "c": [1, 2]}
    assert load_plain(text, "config.yml", NamingLoader) == names


@example({"\x85": None})
@given(st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))
def test_published_yaml_is_read_back_by_a_safe_loader(mapping: Any) -> None:
    assert yaml.safe_load(dump_plain(mapping)) == mapping


@pytest.mark.parametrize(
    "source",
    [
        "dict(norm_obs=True, norm_reward=False)",
        "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256]))",
        "{'optimizer_class': th.optim.RMSprop, 'eps': 1e-5}",
        "dict(\n  net_arch=[64],\n)",
        "dict(features_extractor_class=get_class_by_name('stable_baselines3.common.torch_layers.FlattenExtractor'))",
        "dict(optimizer_class=RMSpropTFLike)",
    ],
)
def test_literals_of_the_zoo(source: str) -> None:
    assert is_literal(source)


@pytest.mark.parametrize(
    "source",
    [
        "__import__('os').system('x')",
        "dict(a=open('x', 'w'))",
        "dict(**open('x'))",
        "[x for x in ()]",
        "(lambda: 1)()",
        "nn.__class__",
        "nn.Module.__init__",
        "nn.modules.sys.modules",
        "dict([1])",
        "f'{open(1)}'",
        "dict.fromkeys('a')",
        "{**dict()}",
        "1 if True else 2",
        "a := 1",
        "import os",
        "get_class_by_name('os.system')",
        "get_class_by_name('stable_baselines3.common.torch_layers.th.load')",
        "get_class_by_name('stable_baselines3.common.torch_layers.NatureCNN', 1)",
        "get_class_by_name(name='stable_baselines3.common.torch_layers.NatureCNN')",
        "get_class_by_name(open('x'))",
        "get_class_by_name",
        "get_class_by_name()",
        "open",
        "(" * 500,
    ],
)
def test_code_is_no_literal(source: str) -> None:
    assert not is_literal(source)


def test_config_of_the_zoo_passes_and_others_do_not() -> None:
    good: dict[str, Any] = {
        "normalize": "dict(norm_obs=False, norm_reward=True)",
        "env_wrapper": [
            {"rl_zoo3.wrappers.FrameSkip": {"skip": 2}},
            "stable_baselines3.common.atari_wrappers.AtariWrapper",
            {"gymnasium.wrappers.transform_observation.GrayscaleObservation": {"keep_dim": True}},
        ],
        "policy_kwargs": "dict(activation_fn=nn.GELU)",
        "callback": [
            {"sb3_policyopt.callbacks.AdaptiveLearningRate": {"desired_kl": 0.02}},
            "sb3_policyopt.callbacks.StaggeredResets",
        ],
    }
    check_config(good, "config.yml")
    wrong: list[dict[str, Any]] = [
        {"normalize": "exit()"},
        {"policy_kwargs": "dict(a=exit())"},
        {"env_wrapper": "os.system"},
        {"env_wrapper": [{"gymnasium.wrappers.RecordVideo": {"video_folder": "/"}}]},
        {"env_wrapper": "gymnasium.wrappers.sys.FlattenObservation.x"},
        {"vec_env_wrapper": "builtins.eval"},
        {"callback": ["subprocess.run"]},
        {"callback": "sb3_policyopt.callbacks.RunRecorder"},  # writes files
        {"policy": "os.system"},
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match="config"):
            check_config(good | bad, "config.yml")


def test_wrapper_entries_of_every_form() -> None:
    assert wrappers(None) == []
    assert wrappers("a.B") == [("a.B", {})]
    assert wrappers(["a.B", {"c.D": {"x": 1}}]) == [("a.B", {}), ("c.D", {"x": 1})]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/somebody/logs", "logs"),
        ("--log-folder=/home/somebody/my logs/run_1", "--log-folder=run_1"),
        ("C:\\Users\\somebody\\logs", "logs"),
        ("~/logs/x.db", "x.db"),
        ("postgresql://user:password@host/db", "(address removed)"),
        ("sqlite:////home/somebody/study.db", "(address removed)"),
        ("ALE/Pong-v5", "ALE/Pong-v5"),
        ("lin_0.01", "lin_0.01"),
        ("1/2", "1/2"),
        ("stable_baselines3.common.atari_wrappers.AtariWrapper", "stable_baselines3.common.atari_wrappers.AtariWrapper"),
    ],
)
def test_private_facts_are_removed(text: str, public: Any) -> None:
    assert without_private_facts({"a": [text, 1, None]}) == {"a": [public, 1, None]}
