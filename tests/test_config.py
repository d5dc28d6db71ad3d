"""Configuration: recipes, overrides and their types, and errors that name key and way out."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from i2c_fast.config import (
    Config,
    StageConfig,
    as_dict,
    as_toml,
    build_config,
    differences,
    keys,
    load_recipe,
    recipe_names,
)
from i2c_fast.errors import UserError
from i2c_fast.methods import METHODS

KINDS = {name.replace("stageN", "stage0"): kind for name, kind, *_ in keys()}
NUMBERS = [name for name, kind in KINDS.items() if kind == "number"]
INTEGERS = [name for name, kind in KINDS.items() if kind == "integer"]
TEXTS = [name for name, kind in KINDS.items() if kind == "text"]


STAGES = {"stage0": {"method": "cam"}, "stage1": {"method": "i2c"}}


def built(*overrides: str, values: dict[str, Any] | None = None) -> Config:
    return build_config(STAGES if values is None else values, "here.toml", overrides)


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return as_dict(config)[section][name]


def message(*overrides: str, values: dict[str, Any] | None = None) -> str:
    """Of the error, which must be one line."""
    with pytest.raises(UserError) as caught:
        built(*overrides, values=values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Keys


def test_every_key_has_a_type_and_a_help_text() -> None:
    for name, kind, _, text in keys():
        assert kind, name
        assert len(text) > 5, name


def test_keys_are_those_of_the_configuration_with_their_defaults() -> None:
    listed = {name: default for name, _, default, _ in keys()}
    every = built(*(f"stage{i}.method={name}" for i, name in enumerate(METHODS)))
    stages = len(METHODS)
    found = {f"{s}.{k}": v for s, entries in as_dict(every).items() for k, v in entries.items()}
    for key, default in listed.items():
        for stage in range(stages) if key.startswith("stageN.") and key != "stageN.method" else [0]:
            if key != "stageN.method":
                assert found.pop(key.replace("stageN", f"stage{stage}")) == default
    assert set(found) == {f"stage{i}.method" for i in range(stages)}


def test_defaults_are_themselves_valid() -> None:
    assert built(values={}) == Config()
    assert built(values=as_dict(built())) == built()


def test_defaults_are_not_shared() -> None:
    built().stages["stage0"].milestones.append(99)
    assert 99 not in built().stages["stage0"].milestones


# Recipes


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_loads_validates_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    config = build_config(recipe.values, name)
    assert recipe.name == name
    assert len(recipe.description) > 20
    # A recipe states what it changes, and the configuration takes it.
    for section, entries in recipe.values.items():
        for key, value in entries.items():
            assert value_of(config, f"{section}.{key}") == value


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_its_distance(name: str) -> None:
    # λ does not transfer between the distances.
    recipe = load_recipe(name)
    options = build_config(recipe.values, name).methods.get("i2c")
    assert options is None or options.distance in recipe.description


def test_recipes_come_with_the_package() -> None:
    assert {"demo", "ilsvrc10_resnet18"} <= set(recipe_names())


def test_recipe_may_be_any_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "my recipe.toml"
    file.write_text('description = "mine, λ"\n[stage0]\nlr = 0.5\n', "utf-8")
    recipe = load_recipe(str(file))
    assert (recipe.description, recipe.values) == ("mine, λ", {"stage0": {"lr": 0.5}})
    assert build_config(recipe.values, str(file)).stages["stage0"].lr == 0.5


def test_recipe_without_description_loads(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    assert load_recipe(str(tmp_path / "a.toml")).values == {}


def test_missing_recipe_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no recipe or TOML file 'demoo'; did you mean demo\?"):
        load_recipe("demoo")
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UserError, match="there is no recipe or TOML file"):
            load_recipe(str(path))


def test_file_that_is_not_toml_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[stage0\nlr = 1")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_recipe(str(tmp_path / "broken.toml"))


def test_file_that_is_not_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04\xff\xfe\x80")
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        load_recipe(str(tmp_path / "checkpoint.pt"))


# The resolved configuration


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    config = build_config(load_recipe(name).values, name, ["run.seed=7", "data.root=a folder"])
    (tmp_path / "config.toml").write_text(as_toml(config), "utf-8")
    assert build_config(load_recipe(str(tmp_path / "config.toml")).values, "config.toml") == config


@pytest.mark.parametrize(
    "text", ["", "a b=c", 'quote " and \\ backslash', "tab\tand\nline", "ünï ☃ 𝔸", "C:\\data", "\x00\x1f", "'''", "# x"]
)
def test_any_text_survives_toml(text: str) -> None:
    config = built(values={"data": {"root": text}})
    assert tomllib.loads(as_toml(config))["data"]["root"] == text


@pytest.mark.parametrize("number", [1e-300, 5e-324, 1.7e308, 0.1, 1e16, 123456789.123456789])
def test_any_number_survives_toml(number: float) -> None:
    config = built(values={"stage0": {"lr": number, "milestones": []}})
    again = build_config(tomllib.loads(as_toml(config)), "again")
    assert again == config and again.stages["stage0"].lr == number


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.seed=3", 3),
        ("run.seed=1_000", 1000),
        ("run.deterministic=true", True),
        ("stage0.lr=1e-2", 0.01),
        ("stage0.lr=1", 1.0),
        ("stage0.milestones=[1, 4]", [1, 4]),
        ("stage0.milestones=[]", []),
        ("stage0.schedule=cosine", "cosine"),
        ("i2c.distance=l2", "l2"),
        ('i2c.distance="l2"', "l2"),
        ("data.root=folder/of/images", "folder/of/images"),
        ("data.root=a folder with spaces", "a folder with spaces"),
        ("data.root=/data/lr=0.1,seed=3", "/data/lr=0.1,seed=3"),
        ("data.root=C:\\data", "C:\\data"),
        ("data.root=it's", "it's"),
        ("data.root=", ""),
    ],
)
def test_override_takes_the_type_of_its_key(override: str, value: Any) -> None:
    found = value_of(built(override), override.partition("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["2012", "true", "1e5", "2024-01-01", "[a]", "3 # not a comment"])
def test_folder_may_be_called_like_a_number_or_date(text: str) -> None:
    assert built(f"data.root={text}").data.root == text


def test_override_wins_over_recipe_and_later_over_earlier() -> None:
    values = {"stage0": {"lr": 0.1, "epochs": 9}}
    found = built("stage0.lr=0.2", "stage0.lr=0.3", values=values)
    assert (found.stages["stage0"].lr, found.stages["stage0"].epochs) == (0.3, 9)
    assert values == {"stage0": {"lr": 0.1, "epochs": 9}}


def test_stages_are_configured_apart() -> None:
    found = built("stage1.epochs=3").stages
    assert (found["stage0"].epochs, found["stage1"].epochs) == (StageConfig().epochs, 3)


def test_what_is_not_key_equals_value_is_an_error_with_an_example() -> None:
    assert message("stage0.lr") == "'stage0.lr' is not key=value; for example data.root=FOLDER"


# Errors


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("stage0.lrr=1", "stage0.lr"),
        ("eval.bacth=1", "eval.batch"),
        ("data.rot=x", "data.root"),
    ],
)
def test_unknown_key_is_an_error_with_the_nearest(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    assert message(override) == f"'{override}': there is no key {key}; did you mean {nearest}?"


def test_unknown_key_of_a_recipe_is_an_error_that_names_the_file() -> None:
    assert message(values={"stage0": {"lrr": 1}}) == "here.toml: there is no key stage0.lrr; did you mean stage0.lr?"


def test_unknown_section_is_an_error_with_the_nearest() -> None:
    assert message(values={"stag0": {"lr": 1}}) == "here.toml: there is no section 'stag0'; did you mean stage0?"


@pytest.mark.parametrize("override", ["xyzzy.plugh=1", "=3", "run=3", "a.b.c=3"])
def test_unknown_key_that_is_like_no_other_is_an_error_too(override: str) -> None:
    assert "there is no key" in message(override)


def test_key_outside_all_sections_is_an_error() -> None:
    assert "here.toml" in message(values={"lr": 0.1})
    assert "here.toml" in message(values={"stage0": 3})


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=abc", "run.seed=1.5", "run.seed=[1]", "run.seed=", "run.deterministic=perhaps", "stage0.lr=fast",
        "stage0.milestones=3", "stage0.milestones=[1.5]", "stage0.milestones=[soon]", "stage0.schedule=linear",
        "i2c.distance=l3", "i2c.seed_choice=last", "run.precision=fp8",
    ],
)  # fmt: skip
def test_wrong_type_is_an_error_that_names_key_and_value(override: str) -> None:
    key, _, text = override.partition("=")
    found = message(override)
    assert found.startswith(key)
    assert text.strip("[]") in found


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=-1", "data.image_size=31", "data.workers=-1", "batch.classes=0", "batch.images=0", "stage0.epochs=-1",
        "stage0.lr=0", "stage0.lr=-1", "stage0.decay=0", "stage0.decay=1.1", "stage0.milestones=[0]",
        "stage0.warmup_epochs=-0.1", "i2c.k=0", "i2c.threshold=1", "i2c.threshold=-0.1", "i2c.sc_weight=-1",
        "optim.momentum=1", "optim.head_factor=0", "eval.threshold_step=0", "eval.threshold_step=256", "eval.batch=0",
    ],
)  # fmt: skip
def test_value_out_of_range_is_an_error_that_names_key_and_value(override: str) -> None:
    found = message(override)
    assert found.startswith(override.partition("=")[0])
    assert "should be" in found


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e400"])
@pytest.mark.parametrize("key", NUMBERS)
def test_number_that_is_not_finite_is_refused(key: str, number: str) -> None:
    section = key.partition(".")[0]
    trained = [f"stage1.method={section}"] if section in METHODS else []
    assert message(*trained, f"{key}={number}").startswith(key)


@pytest.mark.parametrize("key", [*NUMBERS, *INTEGERS, *TEXTS])
def test_table_is_no_value(key: str) -> None:
    section, name = key.split(".")
    assert message(values={section: {name: {"deeper": 1}}}).startswith(key)


def test_crop_larger_than_the_short_side_is_an_error() -> None:
    assert "data.short_side=64 is below data.image_size=128" in message("data.short_side=64", "data.image_size=128")
    assert built("data.short_side=128", "data.image_size=128").data.short_side == 128


def test_consistency_without_pairs_is_an_error_with_ways_out() -> None:
    found = message("batch.images=1")
    assert "batch.images=2" in found and "i2c.sc_weight=0" in found
    for way_out in ("i2c.sc_weight=0", "stage1.epochs=0", "stage1.method=cam", "batch.images=2"):
        built("batch.images=1", way_out)


def test_configurations_compare_by_value() -> None:
    assert built("stage0.lr=0.5") == built("stage0.lr=5e-1") != built()
    assert dataclasses.replace(built()) == built()


def test_a_run_of_no_epochs_is_refused() -> None:
    assert "nothing to train" in message("stage0.epochs=0", "stage1.epochs=0")


# Stages and methods


def test_a_method_s_section_is_there_where_a_stage_trains_by_it() -> None:
    assert set(built().methods) == {"cam", "i2c"}
    assert set(as_dict(built("stage1.method=cutmix"))) >= {"stage0", "stage1", "cam", "cutmix"}
    assert "i2c" not in as_dict(built("stage1.method=cutmix"))
    assert built("i2c.k=7").options_of("stage1").k == 7


def test_options_of_a_method_that_no_stage_trains_by_are_an_error_on_the_command_line_alone() -> None:
    values = {**STAGES, "i2c": {"k": 5}}
    assert built("stage1.method=has", values=values).stages["stage1"].method == "has"
    assert message("stage1.method=has", "i2c.k=5") == (
        "i2c.k: no stage trains by i2c; a stage does with stageN.method=i2c"
    )


def test_unknown_method_is_an_error_with_the_nearest() -> None:
    assert message("stage1.method=cutmx").startswith("stage1.method=cutmx is unknown; did you mean cutmix?")


def test_a_new_stage_is_opened_by_its_method_or_epochs() -> None:
    assert list(built("stage2.method=adl", "stage2.lr=0.5").stages) == ["stage0", "stage1", "stage2"]
    assert message("stage2.lr=0.5") == (
        "'stage2.lr=0.5': here.toml has no stage2; give stage2.method and stage2.epochs first"
    )


def test_differences_name_keys_that_only_one_configuration_has() -> None:
    found = differences(built(), built("stage1.method=has", "stage0.lr=0.5"))
    assert found["stage1.method"] == ("i2c", "has")
    assert found["has.drop_rate"] == (None, 0.5) and found["i2c.k"] == (3, None)
    assert found["stage0.lr"] == (StageConfig().lr, 0.5)


# Recipes with a base


def write_recipes(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)


def test_recipe_states_what_differs_from_its_base(tmp_path: Path) -> None:
    write_recipes(
        tmp_path,
        first='description = "one"\n[stage0]\nlr = 0.5\nepochs = 3\n[data]\nworkers = 1\n',
        second='base = "first.toml"\n[stage0]\nlr = 0.25\n[i2c]\nk = 9\n',
        third='base = "second.toml"\ndescription = "three"\n[data]\nworkers = 2\n',
    )
    recipe = load_recipe(str(tmp_path / "third.toml"))
    assert recipe.description == "three"
    assert recipe.values == {"stage0": {"lr": 0.25, "epochs": 3}, "data": {"workers": 2}, "i2c": {"k": 9}}


def test_base_may_be_a_recipe_of_the_package(tmp_path: Path) -> None:
    write_recipes(tmp_path, mine='base = "demo"\n[stage1]\nmethod = "cutmix"\n')
    found = build_config(load_recipe(str(tmp_path / "mine.toml")).values, "mine")
    demo = build_config(load_recipe("demo").values, "demo", ["stage1.method=cutmix"])
    assert found == demo


def test_bases_that_cannot_be_followed_are_one_line(tmp_path: Path) -> None:
    write_recipes(tmp_path, a='base = "b.toml"', b='base = "a.toml"', c='base = "missing.toml"', d="base = 3")
    for name, words in {"a": "bases lead back to", "c": "missing.toml", "d": "base must be the name"}.items():
        with pytest.raises(UserError, match=words) as caught:
            load_recipe(str(tmp_path / f"{name}.toml"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.threads=100000"], "1024"),
        (["run.seed=100000000000000000000"], "9223372036854775807"),
        (["run.rank_timeout=1e300"], "604800"),
        (["data.image_size=100000"], "4096"),
        (["data.short_side=100000"], "4096"),
        (["data.workers=100000"], "256"),
        (["data.prefetch=1000000000"], "256"),
        (["model.head_width=100000000"], "8192"),
        (["batch.classes=1000000000000"], "65536"),
        (["batch.images=1000000000000"], "65536"),
        (
            ["batch.classes=1000", "batch.images=1000"],
            "batch.classes=1000 times batch.images=1000 .* the most is 65536",
        ),
        (["eval.batch=1000000000"], "65536"),
        (["i2c.k=100000000"], "1024"),
        (["stage0.epochs=1000000000000000000000"], "1000000"),
        (["stage0.warmup_epochs=1e308"], "is above stage0.epochs"),
        (["optim.weight_decay=1e308"], "10"),
    ],
)
def test_what_parses_and_cannot_be_meant_is_refused(overrides: list[str], words: str) -> None:
    found = message(*overrides)
    assert overrides[-1].partition("=")[0] in found
    assert re.search(words, found)
