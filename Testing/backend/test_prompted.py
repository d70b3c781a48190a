"""The prompted segmenter: each prompt's head is what the controller tells, and nothing else of the network changes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from method_rig import built, prepared
from torch import Tensor
from torch.func import functional_call, jvp

from genseg.events import EventLog
from genseg.labels import LabelTable
from genseg.networks.prompted import RARE, WIDTH, PromptedSegmenter, prompted_dynunet
from genseg.startingmodel import StartingModel, _plain, channels_of


def network(dims: int, tasks: list[int], dynamic: bool = True, deep: bool = False) -> PromptedSegmenter:
    levels = 4 if deep else 3
    made = prompted_dynunet(
        prompts=4, tasks=tasks, dynamic=dynamic, spatial_dims=dims, in_channels=2, out_channels=4,
        kernel_size=[3] * levels, strides=[1] + [2] * (levels - 1), upsample_kernel_size=[2] * (levels - 1),
        filters=[6, 8, 10, 12][:levels], norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": False, "negative_slope": 0.01}), deep_supervision=deep, deep_supr_num=1,
    )  # fmt: skip
    if dynamic:  # as after some training: the controller listens to the image, too
        torch.nn.init.normal_(made.head.of_image.weight)
        torch.nn.init.normal_(made.head.of_prompt)
    return made


def ask(net: PromptedSegmenter, image: Tensor, prompts: list[int]) -> Tensor:
    (logits,) = net.several(image, [(len(image), prompts)])
    return logits


@pytest.mark.parametrize(("dims", "side"), [(2, 16), (3, 8)])
def test_a_head_is_an_ordinary_layer_and_three_convolutions_told_by_prompt_and_image(dims, side):
    torch.manual_seed(0)
    net = network(dims, [0, 2])
    image = torch.randn(2, 2, *[side] * dims)
    features, bottleneck, _ = net.backbone(image)
    found = ask(net, image, [3, 1])
    convolve = F.conv2d if dims == 2 else F.conv3d
    for sample in range(2):
        pooled = bottleneck[sample].flatten(1).mean(1)
        pooled = (pooled - pooled.mean()) / len(pooled)
        for place, prompt in enumerate([3, 1]):
            told = net.head.of_image.weight @ pooled + net.head.of_prompt[prompt]
            w0, b0, w1, b1, w2, b2, w3 = told.split(net.head.sizes)

            def layer(x: Tensor, weight: Tensor, bias: Tensor | None, out: int) -> Tensor:
                return convolve(x, weight.view(out, -1, *[1] * dims), bias)

            x = F.leaky_relu(net.head.reduce(features[sample : sample + 1]), 0.01)
            x = F.leaky_relu(layer(x, w1, b1, WIDTH), 0.01)
            x = layer(F.leaky_relu(layer(x, w2, b2, WIDTH), 0.01), w3, None, 1)
            wanted = layer(features[sample : sample + 1], w0, b0, 1) + x
            assert torch.allclose(found[sample, place], wanted[0, 0], atol=1e-4)


def test_at_first_a_head_is_an_ordinary_layer_that_takes_structures_to_be_rare():
    torch.manual_seed(0)
    net = prompted_dynunet(**_fresh(2))
    image = torch.randn(2, 2, 16, 16)
    features = net.backbone(image)[0]
    weight, bias = net.head.of_prompt[:, :6], net.head.of_prompt[:, 6]
    assert bias.tolist() == [RARE] * 4
    wanted = torch.einsum("pf,nfyx->npyx", weight, features) + bias.view(1, -1, 1, 1)
    assert torch.allclose(ask(net, image, [0, 1, 2, 3]), wanted, atol=1e-5)


def _fresh(dims: int) -> dict:
    return {
        "prompts": 4, "tasks": [0, 1, 2], "dynamic": True, "spatial_dims": dims, "in_channels": 2, "out_channels": 4,
        "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [6, 8, 10],
    }  # fmt: skip


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_logits_of_a_prompt_do_not_depend_on_which_others_are_asked(dynamic):
    net = network(2, [0, 1, 2], dynamic)
    image = torch.randn(2, 2, 16, 16)
    together = ask(net, image, [0, 1, 2, 3])
    for prompt in range(4):
        assert torch.allclose(ask(net, image, [prompt])[:, 0], together[:, prompt], atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_the_network_answers_for_its_studys_structures_with_a_background_of_0():
    net = network(2, [2, 0])
    image = torch.randn(1, 2, 16, 16)
    logits = net(image)
    assert logits.shape == (1, 3, 16, 16) and not logits[:, 0].any()
    assert torch.allclose(logits[:, 1:], ask(net, image, [2, 0]), atol=1e-6)
    assert net.any_foreground == 3


def test_asked_for_another_study_it_is_the_same_network():
    net = network(2, [0, 1])
    other = net.asked([2])
    mine, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)
    image = torch.randn(1, 2, 16, 16)
    assert torch.equal(other(image)[:, 1], ask(net, image, [2])[:, 0])


@pytest.mark.parametrize("deep", [True, False])
def test_one_pass_answers_each_part_of_a_batch_as_a_pass_of_its_own_does(deep):
    net = network(2, [2, 0], deep=deep)
    image = torch.randn(5, 2, 32, 32)
    found = net.several(image, [(2, None), (1, [3]), (2, [1, 3])])
    wanted = [net(image[:2]), ask(net, image[2:3], [3]), ask(net, image[3:], [1, 3])]
    assert [x.shape for x in found] == [x.shape for x in wanted]
    for x, y in zip(found, wanted, strict=True):
        assert torch.allclose(x, y, atol=1e-5 * float(y.detach().abs().max()))


def test_deep_supervision_gives_coarser_heads_of_the_studys_structures_in_training_only():
    net = network(2, [2], deep=True)
    image = torch.randn(2, 2, 32, 32)
    assert net(image).shape == (2, 2, 2, 32, 32)
    assert torch.equal(net(image)[:, 0], net.eval()(image))
    assert net(image).shape == (2, 2, 32, 32)


@pytest.mark.parametrize(("dims", "side"), [(2, 16), (3, 8)])
def test_forward_mode_goes_through_the_head_and_backwards_once_more(dims, side):
    """What level 3 needs: the derivative of ⟨∇L, w⟩ by the image equals that of double backward."""
    torch.manual_seed(0)
    net = network(dims, [0, 1]).double()
    head = {name: p.detach() for name, p in net.head.named_parameters()}
    features = torch.rand(2, 6, *[side] * dims, dtype=torch.float64).requires_grad_()
    bottleneck = torch.rand(2, 10, *[2] * dims, dtype=torch.float64)
    along = {name: torch.randn_like(p) for name, p in head.items()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return (functional_call(net.head, weights, (features, bottleneck, [0, 1])) ** 2).mean()

    slope = jvp(loss, (head,), (along,))[1]
    leaves = {name: p.clone().requires_grad_() for name, p in head.items()}
    gradient = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    wanted = sum((g * along[name]).sum() for g, name in zip(gradient, leaves, strict=True))
    assert float(slope.detach()) == pytest.approx(float(wanted.detach()), rel=1e-8)
    ours, theirs = (torch.autograd.grad(value, features, retain_graph=True)[0] for value in (slope, wanted))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_a_plain_model_is_a_start_for_a_prompted_one(data, tmp_path, monkeypatch):
    ready = prepared(data, "isic2017")
    plain = built(ready, "supervised").joint.segmenter

    class Source:
        network, plan, table = plain, ready.plan, ready.study.labels

    monkeypatch.setattr("genseg.startingmodel.Predictor.load", lambda *given: Source())
    state = built(ready, "versemi", seed=5)
    heard: list = []
    StartingModel.load(Path(tmp_path)).give(state, EventLog([heard.append]))
    mine, theirs = dict(state.joint.segmenter.named_parameters()), dict(plain.named_parameters())
    taken = [name for name in mine if name.startswith("backbone.")]
    assert taken and all(torch.equal(mine[name], theirs[name.removeprefix("backbone.")]) for name in taken)
    assert [event.code for event in heard] == ["init_partly"]


@pytest.mark.parametrize("method", ["supervised", "versemi"])
def test_a_structure_begins_with_what_was_learned_of_the_one_of_its_name(data, method):
    ready = prepared(data, "acdc", 2)
    giver, taker = built(ready, method).joint, built(ready, method, seed=5).joint
    table = ready.study.labels
    other = LabelTable.from_names({1: table.labels[3].name.upper(), 2: "tumour", 3: table.labels[1].name})
    weights = {_plain(name): p for name, p in giver.segmenter.state_dict().items()}
    start = StartingModel(Path("m"), giver.plan, weights, [], channels_of(giver.plan, table))
    name, first = ("head.of_prompt", 0) if method == "versemi" else ("output_block.conv.conv.weight", 1)
    before = dict(taker.segmenter.named_parameters())[name].detach().clone()
    anew = start.copy_to(taker.segmenter, taker.plan, channels_of(taker.plan, other))
    after, known = dict(taker.segmenter.named_parameters())[name], weights[name]
    assert torch.equal(after[first], known[first + 2]) and torch.equal(after[first + 2], known[first])
    assert torch.equal(after[first + 1], before[first + 1]), "nothing is known of a tumour"
    whole = 3 if method == "versemi" else 0  # any foreground, the background
    assert torch.equal(after[whole], known[whole]) and name in anew
