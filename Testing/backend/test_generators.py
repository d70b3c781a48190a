"""Every generator's loop is closed: the very tests of the default's, and what each learns can be read."""

import json
import math
from collections.abc import Iterator
from functools import partial

import pytest
import test_hypergradient
import test_joint
import torch
import torch.nn.functional as F
from method_rig import built, prepared
from test_hypergradient import cosine
from test_networks import small_plan
from tiny_run import leftovers, run_train, tiny_study
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from genseg.cli import app
from genseg.errors import EXIT_BAD_INPUT, EXIT_OK
from genseg.methods.joint import Joint, Stage
from genseg.methods.losses import one_hot
from genseg.methods.synthesis import SyntheticDraw, label_of, soft_label_of
from genseg.networks.generators import build_generator
from genseg.networks.generators.bridge import BrownianBridgeScheduler
from genseg.networks.generators.code import LATENT
from genseg.networks.generators.diffusion import LAST, STEPS, BridgeGenerator
from genseg.networks.generators.generator import NOISE_START, style_of
from genseg.networks.generators.joint import PRIOR
from genseg.networks.generators.synthseg import MEASURED
from genseg.randomness import stream
from genseg.runfolder import read_json
from genseg.settings import GENERATORS

OTHERS = [name for name in GENERATORS if name != "spade"]


@pytest.fixture(params=[*OTHERS, "diffusion, folded"])
def generator(request, monkeypatch) -> Iterator[str]:
    """The tests of the default generator build their states with this one."""
    name, _, folded = request.param.partition(", ")
    if folded:  # the small plans of the tests have three levels
        monkeypatch.setattr("genseg.networks.generators.diffusion.LARGE", 3)
    for module in (test_joint, test_hypergradient):
        monkeypatch.setattr(module, "built", partial(built, generator=name))
    with sdpa_kernel(SDPBackend.MATH):  # the oracle differentiates twice backwards, which no other kernel can
        yield name


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
    outcome = run_train(study, tmp_path / "run", 28, generator="pix2pix", method="genseg", segmenter="dynunet")
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "joint"])
def test_a_run_ends_synthesizes_and_leaves_its_generator_to_diffusers_where_that_can_read_it(data, tmp_path, name):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    outcome = run_train(study, tmp_path / "run", 20, generator=name, method="genseg+versemi", segmenter="dynunet")
    assert outcome.status == EXIT_OK and leftovers(outcome.run.path) == []
    assert outcome.run.generator.exists() == (name == "diffusion")
    if name == "diffusion":
        assert BridgeGenerator.from_pretrained(outcome.run.generator).config.dims == 2
    command = ["synthesize", str(outcome.run.path), "--out", str(tmp_path / "more"), "--count", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Learned kernels" not in done.output, "level 3 begins later"
    assert ("the kernels are as they began" in done.output) == (name == "joint"), "a bridge has none"


@pytest.mark.parametrize("filters", [[24, 48, 96], [8, 16], [32, 64, 128, 256, 512, 512, 512]])
def test_diffusion_is_built_for_every_width_and_number_of_levels_that_plans_have(filters):
    side = 2 ** (len(filters) - 1) * 2
    plan = small_plan(2, [side, side], filters=filters)
    network = build_generator(plan, 7, "diffusion")
    noise = network.draw_noise(1, plan.patch, torch.Generator())
    given = torch.rand(1, 7, side, side), torch.randn(1, 14), noise, torch.zeros(0, 0), torch.full((1,), NOISE_START)
    with torch.no_grad():
        assert network(*given)[0].shape == (1, 2, side, side)


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
    torch.nn.init.zeros_(network.encoder.moments.weight)
    torch.nn.init.zeros_(network.encoder.moments.bias)
    (told_nothing, *_), free = network.posterior(layout, real, noise)
    assert float(free) == 0 < float(cost) and torch.equal(told_nothing, noise[0])


def test_level3_widens_the_vaes_prior_and_not_what_is_known_of_a_real_image():
    torch.manual_seed(0)
    network = build_generator(small_plan(2, [32, 32]), 7, "vae")
    noise = network.draw_noise(2, [32, 32], torch.Generator().manual_seed(1))
    noise[0][:, 0] = 0  # the level's own noise, which has the same scale
    given = torch.rand(2, 7, 32, 32), torch.randn(2, 14), noise, torch.zeros(network.levels, len(network.kernel_sizes))
    real, start = torch.randn(2, 2, 32, 32), torch.full((network.levels + 1,), NOISE_START)
    wider = start.clone()
    wider[0] += 1
    with torch.no_grad():
        drawn, again = ([network(*given, at, image)[0] for at in (start, wider)] for image in (None, real))
    assert torch.equal(*again) and not torch.allclose(*drawn, atol=1e-3)


@pytest.mark.parametrize("method", ["supervised", "versemi"])
def test_a_generator_is_refused_where_the_method_has_none_before_the_scans_are_read(
    method, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("genseg.prepare.check_study", lambda *_: pytest.fail("reads the scans"))
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    command = ["train", str(study), "--out", str(tmp_path / "run"), "--method", method, "--generator", "vae"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == EXIT_BAD_INPUT and "--generator" in done.output and method in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("dims", "patch"), [(2, [64, 48]), (3, [16, 32, 24])])
def test_a_large_plan_is_folded_and_the_mask_keeps_its_finest_voxels(dims, patch):
    plan = small_plan(dims, patch, filters=[4, 8, 16, 32])
    network = build_generator(plan, 7, "diffusion")
    assert network.fold == 2
    x = torch.randn(2, 3, *patch)
    folded = network._folded(x)
    assert folded.shape == (2, 3 * 2**dims, *[side // 2 for side in patch])
    assert torch.equal(network._unfolded(folded), x)
    corner = folded[:, : 2**dims].amax(1)
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    assert torch.equal(corner, pool(x[:, :1], 2)[:, 0]), "the channels of a folded voxel are its neighbours"
    noise = network.draw_noise(2, patch, torch.Generator().manual_seed(1))
    given = torch.rand(2, 7, *patch), torch.randn(2, 14), noise, torch.zeros(0, 0), torch.full((1,), NOISE_START)
    assert network(*given)[0].shape == (2, 2, *patch)
    expected, _ = network(*given, torch.randn(2, 2, *patch))
    assert expected.shape == (2, 2, *patch)


def test_a_bridge_walked_in_steps_has_the_mean_and_the_spread_that_its_formula_gives():
    bridge, n = BrownianBridgeScheduler(variance=0.7), 200_000
    bridge.set_timesteps(5)
    rng = torch.Generator().manual_seed(0)
    image, end = torch.full((n,), -1.0), torch.full((n,), 3.0)
    sample = end
    for time in bridge.timesteps:
        share = time / 1000
        direct = bridge.add_noise(image, end, torch.randn(n, generator=rng), time.expand(n))
        mean, spread = float(-1 + 4 * share), float((2 * 0.7 * share * (1 - share)) ** 0.5)
        for of in (sample, direct):
            assert float(of.mean()) == pytest.approx(mean, abs=0.01)
            assert float(of.std()) == pytest.approx(spread, abs=0.01)
        sample = bridge.step(image, time, sample, torch.randn(n, generator=rng)).prev_sample
    assert torch.equal(sample, image), "the last step gives what the network expects"


def bridge_at_work(data) -> tuple[Joint, list[Tensor]]:
    """A state with a trained diffusion generator, and what it is given for two patches."""
    joint = built(prepared(data, "isic2017"), generator="diffusion").joint
    s = joint.synthesis
    for step in range(1, 31):
        joint.pretrain(s, step)
    _, layout = joint.sampler.load(joint.sampler.draw(2, stream(0, "patches")))
    shares = one_hot(layout, s.layouts).requires_grad_()
    noise = s.generator.draw_noise(2, joint.plan.patch, stream(0, "noise"))
    return joint, [shares, s.sources.styles.styles[:2], noise, s.meta.mixture, s.meta.noise_log]


def test_the_gradient_passes_through_the_last_steps_and_points_where_the_whole_one_does(data, monkeypatch):
    joint, given = bridge_at_work(data)
    generator, found = joint.synthesis.generator, {}
    for last in (LAST, STEPS):
        monkeypatch.setattr("genseg.networks.generators.diffusion.LAST", last)
        evaluated = []
        watch = generator.network.register_forward_hook(lambda _m, _i, out, seen=evaluated: seen.append(out))
        image, _ = generator(*given)
        watch.remove()
        assert [out.requires_grad for out in evaluated] == [False] * (STEPS - last) + [True] * last
        gradient = torch.autograd.grad(
            image.square().mean(), [given[0], *generator.network.parameters()], allow_unused=True
        )
        found[last] = image.detach(), gradient
    assert torch.equal(found[LAST][0], found[STEPS][0]), "only the gradient is cut"
    at_layout, at_weights = (cosine([found[LAST][1][i]], [found[STEPS][1][i]]) for i in (0, 1))
    print(f"cosine of the truncated gradient: at the layout {at_layout:.3f}, at the first weights {at_weights:.3f}")
    assert at_layout > 0.5 and at_weights > 0.5


def test_diffusers_saves_and_loads_the_generator(data, tmp_path):
    joint, given = bridge_at_work(data)
    joint.synthesis.generator.save(tmp_path / "generator", given[-1] + math.log(2))
    written = {file.name for file in (tmp_path / "generator").iterdir()}
    assert written == {"config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"}
    assert [file.name for file in tmp_path.iterdir()] == ["generator"]
    again = BridgeGenerator.from_pretrained(tmp_path / "generator")
    assert again.scheduler.variance == pytest.approx(4), "twice the noise that level 3 began with"
    with torch.no_grad():
        wider = joint.synthesis.generator(*given[:-1], given[-1] + math.log(2))[0]
        assert torch.allclose(again(*given)[0], wider, atol=1e-5), "what was learned is in the scheduler"


@pytest.mark.parametrize("dims", [2, 3])
def test_synthseg_begins_with_the_means_and_spreads_of_real_structures_and_follows_a_scans_brightness_and_contrast(
    dims,
):
    """Two structures side by side, 0.3 apart from scan to scan, in scans of any brightness and contrast."""
    rng = torch.Generator().manual_seed(0)
    generator = build_generator(small_plan(dims, [32] * dims, channels=1, filters=[8, 16, 32]), 2, "synthseg")
    layout = torch.zeros(MEASURED, 2, *[32] * dims)
    layout[:, 0, :16], layout[:, 1, 16:] = 1, 1

    def pairs(n: int) -> tuple[Tensor, Tensor]:
        wide = (n, 1, *[1] * dims)
        bright = 1 + 0.3 * torch.randn(wide, generator=rng)
        image = -layout[:, :1] + layout[:, 1:] * bright + 0.2 * torch.randn(layout[:, :1].shape, generator=rng)
        return image * (1 + torch.rand(wide, generator=rng)) + torch.randn(wide, generator=rng), layout

    generator.begin(pairs)
    (first,), (second,) = generator.mean.tolist()
    assert first == pytest.approx(-1, abs=0.05) and second == pytest.approx(1, abs=0.05), "in SDs of the scan"
    sd = generator.sd_log.detach().exp()
    assert float(sd.min()) > 0.1 and float(sd.max()) < 0.3
    real, _ = pairs(MEASURED)
    noise = generator.draw_noise(MEASURED, [32] * dims, rng)
    noise[0].zero_()
    given = layout, style_of(real), noise, torch.zeros(1, 3), torch.full((generator.levels + 1,), NOISE_START)
    with torch.no_grad():
        image, shown = generator(*given)
        darker, _ = generator(layout, style_of(0.5 * real - 3), *given[2:])
        still, _ = generator(layout, style_of(real), [0 * x for x in noise], *given[3:])
    assert torch.equal(shown, layout) and torch.allclose(darker, 0.5 * image - 3, atol=1e-3)
    for half in (slice(0, 12), slice(20, 32)):
        flat = still[:, :, half].flatten(1)
        assert torch.allclose(flat.mean(1), real[:, :, half].flatten(1).mean(1), atol=0.3)
        assert float(flat.std(1).max()) < 1e-4 < 0.05 < float(image[:, :, half].flatten(1).std(1).min())


def test_joint_makes_masks_again_and_new_ones_and_the_segmenter_is_told_what_the_image_shows(data):
    joint = built(prepared(data, "isic2017"), generator="joint").joint
    s, classes = joint.synthesis, joint.plan.classes
    for step in range(1, 121):
        joint.pretrain(s, step)
    draw = SyntheticDraw.make(8, joint.sampler, s.sources, s.generator, stream(1, "masks"))
    layout = draw.layout(joint.sampler, s.meta.plain_strength())

    def masks(way: float) -> Tensor:
        """The masks of codes with such a share of the prior."""
        noise_log = s.meta.noise_log.detach().clone()
        noise_log[0] = NOISE_START + math.log(way / (1 - way)) - math.log(PRIOR / (1 - PRIOR))
        with torch.no_grad():
            _, shown = s.generator(one_hot(layout, s.layouts), draw.style, draw.noise, s.meta.mixture, noise_log)
        return soft_label_of(shown, classes).argmax(1)

    def overlap(a: Tensor, b: Tensor) -> float:
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))

    drawn = label_of(layout, classes) > 0
    again, mixed, anyones = (overlap(masks(way) > 0, drawn) for way in (1e-6, PRIOR, 1 - 1e-6))
    print(f"Dice with the mask of the code: {again:.2f}, mixed with the prior {mixed:.2f}, the prior's {anyones:.2f}")
    assert again > 0.7 and again > mixed > anyones

    seen = []
    watch = s.generator.register_forward_hook(lambda _module, _given, made: seen.append(made))
    image, label, _ = joint._synthetic_pairs(s, 3, Stage(synthetic=True))
    watch.remove()
    ((_, shown),) = seen
    assert torch.equal(label, soft_label_of(shown, classes).argmax(1)) and image.shape[2:] == label.shape[1:]
    rng = stream(joint.seed, "synthetic", 3)
    warped = SyntheticDraw.make(len(label), joint.sampler, s.sources, s.generator, rng).layout(
        joint.sampler, s.meta.plain_strength()
    )
    assert not torch.equal(label, label_of(warped, classes)), "not only warped"
