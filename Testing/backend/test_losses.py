"""The segmenter's loss: against MONAI's and torch's own, and what a structure that is hard to find gets of it."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor

from genseg.methods.losses import deep_segmentation_loss, dice_agreement, one_hot, segmentation_loss, structure_dice
from genseg.schedule import BALANCE


def random_logits_and_target(dims: int, classes: int, softness: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    target = torch.randint(classes, (3, *[10] * dims))
    return torch.randn(3, classes, *[10] * dims) * softness, target


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_segmentation_loss_equals_monais_dice_and_cross_entropy(dims, classes):
    """Same smoothing in numerator and denominator, no background in Dice, each sample and structure alone."""
    logits, target = random_logits_and_target(dims, classes, 2.0)
    loss = DiceCELoss(
        softmax=True, to_onehot_y=True, include_background=False, smooth_nr=1e-5, smooth_dr=1e-5, reduction="mean"
    )
    ours = segmentation_loss(logits, target)
    assert ours.shape == (3,)
    assert float(ours.mean()) == pytest.approx(float(loss(logits, target[:, None])), rel=1e-5)
    alone = [float(loss(logits[i : i + 1], target[i : i + 1, None])) for i in range(3)]
    assert ours.tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_balanced_cross_entropy_is_half_or_all_torchs_with_weights_that_make_classes_count_alike(balance):
    logits, target = random_logits_and_target(2, 4, 2.0)
    target[target == 3] = 1  # class 3 is absent, class 1 frequent
    for i in range(3):
        one = logits[i : i + 1], target[i : i + 1]
        frequency = torch.bincount(one[1].flatten(), minlength=4)
        weight = torch.where(frequency > 0, 1 / frequency.clamp_min(1), 0)
        added = balance * (F.cross_entropy(*one, weight=weight) - F.cross_entropy(*one))
        assert float(segmentation_loss(*one, balance=balance)) == pytest.approx(
            float(segmentation_loss(*one) + added), rel=1e-5
        )


def test_a_structure_that_is_not_found_yet_is_looked_for_a_hundred_times_as_hard_while_classes_are_balanced():
    """Four voxels of 4096, given up with a probability of e⁻⁸: Dice has no slope there, the plain mean hardly any."""
    target = torch.zeros(1, 64, 64, dtype=torch.int64)
    target[0, :2, :2] = 1
    slopes = []
    for balance in (0.0, BALANCE):
        logits = torch.zeros(1, 2, 64, 64)
        logits[:, 1] = -8.0
        logits.requires_grad_()
        segmentation_loss(logits, target, balance=balance).sum().backward()
        slopes.append(float(-logits.grad[0, 1, :2, :2].sum()))
    assert slopes[1] > 100 * slopes[0] > 0


def test_hard_targets_and_their_one_hot_shares_give_the_same_loss():
    logits, target = random_logits_and_target(2, 3, 1.0)
    assert torch.allclose(segmentation_loss(logits, target), segmentation_loss(logits, one_hot(target, 3)))


def test_a_structure_absent_from_target_and_prediction_costs_nothing():
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    sure = torch.zeros(1, 2, 8, 8)
    sure[:, 0] = 40.0
    assert float(segmentation_loss(sure, target)) == pytest.approx(0, abs=1e-4)


def test_deep_supervision_weighs_each_coarser_head_half():
    logits, target = random_logits_and_target(2, 3, 1.0)
    heads = torch.stack([logits, logits * 0.5, -logits], 1)
    for balance in (0.0, BALANCE):
        parts = [segmentation_loss(h, target, balance=balance) for h in heads.unbind(1)]
        expected = (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75
        assert torch.allclose(deep_segmentation_loss(heads, target, balance), expected)
        assert torch.allclose(deep_segmentation_loss(logits, target, balance), parts[0])


def test_agreement_is_the_dice_of_the_hard_prediction():
    target = torch.zeros(3, 4, 4, dtype=torch.int64)
    target[0, :2], target[1, :2] = 1, 1
    predicted = torch.zeros_like(target)
    predicted[0, :2], predicted[1, 1:3] = 1, 1
    assert dice_agreement(one_hot(predicted, 2), target).tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_the_dice_of_each_structure_is_that_of_the_batch_and_unknown_where_it_is_absent():
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, :2], target[1, 0] = 1, 2
    predicted = torch.zeros_like(target)
    predicted[:, 1:3] = 1
    dice = structure_dice(one_hot(predicted, 4), target).tolist()
    assert dice[:2] == pytest.approx([2 * 4 / (8 + 16), 0.0]) and dice[2] != dice[2]
