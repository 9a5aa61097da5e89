"""The words that a setting may take: one enumeration for each key that chooses among a few."""

from enum import StrEnum


class ModelSource(StrEnum):
    """Where a model comes from: a hub id or folder, a package's GGUF file, this package, or iclgd.run(model=...)."""

    hub = "hub"
    package = "package"
    toy = "toy"
    memory = "memory"


class Weights(StrEnum):
    """Trained weights, or the papers' two untrained baselines."""

    pretrained = "pretrained"
    random = "random"
    keep_embeddings = "keep_embeddings"


class TaskSource(StrEnum):
    """Where rows come from: shipped with the package, the hub or a local copy of it, or lm-evaluation-harness."""

    bundled = "bundled"
    hub = "hub"
    lm_eval = "lm_eval"


class Chat(StrEnum):
    """Whether a prompt is plain text, or turns of a conversation in the tokenizer's chat template."""

    none = "none"
    template = "template"


class OnOverflow(StrEnum):
    """What happens when the context is longer than the model's window."""

    error = "error"
    drop = "drop"


class Procedure(StrEnum):
    """How the FT setting comes about."""

    train = "train"
    none = "none"
    replay = "replay"
    activation_match = "activation_match"
    exact_patch = "exact_patch"
    static_patch = "static_patch"


class PatchTokens(StrEnum):
    """Which tokens a patch of the feed-forward weights serves: the query's last, or every token of the query."""

    last = "last"
    query = "query"


class Trainable(StrEnum):
    """Parameters of a block: queries, keys, values, attention's output, keys and values, ..., all of it."""

    q = "q"
    k = "k"
    v = "v"
    o = "o"
    attn_kv = "attn_kv"
    attention = "attention"
    mlp = "mlp"
    all = "all"


class LossOn(StrEnum):
    """Which tokens of a demonstration have a loss."""

    all_tokens = "all_tokens"
    label = "label"


class Batch(StrEnum):
    """One step for each demonstration, or one for all of them."""

    sequential = "sequential"
    full = "full"


class Direction(StrEnum):
    """The gradient's own direction, or a random one of the same norm in each layer."""

    own = "own"
    random = "random"


class TrainingData(StrEnum):
    """What finetuning sees: the demonstrations, or a control."""

    demonstrations = "demonstrations"
    label_shuffled = "label_shuffled"
    other_task = "other_task"


class RecordAt(StrEnum):
    """The token at which the record is taken."""

    last_prompt_token = "last_prompt_token"
    first_label_token = "first_label_token"


class RandomUpdate(StrEnum):
    """What the random baseline's update is drawn from."""

    gaussian = "gaussian"
    uniform = "uniform"


class DropFrom(StrEnum):
    """From which settings an overlong demonstration is dropped."""

    both = "both"
    icl = "icl"


class Exit(StrEnum):
    """Where a layer-causal loss leaves the block."""

    block_output = "block_output"
    attention_output = "attention_output"


class StepPer(StrEnum):
    """What one gradient step is taken for."""

    demonstration = "demonstration"
    token = "token"


class TrackerName(StrEnum):
    """Where a run's results go besides its folder."""

    none = "none"
    wandb = "wandb"


class TrackingMode(StrEnum):
    """When W&B gets a run: later (`wandb sync`), as it goes, or never."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


class Rerun(StrEnum):
    """Which runs of a sweep that is started again are run again; those cut off always are."""

    never = "never"
    failed = "failed"
    all = "all"


class CacheMode(StrEnum):
    """Whether recordings are shared between runs."""

    auto = "auto"
    off = "off"


class Matmul(StrEnum):
    """How float32 products are computed on a GPU: `highest` in float32, `tf32` with inputs of 10 bits' precision."""

    highest = "highest"
    tf32 = "tf32"


class Layer0(StrEnum):
    """Scores of a layer whose attention cannot depend on the context: undefined, or the cosine of rounding errors."""

    undefined = "undefined"
    published = "published"


class Placement(StrEnum):
    """How a model lies on devices: on one, dealt out layer by layer by accelerate, or each matrix over processes."""

    single = "single"
    auto = "auto"
    tensor_parallel = "tensor_parallel"


class Padding(StrEnum):
    """How sequences of unequal length share a batch; `none` batches equal lengths only."""

    none = "none"
    right = "right"
    left = "left"


class Role(StrEnum):
    """What a finetuning variant is in a comparison.

    A floor cannot be like ICL, a control lacks one thing that learning from the demonstrations needs, a rival explains
    a difference otherwise, an anchor is ICL by construction, and a ceiling is as like ICL as training can make it.
    """

    floor = "floor"
    control = "control"
    variant = "variant"
    rival = "rival"
    anchor = "anchor"
    ceiling = "ceiling"


class Better(StrEnum):
    """Which values of a score mean that two things are more alike."""

    higher = "higher"
    lower = "lower"  # pyright: ignore[reportAssignmentType]
    neither = "neither"
