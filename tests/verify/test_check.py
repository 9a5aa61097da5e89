"""`iclgd-verify` holds for runs as they were made, wherever they were made, and says what it could not check."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import iclgd
import verify_cases
from configs import config
from iclgd.verify.__main__ import cli
from iclgd.verify.check import TOLERANCE, _line, verify
from iclgd.verify.naive import unknown_to_it
from iclgd.verify.numbers import Again, sampled
from tiny import tiny_tokenizer
from tiny_models import tiny_network
from verify_cases import SMALL, assert_holds, edited_json, edited_scores, edited_table, made, sign

whole = verify_cases.whole


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune=gd", "finetune.layers=[1,3]", "finetune.loss_on=label"),
        ("finetune=gd", "finetune.objective=short_circuit", "finetune.exit_layer=1", "finetune.batch=full"),
        ("finetune=lcgd", "protocol.exit=attention_output", "finetune.trainable=attention", "finetune.epochs=2"),
        ("finetune=replay", "metric=[sim_aou,accuracy]", "finetune.lr=1.0"),
        ("finetune=lcgd", "protocol=dai2023", "task.labels=[A B,B A A]"),
    ],
    ids=["gd", "short circuit", "attention output", "replay", "labels of several tokens"],
)
def test_a_run_as_it_was_made_holds(tmp_path, overrides):
    assert_holds(verify(made(tmp_path / "run", *overrides), None))


def test_large_scores_are_not_taken_for_a_mask(tmp_path):
    assert verify(made(tmp_path / "run", "finetune=gd", "finetune.lr=1e38", "metric=[sim_am]"), None).problems == []


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "gpt_neo", "xglm"])
def test_fused_projections_and_masked_queries_are_known_to_the_naive_way(tmp_path, family):
    tiny_network(family, vocab_size=384).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = ("model=hf", f"model.name={tmp_path / 'model'}", "model.bos='<|endoftext|>'", "model.separator='</s>'")
    assert_holds(verify(made(tmp_path / "run", *model, "finetune=gd"), None))


def test_what_the_naive_way_does_not_know_is_said(tmp_path):
    folder = made(
        tmp_path / "run", "finetune=adam", "metric=[sim_aou,update_cka,sim_block_output_centred]", "task.queries=4"
    )
    verdict = verify(folder, 2)
    assert_holds(verdict, naive=False)
    told = " ".join(verdict.notes)
    assert "finetune.optimizer=adam" in told
    assert "update_cka" in told and "sim_block_output_centred" in told  # whose mean is over all queries
    assert unknown_to_it(config("finetune=low_rank")) == [
        "finetune.rank=" + str(config("finetune=low_rank").finetune.rank)
    ]


def test_who_plays_icls_part_decides_what_can_be_asked_again():
    gd = ("finetune=gd", "model=toy", "task=toy")
    assert unknown_to_it(config(*gd, "reference.label=x")) == []
    for reference in ("reference.draw=1", "reference.permutation=2"):  # ICL, with demonstrations of its own
        assert unknown_to_it(config(*gd, reference)) == ["reference=icl"]
    assert unknown_to_it(config(*gd, "reference=lcgd")) == ["reference=lcgd"]
    assert len(sampled(config(*gd, "reference=lcgd"), 8, 3)) == 3
    assert len(sampled(config(*gd, "reference=activation_match"), 8, 3)) == 8  # it is trained on the queries


def test_what_is_measured_on_the_way_and_in_repeats_is_checked(tmp_path):
    scores = "metric=[sim_am_delta_by_head,sim_aou,accuracy]"
    folder = made(tmp_path / "run", "finetune=gd", "metric.every=1", "runtime.jitter=1", scores)
    assert verify(folder, None).problems == []
    edited_json("scores.json", lambda c: c["sim_am_delta_by_head"]["heads"][2].reverse())(folder)
    edited_json("jitter.json", lambda c: c["sim_aou"].update(moved=True))(folder)
    edited_table("trajectory.parquet", mean=lambda f: f["mean"] + 0.01)(folder)
    few, every = verify(folder, 1), verify(folder, None)
    assert few.problems == [] and "--all): flipped means and heads in scores.json, trajectory" in " ".join(few.notes)
    assert [problem.partition(" is ")[0] for problem in every.problems] == [
        "jitter.json",
        "scores.json",
        "trajectory.parquet",
    ]


def test_what_a_run_calls_its_variant_and_scores_is_told(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["finetune"]["label"], content["metric"]["scores"]["sim_aou"]["better"] = "GD", "lower"
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    sign(folder, "config.yaml")
    told = [note.partition(": ")[2] for note in verify(folder, 1).notes if note.startswith("set in this run: ")]
    assert told == [
        "metric.scores.sim_aou.better=lower (conf here has higher)",
        "finetune.label=GD (conf here has LCGD)",
    ]


def test_nobody_knows_beforehand_which_queries_are_asked_again():
    run = config("finetune=gd", "model=toy", "task=toy")
    assert len({tuple(sampled(run, 100, 3)) for _ in range(20)}) > 1


def test_the_command_says_it_and_its_exit_code_too(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "sweep" / "a")
    assert cli([str(tmp_path / "sweep"), "--queries", "2"]) == 0
    told = capsys.readouterr().out
    assert "a: holds" in told and "sim_am_delta" in told and "rounding explains" in told
    shutil.copytree(whole, tmp_path / "sweep" / "b")
    (tmp_path / "sweep" / "b" / "prompts.json").write_text("{}")
    assert cli([str(tmp_path / "sweep"), "--queries", "1", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [run["holds"] for run in content["runs"]] == [True, False] and content["holds"] is False
    assert {line["score"] for line in content["runs"][0]["scores"]} >= {"sim_aou", "accuracy/icl"}


def test_versions_and_code_that_differ_are_said_and_do_no_harm(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    edited_json("fingerprint.json", lambda c: c.update({"version of torch": "1.0", "code iclgd/records.py": "0"}))(
        folder
    )
    edited_json("environment.json", lambda c: c["packages"].update(torch="1.0+cpu"))(folder)
    verdict = verify(folder, 1)
    assert verdict.problems == [] and verdict.queries == 1
    assert verify(tmp_path / "nothing").problems == ["it is no run, not done"]
    assert any("the version of torch (1.0, now" in note for note in verdict.notes)
    assert any("iclgd/records.py" in note for note in verdict.notes)


@pytest.mark.parametrize("same", [True, False])
def test_amplified_rounding_excuses_another_machine_and_the_naive_way_but_not_this_machine(same):
    def frame(*values):
        return pd.DataFrame({"score": "sim_aou", "example": [0, 1], "layer": 0, "value": values})

    again = Again(
        sample=[0, 1], own=frame(0.5, 0.5), naive=frame(0.53, 0.5), unknown=[], left_out=[], recordings=(),
        count=2, whole=True, content={}, moves={}, batched=frame(1e-6, 1e-6), otherwise=frame(0.04, 0.04),
    )  # fmt: skip
    assert _line("sim_aou", frame(0.5, 0.5), again, same).holds
    edited = _line("sim_aou", frame(0.51, 0.5), again, same)
    assert edited.holds is not same
    assert (edited.own, edited.naive, edited.explained) == pytest.approx((0.01, 0.02, 0.02))
    assert edited.rest == pytest.approx(0.009999 if same else 0)
    assert not _line("sim_aou", frame(0.58, 0.5), again, same).holds


def test_a_run_of_another_processor_is_told_and_judged_so(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert not any("processor" in note for note in verify(folder, None).notes)
    edited_json("environment.json", lambda content: content.update(processor="Z80"))(folder)
    verdict = verify(folder, None)
    assert verdict.problems == []
    assert any(note.startswith("differs here: the processor (Z80, now ") for note in verdict.notes)
    for name, column in (("losses", "loss"), ("gradient_norms", "value")):
        edited = tmp_path / name
        shutil.copytree(folder, edited)
        frame = pd.read_parquet(edited / f"{name}.parquet")
        frame.loc[0, column] *= 1.05
        frame.to_parquet(edited / f"{name}.parquet", index=False)
        sign(edited, f"{name}.parquet")
        assert [problem.partition(":")[0] for problem in verify(edited, 1).problems] == [
            f"{name}.parquet is not what is computed again"
        ]


def test_a_run_is_checked_with_the_threads_that_made_it(tmp_path, whole):
    folder, before = tmp_path / "run", torch.get_num_threads()
    shutil.copytree(whole, folder)
    edited_json("environment.json", lambda content: content.update(threads=before + 1))(folder)
    verdict = verify(folder, 1)
    assert verdict.problems == [] and not any("differs here" in note for note in verdict.notes)
    assert torch.get_num_threads() == before


def test_in_half_precision_rounding_explains_more(tmp_path):
    folder = made(tmp_path / "run", "finetune=lcgd", "runtime.dtype=bfloat16")
    verdict = verify(folder, None)
    assert verdict.problems == []
    assert max(line.naive for line in verdict.scores if line.naive is not None) > TOLERANCE
    assert torch.get_default_dtype() is torch.float32
    edited_scores(lambda frame: frame.assign(value=frame.value.where(frame.score != "sim_am", frame.value - 0.1)))(
        folder
    )
    assert any(problem.startswith("score sim_am is off") for problem in verify(folder, None).problems)


def test_data_that_moved_are_taken_from_where_this_machine_has_them(tmp_path, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / "data" / "toy").mkdir(parents=True, exist_ok=True)
        shutil.copy(
            Path(iclgd.__file__).parent / "tasks" / "bundled" / "toy" / f"{split}.jsonl", tmp_path / "data" / "toy"
        )
    folder = made(tmp_path / "run", "finetune=gd", "task.source=hub", f"paths.data_dir={tmp_path / 'data'}")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert "it cannot be computed again: task toy names no data set" in verify(folder, 1).problems[0]
    monkeypatch.setenv("ICLGD_DATA_DIR", str(tmp_path / "elsewhere"))
    assert verify(folder, 1).problems == []


def test_what_is_no_run_or_no_number_is_refused_and_the_reasons_are_printed(tmp_path, whole, capsys):
    for arguments, said in (
        ([str(whole), "--queries", "0"], "--queries needs 1 or more"),
        ([str(tmp_path)], "holds no run: name a run's folder or a sweep's"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli(arguments)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    shutil.copytree(whole, tmp_path / "run")
    edited_json("status.json", lambda status: status.update(state="failed"))(tmp_path / "run")
    assert cli([str(tmp_path / "run")]) == 1
    told = capsys.readouterr().out
    assert "run: DOES NOT HOLD\ndoes not hold: it is failed, not done\n" in told and "own way" not in told


def test_what_a_run_chose_beyond_the_naive_way_is_named():
    placed = config(*SMALL, "protocol.step=token", "runtime.placement=auto", "runtime.dtype=float32_from_bfloat16")
    assert unknown_to_it(placed) == [
        "protocol.step=token", "runtime.placement=auto", "runtime.dtype=float32_from_bfloat16",
    ]  # fmt: skip
