"""Tasks of lm-evaluation-harness: put as it puts them, scored as it scores them, refused where one query cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from configs import config as config_of
from harness_cases import write_harness_tasks
from iclgd.config import Config, ConfigError
from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import assemble, load
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.tasks.draw import Drawn, draw
from iclgd.tasks.encoding import encode
from iclgd.tasks.harness import _loaded, _shipped_yaml
from tiny import tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run_of(file: Path, *more: str) -> Config:
    return config_of("task=lm_eval", f"task.lm_eval={file}", "model.bos=null", *more)


def ours(model: LanguageModel, drawn: Drawn, config: Config, shots: bool) -> tuple[list[list[float]], float]:
    """Summed log-probabilities of each query's options, and the accuracy."""
    prompts = encode(drawn, config, model.tokenizer, model.window)
    questions = [Question(query.token_ids, prompts.options(query)) for query in prompts.queries]
    context = prompts.context() if shots else prompts.bos
    scores = record(model, questions, context, RecordPlan(mean_label=config.task.length_normalised)).label_scores
    sums = [row[: len(question.options)].tolist() for row, question in zip(scores, questions, strict=True)]
    right = [row.index(max(row)) == query.label for row, query in zip(sums, prompts.queries, strict=True)]
    return sums, sum(right) / len(right)


def theirs(model: LanguageModel, drawn: Drawn, file: Path, shots: int) -> tuple[dict[int, list[float]], float]:
    """The same by the harness's own scorer, by row, with the demonstrations that were drawn here."""
    from lm_eval.api.samplers import FirstNSampler
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task = _loaded(str(file))
    rows = [int(re.search(r"row (\d+)$", each.where)[1]) for each in drawn.demonstrations]
    docs = list(task.fewshot_docs())
    task.sampler = FirstNSampler([docs[row] for row in rows])
    scorer = HFLM(pretrained=model.network, tokenizer=model.tokenizer, batch_size=8, max_length=model.window)
    manager = TaskManager(include_defaults=False)  # else it reads thousands of files that are not asked for
    result: Any = simple_evaluate(
        scorer, tasks=[task], num_fewshot=shots, bootstrap_iters=0, log_samples=True, task_manager=manager
    )
    samples = {s["doc_id"]: [float(r[0][0]) for r in s["resps"]] for s in result["samples"][file.stem]}
    return samples, result["results"][file.stem]["acc,none"]


def compared(model: LanguageModel, file: Path, shots: int) -> tuple[float, float, float]:
    """Our accuracy, the harness's, and the largest difference between log-likelihoods."""
    config = run_of(file, f"task.shots={max(shots, 1)}")
    drawn = draw(config)
    sums, accuracy = ours(model, drawn, config, shots > 0)
    by_row, other = theirs(model, drawn, file, shots)
    rows = [int(re.search(r"row (\d+)$", each.where)[1]) for each in drawn.queries]
    apart = max(
        abs(a - b) for row, mine in zip(rows, sums, strict=True) for a, b in zip(mine, by_row[row], strict=True)
    )
    return accuracy, other, apart


@pytest.fixture(scope="module")
def tiny_model() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.4,
    )  # fmt: skip
    return assemble(LlamaForCausalLM(config).eval(), tokenizer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "shots"), [("claims", 0), ("claims", 3), ("endings", 3)])
def test_log_likelihoods_and_accuracies_are_the_harness_own(name: str, shots: int, tiny_model, tmp_path: Path):
    accuracy, other, apart = compared(tiny_model, write_harness_tasks(tmp_path)[name], shots)
    assert accuracy == pytest.approx(other) and apart < 2e-3


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["claims", "endings"])
def test_accuracies_of_the_default_model_are_the_harness_own(name: str, tmp_path: Path):
    file = write_harness_tasks(tmp_path)[name]
    config = run_of(file)
    model = load(config.model, config.runtime)
    for shots in (0, 4):
        accuracy, other, apart = compared(model, file, shots)
        assert accuracy == pytest.approx(other) and apart < 1e-2


def test_what_is_drawn_is_the_tasks_own_wording(tmp_path: Path):
    files = write_harness_tasks(tmp_path)
    claims, endings = (draw(run_of(files[name], "task.shots=2", "seed=1")) for name in ("claims", "endings"))
    assert claims.label_words == ("True", "False", "Neither") and endings.label_words == ()
    assert claims.description == "Decide what follows from each passage.\n\n"
    assert (claims.separator, endings.separator) == ("\n\n", "\n\n\n")
    assert all(e.text.endswith("\nAnswer:") and e.delimiter == " " for e in claims.queries)
    assert len(claims.queries) == 8 and len(endings.demonstrations) == 2
    assert run_of(files["claims"]).task.name == "claims"
    assert draw(run_of(files["claims"], "task.separator=X")).separator == "X"


def test_one_split_for_both_never_asks_about_a_demonstration(tmp_path: Path):
    file = write_harness_tasks(tmp_path)["endings"]
    content = yaml.safe_load(file.read_text())
    del content["training_split"]
    file.write_text(yaml.safe_dump(content))
    drawn = draw(run_of(file, "task.shots=4"))
    assert len(drawn.queries) == 4 and not {e.where for e in drawn.queries} & {e.where for e in drawn.demonstrations}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_type": "loglikelihood"}, "its output_type is loglikelihood, not multiple_choice"),
        ({"doc_to_text": "{{gold}}"}, "each of its choices has a text of its own"),
        ({"doc_to_target": "{{[gold]}}"}, "a row may have several right choices"),
        ({"gen_prefix": "So"}, "gen_prefix"),
        ({"group": "several", "task": ["endings"]}, "is a group of tasks|cannot be loaded"),
        ({"description": "{{ctx}}"}, "its description differs"),
        ({"doc_to_target": "{{7 if 'dog' in ctx else gold}}"}, r"row \d+: .* target 7 do not fit"),
        ({"doc_to_choice": "{{ends[:1] if 'dog' in ctx else ends}}"}, "do not fit"),
        ({"dataset_kwargs": {"data_files": {"train": "gone.jsonl"}}}, "cannot be loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_kinds_that_cannot_be_measured_are_refused(change: dict, said: str, tmp_path: Path):
    file = write_harness_tasks(tmp_path)["endings"]
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=said):
        draw(run_of(file, "task.shots=8"))


def test_names_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"task\.lm_eval=.*gone\.yaml cannot be loaded .*not a registered task"):
        draw(run_of(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match=r"task=lm_eval needs task\.lm_eval=NAME"):
        config_of("task=lm_eval")


@pytest.mark.parametrize(("name", "file"), [("cb", "super_glue/cb/default.yaml"), ("sst2", "glue/sst2/default.yaml")])
def test_the_harness_file_of_a_task_is_known_by_its_content(name: str, file: str):
    assert str(_shipped_yaml(name)).endswith(file)
