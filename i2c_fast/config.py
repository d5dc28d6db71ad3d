"""Configuration: dataclasses → TOML recipes → ``key=value`` on the command line.

The dataclasses are the one list of keys: types, limits, defaults and help texts. A recipe states what it changes. Its
sections ``[stage0]``, ``[stage1]`` … are the stages of training in order; each names a method of `methods`, whose
options are the section of that name.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from .errors import UserError
from .files import MIB, read_regular
from .methods import METHODS, Method, Number, PlanName, find_method

Positive = Annotated[int, Field(ge=1)]

# Upper bounds keep out what cannot be meant. They stand far above any machine or published training: the largest
# batches that were trained on ImageNet have 2¹⁶ images.
LARGEST_SEED = 2**63 - 1  # of torch's generators
LARGEST_SIDE = 4096  # pixels; a map then has 512 × 512 cells
LARGEST_BATCH = 65_536  # images


@dataclass
class RunConfig:
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="of everything random: batches, crops, dropout, seed pixels")
    ] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "tf32", "fp32", "fp64"],
        Field(
            description="of the model's forward and backward; losses and weights are fp32. auto: bf16 on a GPU that "
            "has it, fp16 on others, fp32 on a processor; fp64 is for checks"
        ),
    ] = "auto"
    compile: Annotated[bool, Field(description="torch.compile the model for training; the first steps take longer")] = (
        False
    )
    rank_timeout: Annotated[
        Number,
        Field(gt=0, le=604_800, description="seconds that ranks under torchrun wait for one that does not answer"),
    ] = 600.0
    cuda_graph: Annotated[
        bool, Field(description="replay whole steps as a CUDA graph: for batches that leave a GPU waiting for its host")
    ] = False
    deterministic: Annotated[bool, Field(description="bit-equal repeats on one machine, at some cost in speed")] = False
    threads: Annotated[int, Field(ge=0, le=1024, description="processor threads of torch; 0: torch's own choice")] = 0
    checkpoint_every: Annotated[
        int, Field(ge=0, description="steps between checkpoints besides those at each epoch's end; 0: only those")
    ] = 0
    keep_checkpoints: Annotated[int, Field(ge=0, description="how many of the newest to keep; 0: all")] = 3
    max_skipped: Annotated[int, Field(ge=1, description="steps in a row that are not finite before the run stops")] = 10
    log_every: Annotated[int, Field(ge=1, description="steps between readings of the losses from the device")] = 10


@dataclass
class DataConfig:
    root: Annotated[str, Field(description="the data set's folder")] = ""
    layout: Annotated[str, Field(description="auto, or the layout's name")] = "auto"
    metadata: Annotated[str, Field(description="folder of wsolevaluation's metadata, for that layout")] = ""
    devkit: Annotated[str, Field(description="ILSVRC devkit, where metadata numbers classes by its ids")] = ""
    masks: Annotated[str, Field(description="where paths of masks in metadata start (OpenImages); empty: root")] = ""
    blacklist: Annotated[str, Field(description="file of image paths to leave out, as validate-data writes it")] = ""
    max_unreadable: Annotated[int, Field(ge=0, description="unreadable training images before the run stops")] = 100
    image_size: Annotated[
        int, Field(ge=32, le=LARGEST_SIDE, description="S: side of training crops and test images, pixels")
    ] = 224
    short_side: Annotated[
        int, Field(ge=32, le=LARGEST_SIDE, description="shorter side before the training crop, pixels")
    ] = 256
    resize: Annotated[
        Literal["linear", "antialias"], Field(description="bilinear of four pixels, or averaging where images shrink")
    ] = "linear"
    loader: Annotated[
        Literal["auto", "opencv", "dali"], Field(description="auto: dali where the model is on a GPU and DALI is there")
    ] = "auto"
    workers: Annotated[int, Field(ge=0, le=256, description="loader processes, 0: none; of dali threads, 0: one")] = 4
    prefetch: Annotated[
        int, Field(ge=1, le=256, description="batches made ahead, by each process or by dali's pipeline")
    ] = 2
    hw_decoder_load: Annotated[
        Number, Field(ge=0, le=1, description="share of JPEGs that dali gives to a GPU's hardware decoder")
    ] = 0.65


@dataclass
class ModelConfig:
    backbone: Annotated[str, Field(description="vgg16, resnet50, inception_v3, resnet18 or a registered name")] = (
        "resnet50"
    )
    head_width: Annotated[
        int, Field(ge=0, le=8192, description="channels of the head's hidden layers; 0: the backbone's")
    ] = 0
    dropout: Annotated[Number, Field(ge=0, lt=1, description="in the head, before each of its layers")] = 0.5
    bn: Annotated[
        Literal["local", "sync", "frozen"],
        Field(
            description="BatchNorm's statistics in training: of each rank's images, of all ranks', or as they are at "
            "the start"
        ),
    ] = "local"
    freeze: Annotated[
        str, Field(description="layer of the body up to which weights and BatchNorm's statistics stay; '': none")
    ] = ""
    weights: Annotated[
        str, Field(description="imagenet (torchvision's file, downloaded once), none, or such a file's path")
    ] = "imagenet"
    init: Annotated[str, Field(description="an i2c-fast checkpoint or run folder, whose weights to start from")] = ""
    init_head: Annotated[
        Literal["keep", "new"], Field(description="new draws the class layer anew, for an init of other classes")
    ] = "keep"


@dataclass
class BatchConfig:
    classes: Annotated[int, Field(ge=1, le=LARGEST_BATCH, description="P: class slots a batch")] = 40
    images: Annotated[int, Field(ge=1, le=LARGEST_BATCH, description="Q: images a slot")] = 2
    plan: Annotated[
        Literal["auto", PlanName],
        Field(description="class_paired: slots of one class; plain: each image once an epoch; auto: the method's own"),
    ] = "auto"
    epoch_fraction: Annotated[
        Number, Field(gt=0, le=1, description="of an epoch's steps that are taken, where time is short")
    ] = 1.0
    micro_batches: Annotated[
        int,
        Field(ge=1, description="parts of a batch whose gradients a step adds up, where memory is short"),
    ] = 1


@dataclass
class StageConfig:
    method: Annotated[str, Field(description=f"one of {', '.join(METHODS)}")] = "cam"
    epochs: Annotated[int, Field(ge=0, le=1_000_000, description="epochs of this stage; 0 skips it")] = 5
    lr: Annotated[Number, Field(gt=0, description="learning rate of body weights at the stage's start")] = 1e-3
    schedule: Annotated[
        Literal["steps", "cosine"], Field(description="steps: lr × decay after each milestone; cosine: down to 0")
    ] = "steps"
    milestones: Annotated[list[Positive], Field(description="epochs of this stage after which steps decays")] = field(
        default_factory=lambda: [2, 3, 4]
    )
    decay: Annotated[Number, Field(gt=0, le=1, description="factor at each milestone")] = 0.1
    warmup_epochs: Annotated[Number, Field(ge=0, description="epochs of linear rise to lr, may be a fraction")] = 0.0


@dataclass
class OptimConfig:
    name: Annotated[Literal["sgd", "adamw"], Field(description="adamw takes other rates; its betas are torch's")] = (
        "sgd"
    )
    impl: Annotated[
        Literal["auto", "torch", "apex"],
        Field(description="whose fused optimizer; auto: torch's. apex: SGD alone"),
    ] = "auto"
    momentum: Annotated[Number, Field(ge=0, lt=1, description="of SGD")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's momentum")] = True
    weight_decay: Annotated[Number, Field(ge=0, le=10, description="on every model parameter, biases included")] = 5e-4
    body_bias_factor: Annotated[Number, Field(gt=0, description="learning-rate factor of body biases")] = 2.0
    head_factor: Annotated[Number, Field(gt=0, description="learning-rate factor of head weights")] = 10.0
    head_bias_factor: Annotated[Number, Field(gt=0, description="learning-rate factor of head biases")] = 20.0
    scale_lr: Annotated[
        bool, Field(description="multiply learning rates by the images in a batch over 80, the paper's batch")
    ] = False
    clip_norm: Annotated[Number, Field(ge=0, description="largest norm of all gradients together; 0: any")] = 0.0
    ema_decay: Annotated[
        Number, Field(ge=0, lt=1, description="of a moving average (EMA) of the weights kept beside them; 0: none")
    ] = 0.0


@dataclass
class EvalConfig:
    every: Annotated[int, Field(ge=0, description="epochs between evaluations; 0: only after the last")] = 1
    batch: Annotated[int, Field(ge=1, le=LARGEST_BATCH, description="test images a batch")] = 64
    protocol: Annotated[
        Literal["paper", "wsolevaluation"], Field(description="the paper's, or the field's standard evaluator's")
    ] = "paper"
    threshold_step: Annotated[
        int, Field(ge=1, le=255, description="gray levels between the paper protocol's thresholds (1: all 255)")
    ] = 1
    ema: Annotated[bool, Field(description="score the EMA of the weights, which optim.ema_decay keeps")] = False
    ten_crop: Annotated[bool, Field(description="class scores from ten crops; maps from the whole image")] = False


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)  # stage0, stage1 … in order
    methods: dict[str, Any] = field(default_factory=dict)  # options of each method that a stage trains by

    def options_of(self, stage: str) -> Any:
        """The options of a stage's method."""
        return self.methods[self.stages[stage].method]


@dataclass(frozen=True)
class Recipe:
    """A named set of changes to the defaults."""

    name: str
    description: str
    values: dict[str, dict[str, Any]]


STAGE = re.compile(r"stage(\d{1,4})")
_FIXED: dict[str, type] = {
    name: hint for name, hint in get_type_hints(Config).items() if isinstance(hint, type) and name != "methods"
}


def _section_type(section: str) -> type | None:
    """The dataclass of a section's keys; None if there is no such section."""
    if section in METHODS:
        return METHODS[section].Options
    return StageConfig if STAGE.fullmatch(section) else _FIXED.get(section)


Key = tuple[str, str, Any, str]


def keys() -> tuple[Key, ...]:
    """Every configuration key: (dotted name, type, default, help text); those of a stage as ``stageN``."""
    return _keys_with(tuple(METHODS.items()))


@cache
def _keys_with(methods: tuple[tuple[str, type[Method]], ...]) -> tuple[Key, ...]:
    return tuple(_list_keys(dict(methods)))


def _list_keys(methods: dict[str, type[Method]]) -> Iterator[Key]:
    sections = {**_FIXED, "stageN": StageConfig, **{name: method.Options for name, method in methods.items()}}
    for section, cls in sections.items():
        hints, defaults = get_type_hints(cls, include_extras=True), cls()
        for entry in dataclasses.fields(cls):
            hint, *metadata = get_args(hints[entry.name])
            text = next((m.description for m in metadata if isinstance(m, FieldInfo) and m.description), "")
            yield f"{section}.{entry.name}", _type_name(hint), getattr(defaults, entry.name), text


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(get_args(hint))
    if get_origin(hint) is list:
        return f"list of {'texts' if get_args(hint)[0] is str else 'integers'}"
    return {"int": "integer", "float": "number", "str": "text", "bool": "true | false"}[hint.__name__]


def build_config(values: dict[str, Any], source: str, overrides: Iterable[str] = ()) -> Config:
    """Defaults, changed by `values` (nested sections), changed by ``key=value`` overrides.

    Raises:
        UserError: unknown key (with the nearest that exists), wrong type or value out of range; names `source` or the
            override.
    """
    merged = {section: dict(entries) for section, entries in _checked_sections(values, source).items()}
    overridden = []
    for override in overrides:
        section, name, value = _parse_override(override)
        if STAGE.fullmatch(section) and section not in merged and name not in ("method", "epochs"):
            raise UserError(
                f"{override!r}: {source} has no {section}; give {section}.method and {section}.epochs first"
            )
        merged.setdefault(section, {})[name] = value
        overridden.append((section, name))
    stages = sorted(filter(STAGE.fullmatch, merged), key=lambda name: int(name.removeprefix("stage")))
    built = {
        section: _validated(section, merged.get(section, {}), source, overridden) for section in {*_FIXED, *merged}
    }
    used = {built[stage].method: find_method(built[stage].method, f"{stage}.method") for stage in stages}
    for section, name in overridden:
        if section in METHODS and section not in used:
            raise UserError(
                f"{section}.{name}: no stage trains by {section}; a stage does with stageN.method={section}"
            )
    config = Config(
        **{section: built[section] for section in _FIXED},
        stages={stage: built[stage] for stage in stages},
        methods={name: built.get(name) or method.Options() for name, method in used.items()},
    )
    _check_together(config)
    return config


@cache
def _validator(section_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(section_type)


def _validated(section: str, values: dict[str, Any], source: str, overridden: list[tuple[str, str]]) -> Any:
    try:
        return _validator(_section_type(section)).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        location = [section, *(str(part) for part in first["loc"])]
        where = "" if tuple(location[:2]) in overridden else f" ({source})"
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{'.'.join(location)}={str(first['input'])[:80]}: {reason}{where}") from None


def _check_together(config: Config) -> None:
    if config.stages and not any(stage.epochs for stage in config.stages.values()):
        raise UserError(f"{', '.join(f'{name}.epochs' for name in config.stages)} are 0; there is nothing to train")
    if config.eval.ema and not config.optim.ema_decay:
        raise UserError("eval.ema=true scores the EMA of the weights; give optim.ema_decay, such as 0.999")
    if config.data.short_side < config.data.image_size:
        raise UserError(
            f"data.short_side={config.data.short_side} is below data.image_size={config.data.image_size}; "
            "the crop would not fit"
        )
    batch = config.batch.classes * config.batch.images
    if batch > LARGEST_BATCH:
        raise UserError(
            f"batch.classes={config.batch.classes} times batch.images={config.batch.images} are {batch} images a "
            f"batch, the most is {LARGEST_BATCH}; lower one of them"
        )
    for name, stage in config.stages.items():
        if stage.epochs:
            if stage.warmup_epochs > stage.epochs:
                raise UserError(
                    f"{name}.warmup_epochs={stage.warmup_epochs:g} is above {name}.epochs={stage.epochs}; "
                    "its learning rate would never be reached"
                )
            METHODS[stage.method].check(config.options_of(name), config.batch.images)


def _checked_sections(values: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    for section, entries in values.items():
        if _section_type(section) is None:
            known = [*_FIXED, "stage0", "stage1", *METHODS]
            raise UserError(f"{source}: there is no section {section!r}{_nearest(section, known)}")
        if not isinstance(entries, dict):
            raise UserError(f"{source}: {section} is a section, not a value; write [{section}] and its keys below")
        for name in entries:
            _check_key(f"{section}.{name}", source)
    return values


def _check_key(key: str, source: str) -> None:
    section, _, name = key.partition(".")
    cls = _section_type(section)
    if cls is None or name not in {entry.name for entry in dataclasses.fields(cls)}:
        known = [name.replace("stageN", section if STAGE.fullmatch(section) else "stage0") for name, *_ in keys()]
        raise UserError(f"{source}: there is no key {key}{_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else "; `i2c-fast recipes --keys` lists them all"


def _parse_override(override: str) -> tuple[str, str, Any]:
    key, equals, text = override.partition("=")
    try:
        override.encode()
    except UnicodeEncodeError:
        raise UserError(f"{override!r} is not UTF-8; rename the file or folder") from None
    if not equals:
        raise UserError(f"{override!r} is not key=value; for example data.root=FOLDER")
    _check_key(key, f"{override!r}")
    section, name = key.split(".")
    listed = STAGE.sub("stageN", key, 1)
    kind = next(kind for known, kind, *_ in keys() if known == listed)
    if kind == "text" and text[:1] not in ('"', "'"):
        return section, name, text  # a folder may be called 2012 or true
    try:
        return section, name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, name, text  # a choice needs no quotes


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files(f"{__package__}.recipes").iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by name, or any TOML file by path.

    A recipe with ``base = "NAME or FILE"`` states only what differs from that one; a file is looked for beside it.

    Raises:
        UserError: no such recipe or file, not TOML, or bases that lead back to it.
    """
    values = _recipe_values(name_or_path, ())
    return Recipe(name_or_path, str(values.pop("description", "")), values)


def _recipe_values(name: str, derived: tuple[str, ...]) -> dict[str, Any]:
    if name in derived:
        raise UserError(f"recipe {derived[0]}: its bases lead back to {name} ({' → '.join((*derived, name))})")
    try:
        values = tomllib.loads(_recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not valid TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{name}: base must be the name of a recipe or a file, got {base}")
    if base not in recipe_names():
        base = str(Path(name).parent / base)
    merged = _recipe_values(base, (*derived, name))
    for section, entries in values.items():
        both = isinstance(entries, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **entries} if both else entries
    return merged


def _recipe_text(name_or_path: str) -> str:
    if name_or_path in recipe_names():
        return resources.files(f"{__package__}.recipes").joinpath(f"{name_or_path}.toml").read_text("utf-8")
    if not Path(name_or_path).is_file():
        raise UserError(
            f"there is no recipe or TOML file {name_or_path!r}{_nearest(name_or_path, recipe_names())} "
            "(`i2c-fast recipes` lists the recipes)"
        )
    try:
        return read_regular(Path(name_or_path), MIB).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name_or_path} cannot be read as text: {error}") from None


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Keys at which two configurations differ, with both values; None where one has no such section."""
    a, b = as_dict(first), as_dict(second)
    found = {
        f"{section}.{key}": (a.get(section, {}).get(key), b.get(section, {}).get(key))
        for section in {**a, **b}
        for key in {**a.get(section, {}), **b.get(section, {})}
    }
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def as_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The resolved configuration as plain sections."""
    sections = dataclasses.asdict(config)
    return {**{name: sections[name] for name in _FIXED}, **sections["stages"], **sections["methods"]}


def as_toml(config: Config) -> str:
    """The resolved configuration as TOML that `load_recipe` reads back."""
    lines: list[str] = []
    for section, entries in as_dict(config).items():
        # JSON's spelling of strings, numbers, booleans and flat lists is TOML's, but for one character.
        written = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())
        lines += [f"[{section}]", *written, ""]
    return "\n".join(lines).replace("\x7f", "\\u007f")
