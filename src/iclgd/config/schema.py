"""Every key that can be set, with its type, its default and, in the comment behind it, its meaning."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from iclgd.config import enumerations as enums
from iclgd.config.bounds import MAPPINGS, ConfigError, refuse_impossible


@dataclass
class ModelConfig:
    """A model and how its prompts are built (conf/model)."""

    name: str = MISSING  # a hub id, the path of a folder, or a package
    source: enums.ModelSource = enums.ModelSource.hub  # hub id or folder, package, toy, memory (iclgd.run(model=...))
    file: str | None = None  # the GGUF file inside the package, or inside a hub repository or folder
    revision: str | None = None  # a commit of the hub's repository; null: the newest
    weights: enums.Weights = enums.Weights.pretrained  # pretrained, or one of the papers' untrained baselines
    weights_seed: int = 0  # which untrained weights
    bos: str | None = "auto"  # auto: the tokenizer's, if it has one; a token; or null: nothing stands first
    separator: str = "\n"  # text or a token between demonstrations
    dtype: str | None = None  # the precision of its files, which runtime.dtype=model takes
    chat: enums.Chat = enums.Chat.none  # demonstrations and query as turns of a conversation
    chat_arguments: Any = None  # of the chat template, as {enable_thinking: false}
    anatomy: Any = None  # parts that are not found at load (docs/guide/model.md)


@dataclass
class TaskConfig:
    """Rows, how they are worded, and how many are used (conf/task)."""

    name: str = MISSING  # what tables call it, and where local rows lie: paths.data_dir/NAME
    source: enums.TaskSource = enums.TaskSource.hub  # bundled rows, the hub or a local copy, lm-evaluation-harness
    hub: str | None = None  # data set id
    subset: str | None = None  # its configuration name
    revision: str | None = None  # a commit of the hub's repository; null: the newest
    file: str | None = None  # one file with all rows, of which half are the train split: .json, .jsonl, .csv, .parquet
    lm_eval: str | None = None  # a task of lm-evaluation-harness, or the path of a task's yaml, for source=lm_eval
    templates: list[str] = field(default_factory=list)  # Jinja2, filled from the row: "Review: {{ text }} Sentiment:"
    template: int = 0  # which of them
    description: str = ""  # stands once before everything else
    delimiter: str = " "  # between a text and its answer
    separator: str | None = None  # between demonstrations; null: the model's
    labels: list[str] = field(default_factory=list)  # label words, by label id; empty for multiple choice
    label_column: str = "label"  # a column, or a Jinja2 expression such as answers[0]
    label_values: list[str] | None = None  # the label column's values by label id, where it does not hold ids
    label_among: str | None = None  # or the column that lists each row's own values ("choices.label")
    template_labels: dict[int, list[str]] = field(default_factory=dict)  # label words that one template has instead
    options: list[str] | None = None  # multiple choice: a template for each option
    options_column: str | None = None  # or the column that lists them ("choices.text")
    answer_column: str | None = None  # open answers: the column that holds them
    choices: int = 5  # open answers: how many answers of the task a query is scored among, its own included
    remap: Any = None  # other words for label words: {Negative: foo, Positive: bar}
    labels_noise: float = 0.0  # the share of demonstrations whose label is wrong; 1 with two labels: all are flipped
    train_split: str = "train"  # demonstrations come from here
    eval_split: str = "validation"  # and queries from here
    evaluate: str | None = None  # another task, or a task's yaml, whose evaluation split has the queries
    shots: int = 8  # how many demonstrations
    queries: int = 2000  # how many queries, at most
    query_seed: int = 1  # which queries
    permutation: int = 0  # the order of the demonstrations: 0 as drawn, or the n-th shuffled one
    on_leak: enums.OnLeak = enums.OnLeak.keep  # queries whose text is also a demonstration's; keep: with a note
    on_overflow: enums.OnOverflow = enums.OnOverflow.error  # what happens if they do not fit the model's window
    length_normalised: bool = True  # options of several tokens are scored by the mean of their tokens, not the sum
    rates: dict[str, float] = field(default_factory=lambda: {"gd": 1e-3, "lcgd": 1e-3})  # learning rates by objective


@dataclass
class FinetuneConfig:
    """A finetuning variant (conf/finetune)."""

    name: str = MISSING  # the variant, and its file in conf/finetune
    mechanism: str = "gradient_descent"  # a function of iclgd.mechanisms, or a dotted path to one of yours
    sees: enums.Sees = enums.Sees.demonstrations  # what it may look at
    objective: str = "gd"  # a function of iclgd.mechanisms.objectives, or a dotted path to one of yours
    lr: float = MISSING  # the learning rate
    layers: Any = "all"  # the blocks that are trained: all, a list such as [0,1,2], or a range such as 0-11
    trainable: Any = "attn_kv"  # q, k, v, o, attn_kv, attention, mlp, all, a regular expression, or a list of these
    epochs: int = 1  # how often each demonstration is seen
    loss_on: enums.LossOn = enums.LossOn.all_tokens  # all tokens of a demonstration, or its label's only
    batch: enums.Batch = enums.Batch.sequential  # a step for each demonstration, or one for all
    optimizer: enums.Optimizer = enums.Optimizer.sgd  # plain gradient descent, or Adam
    exit_layer: int | None = None  # short_circuit: the block whose output is unembedded
    norm_of: str | None = None  # scale each layer's step to the norm of this objective's gradient
    direction: enums.Direction = enums.Direction.own  # the gradient's own, or a random one as long as it
    data: enums.TrainingData = enums.TrainingData.demonstrations  # the demonstrations, or a control
    other_task: str | None = None  # the task, or a task's yaml, whose demonstrations `data: other_task` trains on
    rank: int | None = None  # train each matrix through a low-rank change of this rank (LoRA)
    patch: enums.PatchTokens = enums.PatchTokens.last  # patches: the tokens that they serve or are fitted to
    calibration: int = 80  # how many rows of the train split a mechanism that sees calibration rows is given
    ridge: float = 0.1  # fits of matrices: their penalty, as a multiple of the median squared length of the inputs
    fit: enums.Fit = enums.Fit.upwards  # shifts: all layers at once, or each with those below it shifted
    at: enums.Site = enums.Site.attention_output  # shifts: where they are added
    layer: int | None = None  # vectors: the block after which they act; null: chosen
    heads: int = 10  # function_vector: how many heads it sums over
    start: enums.Start = enums.Start.icl  # kv_prefix: where it starts
    options: dict[str, Any] = field(default_factory=dict)  # of a mechanism of your own
    label: str | None = None  # what tables and figures call it; null: its name
    role: enums.Role = enums.Role.variant  # what it is in a comparison
    order: int = 50  # where it stands among the others, lowest first
    against: dict[str, str] | None = None  # variants it is compared with, and what each difference tells
    color: str | None = None  # of its lines and marks; null: the next free one of the palette


@dataclass
class ReferenceConfig:
    """Who plays ICL's part in every score (conf/reference): ICL itself, or a variant, so that the truth is known."""

    name: str = "icl"  # icl, or a file of conf/finetune, whose settings hold
    lr: float | None = None  # its learning rate; null: that of its file
    lr_factor: float = 1.0  # a multiple of that rate
    permutation: int | None = None  # the order of its demonstrations; null: task.permutation
    draw: int = 0  # which sample of demonstrations it has: 0 the run's, k the k-th that shares no row with it
    label: str | None = None  # what tables and figures call it; null: its name


@dataclass
class ProtocolConfig:
    """Where the papers and their published code differ (conf/protocol)."""

    name: str = MISSING  # the reading of the papers
    record_at: enums.RecordAt = enums.RecordAt.last_prompt_token  # the token at which the record is taken
    random_update: enums.RandomUpdate = enums.RandomUpdate.gaussian  # what the random baseline is drawn from
    drop_from: enums.DropFrom = enums.DropFrom.both  # the settings that overlong demonstrations are dropped from
    exit: enums.Exit = enums.Exit.block_output  # where a layer-causal loss leaves the block
    step: enums.StepPer = enums.StepPer.demonstration  # what one gradient step is taken for
    layer0: enums.Layer0 = enums.Layer0.undefined  # scores where context cannot reach; published: of rounding errors


@dataclass
class ScoreConfig:
    """One score: a pure function and where its inputs come from (conf/metric)."""

    function: str = MISSING  # a function of iclgd.metrics, or a dotted path to one of yours
    inputs: dict[str, str] = field(default_factory=dict)  # argument: SETTING.FIELD, trace.FIELD or a fact
    params: dict[str, Any] = field(default_factory=dict)  # further arguments, as plain values
    axes: list[str] = field(default_factory=lambda: ["example", "layer"])  # of what the function returns
    label: str = MISSING  # what tables and figures call it
    limits: list[float] | None = None  # the least and the largest possible value, where there are such: axes of figures
    headline: bool = False  # whether short tables and the first figures show it
    better: enums.Better = enums.Better.higher  # which values mean "more alike"
    share: bool = False  # whether its mean is a share of queries, shown in percent
    digits: int = 3  # decimals that tables show (of a share, not of its percent)


@dataclass
class MetricConfig:
    """Which scores are taken."""

    scores: dict[str, ScoreConfig] = field(default_factory=dict)
    compare_with: str | None = None  # another finetuning variant (a file of conf/finetune), whose recording is `other`
    orders: int = 4  # further orders of the demonstrations, for scores that read icl_orders or ft_orders


@dataclass
class TrackingConfig:
    """Whether and how runs are logged (conf/tracking)."""

    name: enums.TrackerName = enums.TrackerName.none  # where results go besides the run's folder
    mode: enums.TrackingMode = enums.TrackingMode.offline  # later (wandb sync), when the run is done, or never
    project: str = "iclgd"  # the project in W&B
    entity: str | None = None  # its user or team; null: the default of the account
    dir: str | None = None  # where W&B's files go; null: the folder wandb inside each run's own


@dataclass
class RuntimeConfig:
    """The machine: none of this changes what is measured beyond rounding (conf/runtime)."""

    device: str = "auto"  # auto, cpu, cuda or cuda:1
    placement: enums.Placement = enums.Placement.single  # on one device, or dealt out by layers (auto)
    device_map: Any = None  # placement=auto: auto, balanced, balanced_low_0, sequential, or a device for each module
    max_memory: Any = None  # placement=auto: how much each device may hold, such as {0: 20GB, cpu: 100GB}
    offload_folder: str | None = None  # placement=auto: where weights lie that neither GPUs nor CPU memory hold
    dtype: enums.Dtype = enums.Dtype.auto  # auto: float32; model: that of its files
    matmul: enums.Matmul = enums.Matmul.highest  # float32 products on a GPU; tf32: inputs of 10 bits' precision
    threads: int | None = None  # CPU threads; null: PyTorch's choice, one for small models and joblib's jobs
    save_recordings: bool = False  # whether recordings.safetensors is kept
    figures: bool = False  # whether figures are drawn when the command ends
    batch_tokens: int | None = None  # tokens that share one forward pass; null: 512 on the CPU, 16384 on a GPU
    cache: enums.CacheMode = enums.CacheMode.auto  # whether runs share recordings
    cache_gb: float = 4.0  # the largest size of the shared recordings, in GB
    rerun: enums.Rerun = enums.Rerun.failed  # which runs of a repeated sweep run again; interrupted ones always do
    objective: str | None = None  # the score whose mean the command returns, for sweepers that optimise


@dataclass
class PathsConfig:
    """Folders."""

    data_dir: str | None = None  # local data: NAME/SPLIT.jsonl, .csv or .parquet
    outputs: str = "outputs"  # where runs and sweeps are written


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 0  # which demonstrations are drawn
    sweep_name: str | None = None  # the folder in outputs/ of a sweep written on the command line; null: multirun

    def __post_init__(self) -> None:
        """Refuse what no machine could run.

        Raises:
            ConfigError: naming the key and the remedy.
        """
        refuse_impossible(self)
        for key in MAPPINGS:  # YAML reads True and 1 as they are
            group, _, name = key.partition(".")
            if mapping := getattr(getattr(self, group), name):
                setattr(getattr(self, group), name, {str(word): value for word, value in mapping.items()})
        if self.model.weights is enums.Weights.pretrained:
            self.model.weights_seed = 0  # nothing is drawn, so that seeds of pretrained weights do not count as draws


def register_schema() -> None:
    """Make the schema known to Hydra, as `schema` in the defaults list."""
    if "schema.yaml" not in (store := ConfigStore.instance()).repo:
        store.store(name="schema", node=Config)


def typed(composed: DictConfig | Mapping[str, Any]) -> Config:
    """The typed form of a composed config.

    Raises:
        ConfigError: an unknown key, a missing or ill-typed value, or a setting that cannot be run.
    """
    raw = composed if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(raw))
    keys = [key for key in plain if key not in ("hydra", "sweeps")]
    _refuse_unknown_keys({key: plain[key] for key in keys}, Config)
    with naming_keys():
        if OmegaConf.get_type(raw) is not Config:  # else Hydra has merged it into the schema
            own = OmegaConf.masked_copy(raw, keys)
            raw = typing.cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), own))
        values = {each.name: raw[each.name] for each in dataclasses.fields(Config)}
        groups = {key: OmegaConf.to_object(value) for key, value in values.items() if OmegaConf.is_config(value)}
        return Config(**{**values, **groups})


@contextmanager
def naming_keys() -> Iterator[None]:
    """OmegaConf's errors inside become `ConfigError`s that name the key."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is not set: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(key + str(error).splitlines()[0]) from error


def _refuse_unknown_keys(values: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Hydra lets `+typo=1` into a schema."""
    kinds = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in kinds:
            inside = [f"{group}.{key}" for group, kind in kinds.items() if key in getattr(kind, "__annotations__", ())]
            near = inside or [f"{prefix}{name}" for name in difflib.get_close_matches(key, kinds, n=1)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"the keys here are {', '.join(sorted(kinds))}"
            raise ConfigError(f"unknown key {prefix}{key}: {hint}")
        if dataclasses.is_dataclass(kinds[key]) and isinstance(value, Mapping):
            _refuse_unknown_keys(value, typing.cast(type, kinds[key]), f"{prefix}{key}.")
        elif kinds[key] == dict[str, ScoreConfig] and isinstance(value, Mapping):
            for name, score in value.items():
                _refuse_unknown_keys(score, ScoreConfig, f"{prefix}{key}.{name}.")


def as_dict(config: Config) -> dict[str, Any]:
    """Plain values of what a run is, ready for YAML or JSON."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in pairs}

    values = dataclasses.asdict(config, dict_factory=plain)
    del values["sweep_name"]
    return values
