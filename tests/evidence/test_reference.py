"""Who plays ICL's part: planted truths, whose scores are known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import iclgd
import toy_runs
from configs import config
from iclgd.config import ConfigError, as_dict
from iclgd.config.variants import reference_config
from iclgd.evidence import learned
from iclgd.evidence.gather import gather
from iclgd.evidence.output import unfit_reference
from iclgd.evidence.preparation import Session
from iclgd.evidence.reference import relabelled
from iclgd.metrics import measure
from iclgd.runs.inputs import run_id
from iclgd.tasks.notes import as_json

ALL = (
    "metric=[sim_aou,sim_aou_norm,sim_am,sim_am_delta,sim_block_output,sim_block_output_centred,update_norm_ratio,"
    "update_cka,accuracy,total_variation,attention_kendall,order_spread,sim_aou_reordered]"
)
FEW = ("metric=[sim_aou,sim_am,accuracy]", "task.queries=4")
evidence, scores = partial(toy_runs.evidence, *FEW), partial(toy_runs.scores, *FEW)
laboratory = partial(toy_runs.laboratory, *FEW)


@pytest.mark.parametrize("name", ["gd", "lcgd", "random_direction", "label_shuffled", "other_task", "static_patch"])
def test_a_truth_made_as_the_candidate_scores_one(name):
    found = scores(ALL, f"finetune={name}", f"reference={name}")
    for score in ("sim_aou", "sim_aou_norm", "sim_am", "sim_am_delta", "sim_block_output", "sim_block_output_centred"):
        values = found[score]
        if name == "static_patch" and score != "sim_am" and "block" not in score:
            assert values[:, 0].isnan().all()  # nothing below the first attention changes
            values = values[:, 1:]
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-6, rtol=0)
    assert (found["update_cka"].nan_to_num(nan=1) - 1).abs().max() < 1e-6
    assert (found["attention_kendall"].nan_to_num(nan=1) - 1).abs().max() < 1e-6
    assert found["total_variation"].abs().max() < 1e-6
    assert torch.equal(found["order_spread/icl"], found["order_spread/ft"])
    assert torch.equal(found["accuracy/icl"], found["accuracy/ft"])


@pytest.mark.parametrize(
    "changed",
    [
        *("metric=[sim_aou,context_mass]", "protocol.record_at=first_label_token", "task.length_normalised=false"),
        *("task.queries=3", "runtime.matmul=tf32"),
    ],
)
def test_what_a_recording_depends_on_is_in_its_key(changed):
    assert laboratory().recording_key("icl", ()) != laboratory(changed).recording_key("icl", ())


def test_what_a_variant_reads_is_in_its_key():
    lab = laboratory()
    given = lab.prompts
    changes = [{"training": given.demonstrations[:1]}, {"calibration": given.queries[:1]}, {"in_context": (0,)}]
    keys = {learned.learning_key(lab, "ft", replace(given, **change)) for change in [{}, *changes]}
    assert len(keys) == 4


def test_a_variant_learns_again_where_other_scores_ask_for_more_of_it():
    session = Session()
    gather(laboratory("finetune=gd", "metric=[weight_cosine_random]", session=session))
    more = gather(laboratory("finetune=gd", "metric=[weight_cosine]", session=session))
    assert more.facts["trained_changes"] is next(iter(session.learned.values())).changes


def test_what_is_compared_does_not_train_on_the_runs_control():
    other = evidence("finetune=label_shuffled", "metric=[sim_aou,alpha]", "metric.compare_with=gd").recordings["other"]
    assert torch.equal(other.attention_output, evidence("finetune=gd").recordings["ft"].attention_output)


def test_the_noise_of_a_truth_is_not_the_candidates():
    found = scores("finetune=prefix_tuning", "reference.name=prefix_tuning", "task.shots=2")
    assert found["sim_aou"].nanmean() < 0.99  # noise in common made it 1


def test_a_truth_stands_in_icls_place_and_the_candidate_stays_what_it_is():
    alone, planted = evidence("finetune=gd"), evidence("finetune=gd", "reference=lcgd")
    for setting in ("zsl", "ft"):
        for field in ("attention_output", "attention_scores", "label_scores"):
            assert torch.equal(
                getattr(alone.recordings[setting], field).nan_to_num(),
                getattr(planted.recordings[setting], field).nan_to_num(),
            )
    lcgd = evidence("finetune=lcgd").recordings["ft"]
    assert torch.equal(planted.recordings["icl"].attention_output, lcgd.attention_output)
    # what is trained to be like ICL is trained to be like ICL, whoever plays its part
    ceiling = evidence("finetune=activation_match").recordings["ft"]
    assert torch.equal(
        evidence("finetune=activation_match", "reference=gd").recordings["ft"].label_scores, ceiling.label_scores
    )


def test_rate_order_and_sample_are_the_truths_own():
    ones = scores("finetune=gd", "reference=gd")["sim_aou"].nanmean()
    changes = ("reference.lr_factor=0.3", "reference.permutation=1", "reference.draw=1")
    means = [scores("finetune=gd", "reference=gd", change)["sim_aou"].nanmean() for change in changes]
    assert all(mean < ones - 1e-3 for mean in means) and len({round(float(mean), 4) for mean in means}) == 3
    run = config(*toy_runs.TOY, "finetune=lcgd", "reference=gd", "reference.lr_factor=3", "reference.permutation=2")
    planted = reference_config(run)
    assert planted.finetune.objective == "gd" and planted.finetune.lr == pytest.approx(3 * run.task.rates["gd"])
    assert planted.task.permutation == 2 and run.task.permutation == 0
    given = reference_config(config(*toy_runs.TOY, "finetune=lcgd", "reference=gd", "reference.lr=0.02"))
    assert given.finetune.lr == pytest.approx(0.02)


def test_a_truth_that_went_out_of_control_makes_the_run_unstable():
    own = evidence("finetune=lcgd", "reference=gd")
    lab = laboratory("finetune=lcgd", "reference=gd")
    icl = own.recordings["icl"]
    assert torch.equal(icl.losses, evidence("finetune=gd").trace.losses) and unfit_reference(lab.config, own) is None

    def planted(**changed):
        return replace(own, recordings={**own.recordings, "icl": replace(icl, **changed)})

    wild = planted(losses=torch.tensor([2.0, 2, 2, 9, 9, 9]), untouched_loss=torch.tensor(2.0))
    assert "gd, is unstable" in str(unfit_reference(lab.config, wild))
    assert "gd, diverged" in str(
        unfit_reference(lab.config, planted(attention_output=icl.attention_output * torch.nan))
    )
    assert evidence("finetune=gd").recordings["icl"].losses is None


def test_a_sample_that_the_rows_do_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"reference\.draw=9 needs 12 rows"):
        evidence("finetune=none", "reference.draw=9")
    with pytest.raises(ConfigError, match=r"reference\.name=nobody is not a variant"):
        evidence("finetune=none", "reference.name=nobody")


def test_a_run_against_icl_keeps_its_name_and_any_other_gets_one():
    plain = as_dict(config(*toy_runs.TOY))
    before = {key: value for key, value in plain.items() if key != "reference"}
    named = [
        as_dict(config(*toy_runs.TOY, *r))
        for r in (["reference=gd"], ["reference=gd", "reference.draw=1"], ["reference.draw=1"])
    ]
    assert run_id(plain) == run_id(before)
    assert len({run_id(settings) for settings in (plain, *named)}) == 4
    assert run_id(as_dict(config(*toy_runs.TOY, "reference.label=x"))) == run_id(plain)


def test_each_distinct_finetuning_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path))
    done: list[str] = []
    resolve = learned.resolve_mechanism

    def counted(name):
        def mechanism(bench):
            done.append(bench.options.name)
            return resolve(name)(bench)

        return mechanism

    monkeypatch.setattr(learned, "resolve_mechanism", counted)
    shared, alone, session = {}, {}, Session()
    for kept, cache_mode in ((shared, "auto"), (alone, "off")):
        for candidate in ("gd", "random_direction"):
            for truth in ("lcgd", "label_shuffled", "gd"):
                of = (
                    f"finetune={candidate}",
                    f"reference={truth}",
                    "reference.permutation=1",
                    "metric=[sim_aou,sim_am_delta]",
                )
                lab = laboratory(*of, f"runtime.cache={cache_mode}", session=session)
                kept[candidate, truth] = measure(lab.config.metric.scores, gather(lab))["sim_aou"].values
        if cache_mode == "auto":
            assert sorted(done) == sorted(["gd", "random_direction", "lcgd", "label_shuffled", "gd"])
    assert all(torch.equal(shared[pair], alone[pair]) for pair in alone)


def test_a_variant_from_a_folder_of_ones_own_plays_the_part_and_is_an_input(tmp_path):
    file = tmp_path / "conf" / "finetune" / "mine.yaml"
    file.parent.mkdir(parents=True)

    def likeness(rate: float):
        file.write_text(f"# @package finetune\n{{name: mine, objective: gd, lr: {rate}}}\n")
        asked = ["finetune=gd", "reference.name=mine", "task.rates.gd=0.01", "metric=[sim_aou]", "tracking=none"]
        asked = [*toy_runs.TOY, "task.queries=4", *asked]
        run = iclgd.run(f"--config-dir={file.parents[1]}", *asked, paths__outputs=tmp_path)
        return run.mean("sim_aou"), len(list(run.folder.glob("earlier/*")))

    assert likeness(0.01) == (pytest.approx(1, abs=1e-6), 0)
    other, replaced = likeness(0.1)
    assert other < 0.999 and replaced == 1


def test_a_truths_scores_with_the_context_follow_the_runs_own_order(tmp_path, monkeypatch):
    """Runs with other orders of their own share a truth's finetuning, but not its attention to their tokens."""
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path))
    of = ("finetune=gd", "reference=lcgd", "reference.permutation=2", "metric=attention_kendall")
    taken = [
        gather(laboratory(*of, f"task.permutation={order}", f"runtime.cache={mode}"))
        .recordings["icl"]
        .context_scores.nan_to_num()
        for order, mode in ((0, "auto"), (1, "auto"), (1, "off"))
    ]
    assert torch.equal(taken[1], taken[2]) and not torch.equal(taken[0], taken[1])


def test_the_orders_of_a_truth_from_noise_do_not_depend_on_what_other_runs_have_left(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path))
    of = ("finetune=none", "reference.name=prefix_tuning")

    def orders(cache: str) -> torch.Tensor:
        return gather(laboratory(*of, "metric=order_spread", f"runtime.cache={cache}")).facts["icl_orders"]

    gather(laboratory(*of, "metric=sim_aou_reordered"))
    assert torch.equal(orders("auto"), orders("off"))


def test_wrong_labels_are_other_options_and_those_of_a_smaller_share_stay_wrong():
    given = laboratory("task.shots=8").prompts
    longer = replace(
        given.demonstrations[0], options=((5, 6, 7), (8,)), token_ids=(3, 5, 6, 7), label=0, label_length=3
    )
    given = replace(given, demonstrations=(longer, *given.demonstrations[1:]))
    own, *altered = relabelled(given, 0)
    assert own is given
    wrong: set[int] = set()
    for share, prompts in zip((0.25, 0.5, 0.75, 1), altered, strict=True):
        pairs = list(zip(prompts.demonstrations, own.demonstrations, strict=True))
        changed = {i for i, (item, was) in enumerate(pairs) if item != was}
        assert len(changed) == 8 * share and changed > wrong
        wrong = changed
        for item, was in pairs:
            answer = own.options(was)[item.label]
            assert item.token_ids[-item.label_length :] == answer and (item.label == was.label) == (item == was)
            assert item.token_ids[: -item.label_length] == was.token_ids[: -was.label_length]


def test_the_same_demonstrations_have_wrong_labels_in_any_order():
    given = laboratory("task.shots=8").prompts
    mixed = replace(given, demonstrations=given.demonstrations[::-1])
    for one, other in zip(relabelled(given, 0), relabelled(mixed, 0), strict=True):
        assert set(one.demonstrations) == set(other.demonstrations)
    assert relabelled(replace(given, training=given.demonstrations), 0) == [
        replace(given, training=given.demonstrations)
    ]
    assert scores("metric=label_movement", "finetune=label_shuffled")["label_movement/100"].isnan().all()


def test_a_truth_in_another_order_has_no_movement_to_compare_with():
    planted = "metric=order_movement", "finetune=one_shot_mean", "reference=other_task", "finetune.other_task=toy_other"
    assert not scores(*planted)["order_movement/ft"].isnan().any()
    assert scores(*planted)["order_movement/as_icl"].isnan().all()  # it moves by rounding alone
    other = "metric=order_movement", "finetune=gd", "reference=gd", "reference.permutation=1"
    assert scores(*other)["order_movement/as_icl"].isnan().all()


def test_icl_replayed_moves_as_icl_and_what_learns_nothing_does_not_move():
    with_movement = "metric=[order_movement,label_movement]"
    replayed, none = (scores(with_movement, f"finetune={name}") for name in ("replay", "none"))
    assert (replayed["label_movement/100_as_icl"] - 1).abs().max() < 1e-3
    assert replayed["label_movement/100"].min() > 0.5  # the toy reads its labels off the context
    assert not any(none[f"label_movement/{share}"].any() for share in (25, 50, 75, 100))
    assert not none["order_movement/ft"].any() and none["label_movement/100_as_icl"].isnan().all()


def test_a_static_patch_of_some_layers_has_no_change_in_the_others():
    values = scores("finetune=static_patch", "finetune.layers=1", "metric=weight_cosine")["weight_cosine"]
    assert values[0].isnan().all() and (values[1] - 1).abs().max() < 1e-4  # its own change, up to rounding


def test_prompts_json_lists_what_a_truth_has_seen():
    def listed(*overrides):
        lab = laboratory(*overrides)
        content = as_json(lab.prompts, lab.planted_prompts)
        return [item["text"] for item in content["demonstrations"]], content.get("reference_demonstrations")

    assert listed("reference=icl")[1] is None
    shown, other = listed("reference=gd", "reference.permutation=1")
    assert sorted(item["text"] for item in other) == sorted(shown) != [item["text"] for item in other]
    shown, other = listed("reference=gd", "reference.draw=1")
    assert {item["text"] for item in other}.isdisjoint(shown)
