"""The recipes for DECODE and FITS: options that ParlAI knows, and a few steps at toy size on our own set."""

from __future__ import annotations

import pytest
import yaml
from parlai.core.params import ParlaiParser
from parlai.scripts.train_model import TrainLoop, TrainModel, set_seed

from parlai_safety import resources
from tests.conftest import TINY_MODEL

NAMES = ("contradiction", "fits")


def read(name):
    return yaml.safe_load(resources.recipe(f"cringe/{name}").read_text(encoding="utf-8"))


def unknown_options(options, model):
    """Those that `train_model` does not declare with this model."""
    parser: ParlaiParser = TrainModel.setup_args()
    parser.add_extra_args(["--model", model, "--task", "safety:contradiction"])
    known = {action.dest for action in parser._actions}
    return set(options) - known


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_its_parts(name):
    assert list(read(name)) == ["command", "iterations", "decoding", "toy"]
    assert set(read(name)["iterations"]) == {"count", "start", "prompts", "labeller", "keep", "weight"}


@pytest.mark.parametrize("name", NAMES)
def test_parlai_knows_every_option(name):
    content = read(name)
    assert unknown_options({**content["command"], **content["decoding"]}, content["command"]["model"]) == set()
    assert unknown_options({"beam_sizes": 1, "cringe_alpha": 1}, "safety:cringe") == {"beam_sizes"}


@pytest.mark.parametrize("name", NAMES)
def test_toy_replaces_options_of_the_command(name):
    content = read(name)
    assert set(content["toy"]) <= set(content["command"])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_at_toy_size(name, tmp_path):
    content = read(name)
    options = {**content["command"], **content["toy"], **content["decoding"]}
    layers = {"n_encoder_layers": 1, "n_decoder_layers": 1}
    smaller = {key: value for key, value in TINY_MODEL.items() if key != "n_layers"} | layers
    options |= smaller | {
        "dict_maxexs": 50,
        "batchsize": 4,
        "max_train_steps": 2,
        "log_every_n_steps": 1,
    }
    options = {key: value for key, value in options.items() if value is not None}
    opt = TrainModel.setup_args().parse_kwargs(model_file=str(tmp_path / "m"), loglevel="error", **options)
    set_seed(1)
    loop = TrainLoop(opt)
    reports = list(loop.train_steps())
    assert loop._train_steps == 2
    assert float(reports[-1]["loss"]) > 0
    if name == "fits":
        assert float(reports[-1]["share_neg"]) + float(reports[-1]["share_pos"]) == pytest.approx(1)
