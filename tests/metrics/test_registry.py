"""Every yaml of conf/metric on made-up recordings, a user's own function, and what is said of mistakes."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from iclgd import metrics
from iclgd.common.paths import config_folder
from iclgd.common.records import Evidence, Recording, Trace
from iclgd.config import ConfigError, MetricConfig, ScoreConfig
from iclgd.metrics.registry import _METRICS

FILES = sorted((config_folder() / "metric").glob("*.yaml"))
SIZES = {"example": 6, "layer": 2, "head": 3, "demonstration": 4, "matrix": 2}
CONTEXT, KEYS, LABELS, VOCABULARY, D_MODEL = 120, 5, 3, 40, 16


def specs_of(*paths) -> dict[str, ScoreConfig]:
    loaded = [OmegaConf.create({"scores": OmegaConf.load(path)}) for path in paths]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(MetricConfig), *loaded))
    assert isinstance(config, MetricConfig)
    return config.scores


def spec(function="sim_am", inputs=None, **others) -> dict[str, ScoreConfig]:
    inputs = {"a": "icl.attention_scores", "b": "ft.attention_scores"} if inputs is None else inputs
    return {"mine": ScoreConfig(function=function, inputs=inputs, label="Mine", **others)}


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    generator = torch.Generator().manual_seed(0)
    example, layer, head, demonstration, _ = SIZES.values()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def changes() -> tuple[tuple[torch.Tensor, ...], ...]:
        return tuple(tuple(normal(*shape) for shape in ((12, 16), (16, 12))) for _ in range(layer))

    recordings = {
        setting: Recording(
            attention_output=normal(example, layer, D_MODEL),
            attention_scores=normal(example, layer, head, KEYS),
            label_scores=normal(example, LABELS),
            context_scores=normal(example, layer, CONTEXT),
            query_vectors=normal(example, layer, 7),
            next_token_log_probs=normal(example, VOCABULARY).log_softmax(-1),
            option_is_greedy=(normal(example, LABELS) > 0).float(),
            block_output=normal(example, layer, D_MODEL),
            context_mass=torch.rand(example, layer, head, generator=generator),
        )
        for setting in ("zsl", "icl", "ft", "other", "reordered")
    }
    trace = Trace(normal(demonstration), normal(demonstration, layer), normal(layer))
    facts = {
        "labels": recordings["ft"].label_scores.argmax(-1),  # some of which zsl has wrong
        "first_label_token": torch.randint(0, VOCABULARY, (example,), generator=generator),
        "random_update": normal(example, layer, D_MODEL),
        "context_example": torch.arange(CONTEXT) // 20,
        "training_query_vectors": normal(CONTEXT, layer, 7),
        "random_attention": torch.rand(example, layer, CONTEXT, generator=generator),
        **{
            name: normal(5, example, LABELS)
            for name in ("icl_orders", "icl_orders_of_run", "ft_orders", "icl_labels", "ft_labels")
        },
        **{f"graft_{name}": normal(example, layer) for name in ("icl", "icl_up_to", "ft", "ft_up_to")},
        **{name: changes() for name in ("trained_changes", "static_changes", "random_changes")},
    }
    return Evidence(recordings, trace, facts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_measures(path, evidence):
    specs = specs_of(path)
    assert {name.partition("/")[0] for name in specs} == {path.stem}
    first, comment, *_ = path.read_text().splitlines()
    assert first == "# @package metric.scores" and comment.startswith("# ")
    scores = metrics.measure(specs, evidence)
    for name, score in scores.items():
        assert score.axes == tuple(specs[name].axes)
        subspace = name == "subspace_overlap"  # six examples span no eight directions
        assert score.values.shape == tuple(SIZES[axis] for axis in score.axes)
        assert score.values.isfinite().any() != subspace
        low, high = specs[name].limits or (-torch.inf, torch.inf)
        assert ((score.values >= low) & (score.values <= high) | score.values.isnan()).all()
    summary = metrics.summarise(scores, torch.tensor([True] * 3 + [False] * 3))
    assert set(summary) == set(specs)


def test_every_function_has_a_yaml_and_labels_are_not_shared():
    specs = specs_of(*FILES).values()
    assert {spec.function for spec in specs} == set(_METRICS)
    assert len({spec.label for spec in specs}) == len(specs)


def test_required_inputs_are_the_paths_that_are_named():
    paths = [path for path in FILES if path.stem in ("sim_am_delta", "accuracy", "gradient_norm")]
    expected = {f"{setting}.attention_scores" for setting in ("zsl", "icl", "ft")}
    expected |= {f"{setting}.label_scores" for setting in ("zsl", "icl", "ft")}
    assert metrics.required_inputs(specs_of(*paths)) == expected | {"labels", "trace.gradient_norms"}


def test_a_function_of_ones_own(tmp_path, monkeypatch, evidence):
    code = "def longest(h, power):\n    return h.norm(dim=-1) ** power\n\ndef number(h):\n    return 1.0\n"
    (tmp_path / "my_metrics.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    specs = spec("my_metrics.longest", {"h": "icl.attention_output"}, params={"power": 2})
    assert metrics.required_inputs(specs) == {"icl.attention_output"}
    values = metrics.measure(specs, evidence)["mine"].values
    assert torch.allclose(values, evidence.recordings["icl"].attention_output.square().sum(-1))
    with pytest.raises(ConfigError, match=r"my_metrics\.number returned a float, but axes names"):
        metrics.measure(spec("my_metrics.number", {"h": "labels"}), evidence)
    monkeypatch.delitem(sys.modules, "my_metrics")


WHERE = r"conf/metric/mine\.yaml \(metric\.scores\.mine\)"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (spec("sim_em"), "not one of accuracy, .*a function of yours needs a dotted path"),
        (spec("no_such_package.f"), "cannot be imported .No module named 'no_such_package'"),
        (spec(".f"), "cannot be imported"),
        (spec("math.pi"), "math.pi is a float: name a function"),
        (spec("sim_am_delta"), "sim_am_delta: missing a required argument: 'zsl'; correct its function"),
        (spec(params={"k": 3}), "sim_am: got an unexpected keyword argument 'k'"),
        (spec(params={"a": 3}), "multiple values for keyword argument 'a'"),
        (
            spec(inputs={"a": "icl.atention_scores", "b": "x"}),
            "icl.atention_scores: icl has no 'atention_scores', only",
        ),
        (spec("identity", {"values": "trace.norms"}), "trace.norms: trace has no 'norms', only losses"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(specs, message):
    with pytest.raises(ConfigError, match=f"{WHERE}.*{message}"):
        metrics.required_inputs(specs)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (spec(inputs={"a": "icl.attention_scores", "b": "gd.attention_scores"}), "no input 'gd.attention_sc"),
        (spec(inputs={"a": "icl.attention_scores", "b": "nothing"}), "no input 'nothing' was recorded"),
        (spec(axes=["example"]), r"sim_am returned axes \(6, 2\), but axes names \['example'\]"),
    ],
)
def test_mistakes_are_named_while_measuring(specs, message, evidence):
    with pytest.raises(ConfigError, match=f"{WHERE}: {message}"):
        metrics.measure(specs, evidence)


@pytest.mark.parametrize(("function", "whether"), [("sim_centred", True), ("sim_aou", False)])
def test_what_depends_on_the_other_examples_is_known_by_bare_name_and_dotted_path(function, whether):
    inputs = {name: f"{name}.attention_output" for name in ("icl", "ft", "zsl")}
    for path in (function, f"iclgd.metrics.updates.{function}"):
        one = spec(path, inputs, axes=["example", "layer"])["mine"]
        assert metrics.needs_all_examples(one) is whether
