import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from core.config import load_experiment, override, parse, parse_parts, require
from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 4


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    rate: float = 0.5
    name: str = ""
    kind: Literal["sgd", "adam"] = "adam"
    flag: bool = False
    sizes: tuple[int, ...] = ()
    limit: int | None = None
    scale: Literal["root", "line"] | float = 1.0
    inner: Inner = Inner()

    def __post_init__(self):
        require(self.steps > 0, f"steps={self.steps} must be positive")


def test_parses_nested_values_and_lists():
    parsed = parse(Outer, {"steps": 3, "rate": 1, "sizes": [1, 2], "inner": {"width": 8}}, "x")
    assert parsed == Outer(3, 1.0, sizes=(1, 2), inner=Inner(8))
    assert isinstance(parsed.rate, float)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"steps": 1, "stepz": 2}, "unknown config key x.stepz; did you mean steps?"),
        ({"steps": 1, "inner": {"with": 2}}, "unknown config key x.inner.with; did you mean width?"),
        ({}, "config key x.steps is missing (an integer)"),
        ({"steps": "3"}, "config x.steps='3' must be an integer"),
        ({"steps": True}, "config x.steps=True must be an integer"),
        ({"steps": 1.5}, "config x.steps=1.5 must be an integer"),
        ({"steps": 1, "kind": "adm"}, "config x.kind='adm' is not a choice; did you mean adam?"),
        ({"steps": 1, "sizes": (1, "a")}, "config x.sizes[1]='a' must be an integer"),
        ({"steps": 1, "limit": "a"}, "config x.limit='a' must be an integer"),
        ({"steps": 1, "scale": "rot"}, "config x.scale='rot' must be one of root, line or a number"),
        ({"steps": 1, "inner": 3}, "config x.inner=3 must be a group of keys (width)"),
        ({"steps": 0}, "config x: steps=0 must be positive"),
    ],
)
def test_refuses_with_a_line_that_names_the_key(tree, message):
    with pytest.raises(UserError) as error:
        parse(Outer, tree, "x")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "12", 12),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("name", "123", "123"),
        ("kind", "sgd", "sgd"),
        ("flag", "true", True),
        ("sizes", "(3, 4)", (3, 4)),
        ("limit", "none", None),
    ],
)
def test_command_line_values_take_the_type_of_their_key(key, text, value):
    config = ConfigDict({"outer": {"steps": 1}})
    override(config, f"outer.{key}", text)
    assert getattr(parse(Outer, config.to_dict()["outer"], "outer"), key) == value


def test_override_of_an_unknown_group_names_the_nearest():
    with pytest.raises(UserError, match="no group outr; did you mean outer"):
        override(ConfigDict({"outer": {}}), "outr.steps", "1")


def test_a_group_that_the_experiment_leaves_out_can_be_given():
    config = ConfigDict({"model": {}}).lock()
    override(config, "export.dtype", "bfloat16", groups=("model", "export"))
    override(config, "model.rope_scaling.factor", "2", groups=("model", "export"))
    assert config.to_dict() == {"model": {"rope_scaling": {"factor": "2"}}, "export": {"dtype": "bfloat16"}}
    with pytest.raises(UserError, match="no group exprt; did you mean export"):
        override(config, "exprt.dtype", "bfloat16", groups=("model", "export"))


def test_keys_that_refer_to_an_overridden_one_follow():
    config = ConfigDict({"tokenizer": {"vocab_size": 4096}})
    config.model = ConfigDict({"vocab_size": config.tokenizer.get_oneway_ref("vocab_size")})
    override(config.lock(), "tokenizer.vocab_size", "320")
    assert parse(Vocabulary, config.to_dict()["model"], "model").vocab_size == 320


def test_unknown_top_level_key_is_refused():
    with pytest.raises(UserError, match="unknown config key oter; did you mean outer"):
        parse_parts({"outer": Inner}, {"oter": {}})


def test_an_experiment_that_fails_is_told_in_one_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError, match=r"must return an ml_collections.ConfigDict"):
        load_experiment(path)
    path.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"broken.py fails: ZeroDivisionError: division by zero"):
        load_experiment(path)
