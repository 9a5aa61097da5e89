"""Whatever is edited in a run's folder is found, even where its digest was edited too."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import verify_cases
from configs import config
from iclgd.verify.check import verify
from verify_cases import SMALL, edited_json, edited_scores, edited_table, sign

whole = verify_cases.whole


def one_number(frame):
    place = frame.index[(frame.score == "sim_aou") & (frame.layer == 2)][0]
    frame.loc[place, "value"] += 0.01
    return frame


def another_rate(folder):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["finetune"]["lr"] = 0.06
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    sign(folder, "config.yaml")


def another_rate_everywhere(folder):
    from iclgd.config import as_dict
    from iclgd.runs.inputs import run_id

    another_rate(folder)
    name = run_id(as_dict(config(*SMALL, "finetune=lcgd", "runtime.save_recordings=true", "finetune.lr=0.06")))
    edited_json("fingerprint.json", lambda content: content.update(settings=name))(folder)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "run_id": name}))


def recording(folder):
    tensors = load_file(folder / "recordings.safetensors")
    tensors["icl.attention_output"][1, 2] *= 1.1
    save_file(tensors, folder / "recordings.safetensors")
    sign(folder, "recordings.safetensors")


def no_recording(folder):
    tensors = load_file(folder / "recordings.safetensors")
    del tensors["icl.attention_output"]
    save_file(tensors, folder / "recordings.safetensors")
    sign(folder, "recordings.safetensors")


def unsigned(folder):
    frame = pd.read_parquet(folder / "losses.parquet")
    frame.assign(loss=frame.loss + 1e-6).to_parquet(folder / "losses.parquet", index=False)


def unlisted(folder):
    status = json.loads((folder / "status.json").read_text())
    del status["files"]["prompts.json"]
    (folder / "status.json").write_text(json.dumps(status))


def label(content):
    content["queries"][0]["label"] = 1 - content["queries"][0]["label"]


TAMPERED = {
    "one number": (edited_scores(one_number), "score sim_aou is off by 0.01"),
    "a number undefined": (
        edited_scores(lambda f: f.assign(value=f.value.where((f.score != "sim_am") | (f.layer > 0)))),
        "score sim_am is off by inf",
    ),
    "rows gone": (edited_scores(lambda f: f[(f.score != "accuracy/icl") | (f.example > 0)]), "accuracy/icl is off"),
    "a mean": (
        edited_json("scores.json", lambda c: c["sim_aou"].update(mean=c["sim_aou"]["mean"] + 1e-3)),
        "scores.json has another sim_aou",
    ),
    "a text": (edited_json("prompts.json", lambda c: c["queries"][1].update(text="heron ->")), "other queries"),
    "a token": (edited_json("prompts.json", lambda c: c["demonstrations"][0]["token_ids"].reverse()), "demonstrations"),
    "a label": (edited_json("prompts.json", label), "other queries"),
    "the rate": (another_rate, "config.yaml is of run"),
    "the rate, everywhere": (another_rate_everywhere, "score gradient_norm is off"),
    "a recording": (recording, "recordings.safetensors has another icl.attention_output"),
    "what it was made of": (
        edited_json("fingerprint.json", lambda c: c.update({"model config.json": "0" * 64})),
        "changed since: the model's config.json",
    ),
    "a file without its digest": (unsigned, "losses.parquet is not what the run wrote"),
    "a file gone": (lambda folder: (folder / "losses.parquet").unlink(), "losses.parquet is missing"),
    "a score gone": (
        edited_scores(lambda f: f[f.score != "sim_am_zsl"]),
        "score sim_am_zsl is not in all of config.yaml, scores.json and scores.parquet",
    ),
    "a recording gone": (no_recording, "recordings.safetensors has no icl.attention_output"),
    "a file struck from the list": (unlisted, "prompts.json is not among the files"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_whatever_is_edited_is_found(tmp_path, whole, name):
    edit, found = TAMPERED[name]
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    edit(folder)
    problems = verify(folder, None).problems
    assert any(found in problem for problem in problems), problems


def a_query_more(frame):
    return pd.concat([frame, frame[(frame.score == "sim_aou") & (frame.example == 0)].assign(example=3, value=0.99)])


def other_recordings(folder):
    tensors = load_file(folder / "recordings.safetensors")
    tensors["icl.attention_output"][1, 0] *= 1.1  # which is small beside what later layers add
    save_file({**tensors, "ft.invented": torch.zeros(3)}, folder / "recordings.safetensors")
    sign(folder, "recordings.safetensors")


def planted(name, write):
    def edit(folder):
        write(folder / name)
        sign(folder, name)

    return edit


def told_otherwise(content):
    content["sim_aou"].update(ci=[0.1, 0.2])
    content["sim_aou_norm"].update(n=1000)
    content["sim_am"]["layers"].pop()
    content["accuracy/ft"].update(undefined=1)
    content["invented"] = content.pop("sim_am_zsl")


SHOWN = {
    "scores.json has another sim_aou than": edited_json("scores.json", told_otherwise),
    "scores.json has another sim_aou_norm than": None,
    "scores.json has another sim_am than": None,
    "scores.json has another accuracy/ft than": None,
    "score invented is not in all of": None,
    "score sim_am_zsl is not in all of": None,
    "scores.parquet has other rows of sim_aou": edited_scores(a_query_more),
    "losses.parquet is not what is computed again: loss/0": edited_table("losses.parquet", loss=lambda f: f.loss * 0.9),
    "gradient_norms.parquet is not what": edited_table("gradient_norms.parquet", value=lambda f: f.value * 1.1),
    "weight_updates.parquet is not what": edited_table("weight_updates.parquet", norm=lambda f: f.norm * 1.1),
    "status.json is not what is computed again: unst": edited_json("status.json", lambda s: s.update(unstable=True)),
    "trajectory.parquet is not of such a run": planted("trajectory.parquet", pd.DataFrame({"a": [1]}).to_parquet),
    "jitter.json is not of such a run": planted("jitter.json", lambda path: path.write_text("{}")),
    "another icl.attention_output": other_recordings,
    "has a further ft.invented": None,
    "environment.json has another dtype, version of torch": edited_json(
        "environment.json", lambda c: c.update(dtype="float64", packages={"torch": "1.0"})
    ),
}


def test_whatever_a_report_can_show_is_checked(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for edit in filter(None, SHOWN.values()):
        edit(folder)
    problems = verify(folder, None).problems
    assert [found for found in SHOWN if not any(found in problem for problem in problems)] == [], problems


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_no_number_like_another(tmp_path, whole, value):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    frame = pd.read_parquet(folder / "losses.parquet")
    frame.loc[1, "loss"] = value
    frame.to_parquet(folder / "losses.parquet", index=False)
    sign(folder, "losses.parquet")
    assert verify(folder, 1).problems == ["losses.parquet is not what is computed again: loss/1"]


def test_files_of_another_shape_are_a_problem_and_no_traceback(tmp_path, whole):
    folder = tmp_path / "rows"
    shutil.copytree(whole, folder)
    tensors = load_file(folder / "recordings.safetensors")
    tensors["zsl.attention_output"] = tensors["zsl.attention_output"][:1].clone()
    save_file(tensors, folder / "recordings.safetensors")
    sign(folder, "recordings.safetensors")
    assert verify(folder, 1).problems == ["recordings.safetensors has 1 queries of zsl.attention_output, not 3"]
    folder = tmp_path / "text"
    shutil.copytree(whole, folder)
    edited_scores(lambda frame: frame.assign(example=frame.example.map(str)))(folder)
    (problem,) = verify(folder, 1).problems
    assert problem.startswith("it cannot be checked: ")
