"""Configs: types, names, overrides and the way back to YAML."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from aligndet.adapters import ADAPTERS
from aligndet.config import (
    Config,
    all_keys,
    build_config,
    differences,
    dump_yaml,
    load_config,
    plain,
)
from models import build_detector
from models.detector import DETECTORS
from models.from_mapping import from_mapping

ROOT = Path(__file__).parent.parent


def load(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_defaults_fill_what_a_file_leaves_out(tmp_path):
    config = load(tmp_path, "output_dir: runs/x\n")
    assert config == Config(output_dir="runs/x")
    assert config.schedule.epochs == 12


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-4", 1e-4),  # YAML alone would read text
        ("optim.lr=1", 1.0),
        ("optim.lr=0.5", 0.5),
        ("optim.clip_norm=10", 10.0),
        ("optim.clip_norm=null", None),
        ("optim.decay_norm_and_bias=false", False),
        ("optim.base_batch=16", 16),
        ("data.batch_size=4", 4),
        ("data.short_sides=[64, 96]", (64, 96)),
        ("data.short_sides=64", (64,)),
        ("data.train.images=images/a=b", "images/a=b"),
        ("data.val_short_side=null", None),
        ("schedule.milestones=[8, 11.5]", (8.0, 11.5)),
        ("schedule.milestones=[]", ()),
        ("model.backbone=resnet18", "resnet18"),
        ("model.backbone_weights=null", None),
        ("model.options.channels=64", {"channels": 64}),
        ("amp=off", "none"),  # YAML reads it as false
        ("amp=none", "none"),
        ("amp=bf16", "bf16"),
        ("box_domain.across_ranks=yes", True),
        ("evaluation.every=100", 100),
        ("seed=-3", -3),
        ("output_dir=other", "other"),
    ],
)
def test_overrides_have_the_type_of_the_key(tmp_path, override, value):
    config = load(tmp_path, "output_dir: x\nschedule: {epochs: 3}\n", override)
    found = value_of(config, override.partition("=")[0].replace("options.channels", "options"))
    assert found == value
    assert type(found) is type(value)


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path):
    text = "output_dir: x\noptim: {lr: 0.5, weight_decay: 0.0}\n"
    config = load(tmp_path, text, "optim.lr=0.25", "optim.lr=0.125")
    assert (config.optim.lr, config.optim.weight_decay) == (0.125, 0.0)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.learning_rate", "optim."),  # the nearest key is found by spelling
        ("optim.ls", "optim.lr"),
        ("data.batchsize", "data.batch_size"),
        ("batch_size", "data.batch_size"),
        ("lr", "optim.lr"),
        ("outputdir", "output_dir"),
        ("data.train.anotations", "data.train.annotations"),
        ("data.images", "images"),
        ("scheduler.epochs", "schedule.epochs"),
    ],
)
def test_unknown_keys_name_the_nearest_valid_one(tmp_path, key, nearest):
    with pytest.raises(ValueError, match=f"unknown config key {key}; did you mean .*{nearest}"):
        load(tmp_path, "output_dir: x\n", f"{key}=1")
    *sections, last = key.split(".")
    content = {last: 1}
    for section in reversed(sections):
        content = {section: content}
    with pytest.raises(ValueError, match=f"unknown config key {key}"):
        load(tmp_path, yaml.safe_dump({"output_dir": "x", **content}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=two", "data.batch_size is 'two'; it must be a whole number"),
        ("data.batch_size=2.5", "data.batch_size is 2.5; it must be a whole number"),
        ("data.batch_size=true", "data.batch_size is True; it must be a whole number"),
        ("data.batch_size=null", "data.batch_size is None; it must be a whole number"),
        ("optim.lr=fast", "optim.lr is 'fast'; it must be a number"),
        ("optim.lr=true", "optim.lr is True; it must be a number"),
        ("optim.lr=[1]", r"optim.lr is \[1\]; it must be a number"),
        ("optim.lr=.nan", "optim.lr is nan; it must be a number"),
        ("optim.lr=inf", "optim.lr is 'inf'; it must be a number"),
        ("optim.lr=", "optim.lr is None; it must be a number"),
        ("box_domain.across_ranks=1", "box_domain.across_ranks is 1; it must be true or false"),
        ("output_dir=", "output_dir is empty; give the folder of the run"),
        ("data.short_sides=[64, a]", "data.short_sides is 'a'; it must be a whole number"),
        ("data=3", "data is 3; it must be a section"),
        ("model.options=3", "model.options is 3; it must be a section"),
        ("amp=fp8", "amp is 'fp8', which is unknown;.* valid: none, bf16, fp16"),
        ("compile=all", "compile is 'all', which is unknown;.* valid: none, model"),
        ("optim.name=adam", "optim.name is 'adam', which is unknown; did you mean adamw"),
        ("optim.lr=0", "optim.lr is 0.0; it must be above 0"),
        ("optim.lr", "override 'optim.lr' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("seed.x=3", "override 'seed.x=3': seed is a value, not a section"),
        ("schedule.epochs=null", "exactly one of schedule.epochs and schedule.iterations"),
        ("schedule.epochs=0", "must be at least 1"),
        ("schedule.decay=linear", "schedule.decay is 'linear'"),
        ("loop.log_every=0", "at least 1"),
        ("data.batch_size=0", "at least 1"),
        ("data.short_sides=[]", "data.short_sides must list at least one size"),
        ("evaluation.every=0", "evaluation.every is 0; it must be at least 1"),
        ("evaluation.batch_size=0", "evaluation.batch_size is 0; it must be at least 1"),
        ("optim.momentum=-1", "optim.momentum is -1.0; it must be at least 0 and at most 1"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1.0; it must be at least 0"),
        ("optim.clip_norm=0", "optim.clip_norm is 0.0; it must be above 0"),
        ("optim.base_batch=0", "optim.base_batch is 0; it must be at least 1"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(tmp_path, override, message):
    text = "output_dir: x\nseed: 1\nschedule: {epochs: 3}\n"
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, text, override)
    assert "\n" not in str(error.value)


def test_length_is_given_once(tmp_path):
    config = load(tmp_path, "output_dir: x\nschedule: {iterations: 5}\n")
    assert (config.schedule.epochs, config.schedule.iterations) == (None, 5)
    text = "output_dir: x\nschedule: {epochs: 5}\n"
    config = load(tmp_path, text, "schedule.epochs=null", "schedule.iterations=7")
    assert (config.schedule.epochs, config.schedule.iterations) == (None, 7)


def test_files_that_are_not_configs(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: no such config"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot be read .*give --config a YAML file"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match=r"run\.yaml: not valid YAML .*; correct it"):
        load(tmp_path, "output_dir: [x\n")
    with pytest.raises(ValueError, match=r"key 'seed' is given twice.* line 2"):
        load(tmp_path, "seed: 1\nseed: 2\noutput_dir: x\n")
    for text in ("", "- a\n", "text\n"):
        with pytest.raises(ValueError, match="not a mapping"):
            load(tmp_path, text)
    with pytest.raises(ValueError, match="output_dir is not set"):
        load(tmp_path, "seed: 1\n")


def test_dumped_yaml_loads_to_the_same_config(tmp_path):
    text = (
        "output_dir: runs/a b\nseed: 3\namp: bf16\n"
        "data: {short_sides: [64, 96], train: {images: 'no', annotations: '123'}}\n"
        "model: {options: {channels: 32, box_loss: iou}}\n"
        "optim: {lr: 1e-5, clip_norm: 1e-20}\n"
        "schedule: {iterations: 10, milestones: [3, 5]}\n"
    )
    config = load(tmp_path, text)
    assert load(tmp_path, dump_yaml(config)) == config
    assert plain(build_config(plain(config))) == plain(config)
    written = yaml.safe_load(dump_yaml(config))
    assert sorted(all_keys(Config)) == sorted(leaves(written))  # every key is written out


def leaves(content, prefix=""):
    for name, value in content.items():
        if isinstance(value, dict) and prefix + name != "model.options":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_differences_name_the_leaves():
    old = plain(Config(output_dir="x"))
    new = plain(dataclasses.replace(Config(output_dir="y"), seed=1))
    assert differences(old, old) == []
    assert differences(old, new) == ["output_dir: x -> y", "seed: 0 -> 1"]
    new["optim"]["lr"] = 0.5
    assert "optim.lr: 0.01 -> 0.5" in differences(old, new)


FINETUNINGS = sorted(
    path.stem
    for path in ROOT.glob("configs/*.yaml")
    if "detector" in path.read_text() and not path.stem.endswith("pretrain")
)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_configs_of_the_project_load(path):
    config = load_config(path)
    assert config.output_dir
    from_mapping(DETECTORS[config.model.detector][1], config.model.options)


@pytest.mark.parametrize("finetune", FINETUNINGS)
def test_what_a_config_pre_trains_fits_the_one_that_fine_tunes(finetune):
    pretrain = re.sub(r"_[^_]+$", "_pretrain", finetune.replace("voc_", "coco_"))
    shapes = []
    for name in (pretrain, finetune):
        model = load_config(ROOT / "configs" / f"{name}.yaml").model
        assert f"_{model.detector}_" in finetune
        with torch.device("meta"):
            built = build_detector(dataclasses.replace(model, backbone_weights=None), 1)
        shapes.append({key: tensor.shape for key, tensor in built.state_dict().items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("detector", ADAPTERS)
def test_every_detector_has_configs_for_coco_own_photographs_and_the_demo(detector):
    short = ("12k", "lowdata")
    names = [f"coco_{detector}_r50_{schedule}" for schedule in short]
    assert {*names, f"own_{detector}_finetune", f"demo_{detector}_finetune"} <= set(FINETUNINGS)


@pytest.mark.parametrize(
    ("detector", "max_proposals"),
    [("fcos", None), ("retinanet", 50), ("faster_rcnn", None), ("mask_rcnn", 50), ("detr", 50)],
)
def test_the_coco_pre_trainings_have_the_papers_temperature_and_boxes(detector, max_proposals):
    box_domain = load_config(ROOT / "configs" / f"coco_{detector}_r50_pretrain.yaml").box_domain
    assert (box_domain.temperature, box_domain.max_proposals) == (0.5, max_proposals)
    assert Config(output_dir="x").box_domain.temperature != 0.5  # so the files must set it


def test_a_length_on_the_command_line_replaces_that_of_the_file(tmp_path):
    text = "output_dir: x\nschedule: {epochs: 3, milestones: [2]}\n"
    schedule = load(tmp_path, text, "schedule.iterations=7").schedule
    assert (schedule.epochs, schedule.iterations, schedule.milestones) == (None, 7, (2.0,))
    assert load(tmp_path, text, "schedule.epochs=5").schedule.epochs == 5
    with pytest.raises(ValueError, match="exactly one"):
        load(tmp_path, text, "schedule.epochs=5", "schedule.iterations=7")


def test_off_is_valid_for_amp_only(tmp_path):
    assert load(tmp_path, "output_dir: x\namp: off\n").amp == "none"
    with pytest.raises(ValueError, match=r"model\.backbone_weights is False; it must be text"):
        load(tmp_path, "output_dir: x\nmodel: {backbone_weights: off}\n")


@pytest.mark.parametrize(
    "text",
    [
        *("runs/batch #2", "007", "2024-05-01", "no", "off", "true", "1e3", "run: a", "[a]", "{a}"),
        *("C:\\photos", " spaced ", "a=b", "'it's'", '"x"', "*x", "@x", "!x", "&x", "$HOME/x"),
        *("- a", "50%", "a,b", "0x10", "12:30", "|", "> x", "#1", "lot #7: a", "größe/图", "~x~"),
    ],
)
def test_a_text_on_the_command_line_is_taken_as_it_is(tmp_path, text):
    keys = ("output_dir", "data.train.images", "model.backbone_weights")
    config = load(tmp_path, "output_dir: x\n", *(f"{key}={text}" for key in keys))
    assert [value_of(config, key) for key in keys] == [text] * 3
    # What was resolved is read back the same, whatever YAML would have made of it.
    (tmp_path / "again.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_nothing_and_null_unset_a_text_that_may_be_unset(tmp_path):
    text = "output_dir: x\ndata: {train: {proposals: p.json}}\n"
    for value in ("", "null"):
        assert load(tmp_path, text, f"data.train.proposals={value}").data.train.proposals is None


def test_a_tilde_is_the_home_folder_in_files_and_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = "output_dir: ~/runs/x\ndata: {train: {images: ~/photos}}\n"
    config = load(tmp_path, text, "data.val.images=~/more", "data.val.annotations=~")
    assert (config.output_dir, config.data.train.images) == ("/home/me/runs/x", "/home/me/photos")
    assert (config.data.val.images, config.data.val.annotations) == ("/home/me/more", "/home/me")


def test_paths_of_the_data_start_from_its_root(tmp_path):
    text = "output_dir: x\ndata: {train: {images: images, annotations: /abs/a.json}}\n"
    config = load(tmp_path, text, "data.root=photos", "data.val.images=val")
    assert (config.data.train.images, config.data.val.images) == ("photos/images", "photos/val")
    assert (config.data.train.annotations, config.data.val.annotations) == ("/abs/a.json", None)
    assert config.output_dir == "x"
    (tmp_path / "again.yaml").write_text(dump_yaml(config))  # resolved: the root is not put twice
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("text", ["007", "2024-05-01", "no", "1e3", "1_000"])
def test_a_text_without_quotes_that_yaml_reads_otherwise_is_refused(tmp_path, text):
    if not isinstance(yaml.safe_load(text), str):
        with pytest.raises(ValueError, match="output_dir is .* must be text, in quotes in a YAML"):
            load(tmp_path, f"output_dir: {text}\n")
    assert load(tmp_path, f"output_dir: '{text}'\n").output_dir == text


def test_a_section_may_be_empty_in_the_file(tmp_path):
    assert load(tmp_path, "output_dir: x\ndata:\n", "data.batch_size=3").data.batch_size == 3


def test_lists_of_texts(tmp_path):
    for value in ("neck.", "[neck.]", "['neck.']"):
        config = load(tmp_path, "output_dir: x\n", f"transfer.leave_out={value}")
        assert config.transfer.leave_out == ("neck.",)


@pytest.mark.parametrize(
    "override",
    [
        "seed=&a [*a]",
        "optim={lr: &a [*a]}",
        "data.short_sides=" + "[" * 3000,
        "seed=" + "9" * 5000,
        "optim.lr=" + "9" * 400,
        "optim.lr=!!float x",
        "model.options=" + "{a: " * 3000,
        "data.flip=[" + "x," * 3000 + "]",
    ],
    ids=range(8),
)
def test_values_without_end_are_refused_in_a_short_sentence(tmp_path, override):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match="it must be|must list") as error:
        load(tmp_path, "output_dir: run", override)
    assert key in str(error.value)
    assert len(str(error.value)) < 200


def test_a_file_without_end_is_refused(tmp_path):
    for text in ("foo: &a {b: *a}", "seed: " + "[" * 3000):
        with pytest.raises(ValueError, match=r"run\.yaml: not valid YAML \(.*line 2, column"):
            load(tmp_path, f"output_dir: run\n{text}")


def test_a_pipe_is_no_config(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes among the files of this system")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe"):
        load_config(tmp_path / "pipe")
