import dataclasses

import pytest

from loopprobe.config.schema import Config, ForeignConfig, ModelConfig, Schedule, TaskConfig, read_config
from loopprobe.config.sources import load_config, preset_names
from loopprobe.config.strict import build
from loopprobe.errors import LoopprobeError


def test_a_config_is_complete_when_made():
    cfg = ModelConfig(d_model=64, n_heads=4, n_points=31)
    assert (cfg.d_head, cfg.d_mlp, cfg.n_ctx) == (16, 256, 62)
    assert Config().train.dims == Schedule(kind="linear", start=3, end=10, over=0.4)
    assert TaskConfig().noise_std == 0
    assert TaskConfig(name="noisy_linear_regression").noise_std == 0.1


def test_a_config_survives_its_dict():
    cfg = load_config(overrides=["model.n_loops=7", "train.loop_window=3", "task.name=noisy_linear_regression"])
    assert build(Config, cfg.to_dict()) == cfg
    elsewhere = ForeignConfig()
    assert read_config(elsewhere.to_dict()) == elsewhere
    assert read_config(cfg.to_dict()) == cfg


def test_later_sources_win(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 5\nseed = 3\n[model]\nn_loops = 30\n")
    cfg = load_config(path, "reference", ["train.seed=4"])
    assert (cfg.train.steps, cfg.train.seed, cfg.model.n_loops) == (5, 4, 30)
    assert (cfg.train.optimizer, cfg.model.initializer_range) == ("adam", 0.02)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid(preset):
    assert load_config(preset=preset).train.steps > 0


def test_schedules():
    linear = Schedule(kind="linear", start=3, end=10, over=0.5)
    values = [linear.at(step, 100) for step in range(100)]
    assert values[0] == 3
    assert values[50:] == [10] * 50
    assert values == sorted(values)
    held = Schedule(kind="linear", start=3, end=10, over=0.5, hold=20)
    values = [held.at(step, 100) for step in range(100)]
    assert (values[:21], values[50:]) == ([3] * 21, [10] * 50)
    assert values == sorted(values)
    assert [held.at(step, 20) for step in (0, 5, 9, 10)] == [3, 3, 8, 10]  # half of the way is held at most
    step = Schedule(kind="step", start=5, end=8, by=2, every=10)
    assert [step.at(s, 100) for s in (0, 9, 10, 19, 20, 99)] == [5, 5, 7, 7, 8, 8]
    grown = ["train.dims={kind='mastery',start=3,error=0.5}", "train.points={kind='dims',start=10}"]
    train = load_config(overrides=grown).train
    assert [train.reached(0, dims)["points"] for dims in (3, 4, 9, 10)] == [10, 13, 28, 31]
    assert (train.sizes(0)["dims"], train.sizes(0)["points"]) == (10, 31)
    assert [train.next_mastered(5, {"error": error}) for error in (0.51, 0.5)] == [5, 6]
    assert train.next_mastered(10, {"error": 0.0}) == 10
    assert load_config().train.next_mastered(None, {"error": 0.0}) is None
    follows = load_config(overrides=["train.points={kind='dims',start=10}"]).train  # dimensions of any schedule
    assert [follows.sizes(step)["points"] for step in (0, 115, 1999)] == [10, 13, 31]
    fixed = load_config(overrides=["train.dims=10", "train.points={kind='dims',start=10}"]).train
    assert fixed.sizes(0)["points"] == 31
    assert load_config(overrides=["train.points=20"]).train.points == Schedule(end=20)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.n_lops=3"], ["model.n_lops", "n_loops"]),
        (["n_loops=3"], ["n_loops", "model.n_loops"]),
        (["train.loop_window=30"], ["loop_window (30)", "n_loops (20)", "lower"]),
        (["model.d_model=10"], ["d_model (10)", "n_heads (4)", "change"]),
        (["model.n_heads=0"], ["model.n_heads (0)", "greater than 0"]),
        (["model.injection=plus"], ["model.injection ('plus')", "'add'"]),
        (["model.n_ctx=10"], ["n_ctx (10)", "62"]),
        (["task.noise_std=0.1"], ["noise_std (0.1)", "noisy_linear_regression"]),
        (["train.muon_lr=nan"], ["train.muon_lr", "nan"]),
        (["train.dims=11"], ["train.dims.end (11)", "n_dims (10)"]),
        (["train.dims.kind=step"], ["step schedule", "by"]),
        (["train.dims={kind='mastery',start=3,rate=0.5}"], ["train.dims", "start and error"]),
        (["train.dims={kind='mastery',start=3,error=0}"], ["train.dims.error", "greater than 0"]),
        (["train.dims={kind='dims',start=3}"], ["train.dims.kind (dims)", "mastery"]),
        (["train.points={kind='mastery',start=3,error=0.5}"], ["train.points.kind (mastery)"]),
        (["train.points={kind='dims'}"], ["a dims schedule takes start"]),
        (["model.copy_head=true", "model.positional_embedding_type=none"], ["copy_head (True)", "drop it"]),
        (["model.copy_head=true", "model.n_heads=1"], ["copy_head needs", "d_model of at least 84 (not 64)"]),
        (["model.copy_head=true", "model.n_heads=64"], ["copy_head needs", "d_head of at least 2 (not 1)"]),
        (["train.dims={kind='constant',hold=30}"], ["hold (30)", "linear schedules only", "drop it"]),
        (["steps"], ["steps", "section.key=value"]),
        (["task.name=parity", "train=5"], ["train (5)", "must be a table"]),
    ],
)
def test_bad_values_get_one_line_with_value_rule_and_remedy(overrides, parts):
    with pytest.raises(LoopprobeError) as error:
        load_config(overrides=overrides)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_and_presets(tmp_path):
    with pytest.raises(LoopprobeError, match="no config file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(LoopprobeError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(LoopprobeError, match="reference"):
        load_config(preset="nope")


def test_names_tell_models_apart():
    assert Config().name == "lr-b20-T10"
    cfg = load_config(overrides=["task.name=noisy_linear_regression", "model.n_layers=4", "train.seed=2"])
    assert cfg.name == "nlr-L4-b20-T10-s2"
    ordinary = load_config(overrides=["model.n_layers=12", "model.n_loops=1", "train.loop_window=1"])
    assert ordinary.name == "lr-L12"


def test_transformer_lens_configs_are_accepted_and_given():
    fields = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_points=11, act_fn="relu").to_transformer_lens()
    for source in (fields, fields.to_dict()):
        cfg = ModelConfig.from_transformer_lens(source, n_loops=6, n_dims=5)
        assert dataclasses.asdict(cfg) | {"initializer_range": None} == dataclasses.asdict(
            ModelConfig(n_layers=2, d_model=32, n_heads=4, n_points=11, act_fn="relu", n_loops=6, n_dims=5)
        )


@pytest.mark.parametrize(
    "unsupported", [{"normalization_type": "LNPre"}, {"attn_only": True}, {"rotary_adjacent_pairs": True}]
)
def test_a_transformer_lens_config_of_another_architecture_is_refused(unsupported):
    legacy = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_ctx": 12, "d_head": 8, "act_fn": "gelu_new"}
    assert ModelConfig.from_transformer_lens(legacy).n_points == 6
    with pytest.raises(LoopprobeError, match=next(iter(unsupported))):
        ModelConfig.from_transformer_lens(legacy | unsupported)
