"""The values of keys that choose among a few. The comment of the key in `schema.py` says what each is for."""

from enum import StrEnum

ModelSource = StrEnum("ModelSource", "hub package toy memory")
Weights = StrEnum("Weights", "pretrained random keep_embeddings")
Chat = StrEnum("Chat", "none template")

TaskSource = StrEnum("TaskSource", "bundled hub lm_eval")
OnLeak = StrEnum("OnLeak", "error drop keep")
OnOverflow = StrEnum("OnOverflow", "error drop")

# The mechanisms and objectives of this package; a dotted path names a function of the user's.
Mechanism = StrEnum(
    "Mechanism",
    "none gradient_descent exact_patch static_patch mean_shift linear_shift task_vector function_vector "
    "one_shot_mean one_shot_sum activation_match priming context_distillation kv_prefix",
)
Objective = StrEnum("Objective", "gd lcgd short_circuit")

# What a mechanism may look at to act like ICL. Calibration rows are of the train split, neither demonstrations nor
# measured, and their labels are not used; what sees the measured queries is a ceiling, not a method.
Sees = StrEnum("Sees", "nothing demonstrations one_at_a_time calibration queries")
Fit = StrEnum("Fit", "parallel upwards")  # all layers beside untouched ones, or each with those below it shifted
Dtype = StrEnum("Dtype", "auto model float32 float64 bfloat16 float16")
Site = StrEnum("Site", "attention_output block_output")  # where activations are read or changed
Start = StrEnum("Start", "icl noise")  # what a trained prefix starts at
Trainable = StrEnum("Trainable", "q k v o attn_kv attention mlp all")
Optimizer = StrEnum("Optimizer", "sgd adam")
LossOn = StrEnum("LossOn", "all_tokens label")
Batch = StrEnum("Batch", "sequential full")
Direction = StrEnum("Direction", "own random")
TrainingData = StrEnum("TrainingData", "demonstrations label_shuffled other_task")
PatchTokens = StrEnum("PatchTokens", "last query")

# A floor cannot be like ICL, a control lacks one thing that learning from the demonstrations needs, a rival explains a
# difference otherwise, a mechanism is another process that may stand for ICL, an anchor is ICL by construction, and a
# ceiling is as like ICL as training can make it.
Role = StrEnum("Role", "floor control variant rival mechanism anchor ceiling")

RecordAt = StrEnum("RecordAt", "last_prompt_token first_label_token")
RandomUpdate = StrEnum("RandomUpdate", "gaussian uniform")
DropFrom = StrEnum("DropFrom", "both icl")
Exit = StrEnum("Exit", "block_output attention_output")
StepPer = StrEnum("StepPer", "demonstration token")
Layer0 = StrEnum("Layer0", "undefined published")

Better = StrEnum("Better", "higher lower neither")

TrackerName = StrEnum("TrackerName", "none wandb")
TrackingMode = StrEnum("TrackingMode", "offline online disabled")

Placement = StrEnum("Placement", "single auto")
Matmul = StrEnum("Matmul", "highest tf32")
CacheMode = StrEnum("CacheMode", "auto off")
Rerun = StrEnum("Rerun", "never failed all")
