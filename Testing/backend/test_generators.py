"""Every generator's loop is closed: the very tests of the default's, and what each learns can be read."""

import json
from functools import partial

import pytest
import test_hypergradient
import test_joint
import torch
from method_rig import built
from test_networks import small_plan
from tiny_run import run_train, tiny_study
from typer.testing import CliRunner

from genseg.cli import app
from genseg.errors import EXIT_OK
from genseg.networks.generators import build_generator
from genseg.networks.generators.diffusion import STEPS
from genseg.networks.generators.vae import LATENT
from genseg.runfolder import read_json
from genseg.settings import GENERATORS

OTHERS = [name for name in GENERATORS if name != "spade"]


@pytest.fixture(params=OTHERS)
def generator(request, monkeypatch) -> str:
    """The tests of the default generator build their states with this one."""
    for module in (test_joint, test_hypergradient):
        monkeypatch.setattr(module, "built", partial(built, generator=request.param))
    return request.param


@pytest.mark.parametrize(("name", "labelled"), [("isic2017", 2), ("hippocampus", 1)])
def test_level3_equals_the_double_backward_oracle(generator, data, name, labelled):
    test_hypergradient.test_level3_equals_the_double_backward_oracle_in_float64(data, name, labelled, "genseg")


def test_the_path_through_its_own_step_matters(generator, data):
    test_hypergradient.test_the_path_through_the_generators_own_step_matters(data, "isic2017")


def test_nothing_is_detached_between_meta_parameters_and_validation_loss(generator, data, monkeypatch):
    monkeypatch.setattr("genseg.networks.generators.diffusion.LAST", STEPS)  # but for the early steps of sampling
    test_hypergradient.test_no_detach_between_meta_parameters_and_validation_loss_on_real_scans(data, "isic2017")


def test_every_entry_of_every_meta_parameter_moves(generator, data):
    test_joint.test_every_entry_of_every_meta_parameter_moves(data, "isic2017", 3)


@pytest.mark.parametrize("name", ["isic2017", "hippocampus"])
def test_level1_has_the_segmenters_gradient(generator, data, name):
    test_joint.test_level1_differs_from_separate_by_exactly_the_segmenters_gradient(data, name)


def test_with_weight_0_the_weights_equal_supervised_bit_for_bit(generator, data):
    test_joint.test_with_synthetic_weight_0_the_weights_equal_supervised_bit_for_bit(
        data, "isic2017", 2, "fp32", "genseg"
    )


@pytest.mark.slow
def test_a_run_ends_and_synthesize_and_report_show_the_kernels_that_were_learned(data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    outcome = run_train(study, tmp_path / "run", iterations=28, generator="pix2pix", method="genseg")
    assert outcome.status == EXIT_OK and read_json(outcome.run.settings)["generator"] == "pix2pix"
    command = ["synthesize", str(outcome.run.path), "--out", str(tmp_path / "more"), "--count", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    ((_, layers),) = json.loads((tmp_path / "more" / "architecture.json").read_text()).items()
    assert {tuple(shares) for shares in layers.values()} == {("4", "6", "8")}
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-3) for shares in layers.values())
    assert any(share != pytest.approx(1 / 3, abs=1e-3) for shares in layers.values() for share in shares.values())
    report = (outcome.run.path / "report.html").read_text(encoding="utf-8")
    assert "Architecture of the generator" in report
    assert all(layer in done.output and layer in report for layer in layers)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_vaes_latent_map_tells_of_the_real_image_and_costs_what_it_tells(dims):
    torch.manual_seed(0)
    patch = [32, 32] if dims == 2 else [16, 16, 16]
    network = build_generator(small_plan(dims, patch), 7, "vae")
    noise = network.draw_noise(2, patch, torch.Generator().manual_seed(1))
    layout, real = torch.rand(2, 7, *patch), torch.randn(2, 2, *patch)
    (known, *_), cost = network.posterior(layout, real, noise)
    (other, *_), _ = network.posterior(layout, -real, noise)
    assert known.shape == noise[0].shape == (2, 1 + LATENT, *[side // 4 for side in patch])
    assert torch.equal(known[:, :1], noise[0][:, :1]) and not torch.allclose(known[:, 1:], other[:, 1:])
    torch.nn.init.zeros_(network.moments.weight)
    torch.nn.init.zeros_(network.moments.bias)
    (told_nothing, *_), free = network.posterior(layout, real, noise)
    assert float(free) == 0 < float(cost) and torch.equal(told_nothing, noise[0])
