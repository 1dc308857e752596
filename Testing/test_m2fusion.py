"""What makes M2Fusion: fused parts at right angles, and a contrastive loss steered by the label."""

import dataclasses

import pytest
import torch
from test_models import FEATURES, some_batch, without
from torch import nn

from HARM3Logic.errors import MissingInput
from HARM3Logic.explain import explain
from HARM3Logic.models.m2fusion import M2Fusion, compact, contrast, orthogonal_fusion, orthogonal_part, paper
from HARM3Logic.models.resnet3d import TrunkConfig

T1 = ((0, 0), (1, 0))  # timepoint, sequence


def tiny(**changes):
    config = dataclasses.replace(
        compact(), trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16), width=32, gate=16, tile_features=FEATURES
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return M2Fusion(tiny()).eval()


def fused(model, batch):
    """What the head is given: MRI, what the slide adds, slide, what the MRI adds."""
    seen = []
    hook = model.head.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    model(batch)
    hook.remove()
    return seen[0].chunk(4, dim=1)


def test_fused_parts_are_at_right_angles(model):
    mri, from_slide, slide, from_mri = fused(model, some_batch())
    for part, other in ((from_slide, mri), (from_mri, slide)):
        angle = nn.functional.cosine_similarity(part, other)
        torch.testing.assert_close(angle, torch.zeros(3), rtol=0, atol=1e-5)
        assert part.norm(dim=1).min() > 1e-3
    along = slide - from_slide
    torch.testing.assert_close(nn.functional.cosine_similarity(along, mri).abs(), torch.ones(3), rtol=0, atol=1e-5)


def test_what_the_other_already_says_is_taken_out():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 8, generator=generator, dtype=torch.double)
    part = orthogonal_part(x, y)
    torch.testing.assert_close(orthogonal_part(x + 3 * y, y), part, rtol=0, atol=1e-6)
    torch.testing.assert_close(orthogonal_part(x, -7 * y), part, rtol=0, atol=1e-6)
    assert orthogonal_part(2 * y, y).norm() < 1e-6
    torch.testing.assert_close(orthogonal_part(x, torch.zeros_like(y)), x)  # a modality that is absent says nothing
    torch.testing.assert_close(orthogonal_fusion(x, y), torch.cat([x, orthogonal_part(y, x), y, part], dim=1))
    assert torch.autograd.gradcheck(orthogonal_fusion, (x.requires_grad_(), y.requires_grad_()))


def test_contrastive_loss_in_numbers():
    x = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[0.0, 5.0], [0.0, 1.0], [3.0, 4.0], [0.5, 0.0]])
    # distances of the unit vectors: sqrt 2, sqrt 2, sqrt 0.8, 0
    alike = torch.tensor([True, False, False, False])
    wanted = (2.0 + 0.0 + (1 - 0.8**0.5) ** 2 + 1.0) / 4
    assert float(contrast(x, y, alike, 1.0)) == pytest.approx(wanted, rel=1e-5)
    assert float(contrast(x[:0], y[:0], alike[:0], 1.0)) == 0
    x, y = torch.randn(2, 4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, alike, 3.0), (x, y))


def test_equal_vectors_have_a_finite_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    contrast(x, torch.ones(2, 3), torch.tensor([True, False]), 1.0).backward()
    assert torch.isfinite(x.grad).all()


def descended(x, y, alike, steps=200):
    """The distance after gradient descent on the loss alone."""
    x = x.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(contrast(x, y, alike, 1.0), x)
        x = (x - 0.1 * gradient).detach().requires_grad_()
    return (nn.functional.normalize(x.detach(), dim=1) - nn.functional.normalize(y, dim=1)).norm(dim=1)


def test_alike_pairs_are_pulled_and_others_pushed_as_far_as_the_margin():
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    x = torch.tensor([[0.8, 0.6], [0.8, 0.6], [-1.0, 0.1]])
    pulled, pushed, far = descended(x, y, torch.tensor([True, False, False]))
    assert pulled < 0.05
    assert pushed == pytest.approx(1.0, abs=0.05)
    assert far == pytest.approx(float((nn.functional.normalize(x[2:], dim=1) - y[2:]).norm()), abs=1e-6)  # already apart


def trained_distances(pairs):
    """Distances of what is compared, of cases labelled 0, 1, 0, before and after training on the contrastive loss alone."""
    torch.manual_seed(0)
    model = M2Fusion(tiny(pairs=pairs, dropout=0.0, contrast_weight=1.0)).train()
    batch = some_batch()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)

    def distance():
        times = model._times(batch)[0]
        if pairs == "timepoints":
            a, b = times[:, 0], times[:, 1]
        else:
            mri = model.join(times.flatten(1))
            a, b = mri[[0, 0, 1]], mri[[2, 1, 2]]
        return (nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)).norm(dim=1).detach()

    before = distance()
    for _ in range(25):
        optimiser.zero_grad()
        model(batch).losses["contrast"].backward()
        optimiser.step()
    return before, distance()


def test_a_response_drives_the_timepoints_apart_and_none_together():
    before, after = trained_distances("timepoints")
    assert after[1] > before[1]
    assert (after[[0, 2]] < before[[0, 2]] + 0.02).all()
    assert after[[0, 2]].mean() < 0.8 * after[1]


def test_cases_of_one_label_come_together_and_of_two_go_apart():
    before, after = trained_distances("cases")
    assert after[0] < before[0]
    assert (after[1:] > before[1:]).all()


def test_only_pairs_that_are_there_are_compared(model):
    model.train()
    batch = some_batch()
    some = without(batch, [(1, 0)])
    assert model(some).losses["contrast"] == 0  # no case has both timepoints
    first = dataclasses.replace(batch, mri_mask=torch.cat([batch.mri_mask[:1], some.mri_mask[1:]]))
    assert model(first).losses["contrast"] > 0
    assert "contrast" not in model(dataclasses.replace(batch, label=None)).losses
    assert not model.eval()(batch).losses


def test_one_sequence_is_read(model):
    batch = some_batch()
    other = batch.mri.clone()
    other[:, :, 1] = torch.randn_like(other[:, :, 1])
    assert torch.equal(model(batch).logit, model(dataclasses.replace(batch, mri=other)).logit)
    assert model.inputs() == ("t1_pre", "t1_post", "slide")
    second = M2Fusion(tiny(sequence="t2")).eval()
    assert not torch.equal(second(batch).logit, second(dataclasses.replace(batch, mri=other)).logit)
    assert second.inputs() == ("t2_pre", "t2_post", "slide")


def test_before_and_after_are_told_apart(model):
    batch = some_batch()
    assert (model(batch).logit - model(dataclasses.replace(batch, mri=batch.mri.flip(1))).logit).abs().min() > 1e-6


@pytest.mark.parametrize(("gone", "slide"), [((), True), (T1[:1], False), (T1[1:], True), (T1, False)])
def test_what_is_absent_is_not_read(model, gone, slide):
    batch = without(some_batch(), gone, slide)
    output = model(batch)
    assert torch.isfinite(output.logit).all()
    sums = output.attention["slide"].sum(dim=-1)
    torch.testing.assert_close(sums, torch.full_like(sums, 1.0 - slide))
    loud = batch.mri.clone()
    for t, s in gone:
        loud[:, t, s] = 50.0
    other = dataclasses.replace(batch, mri=loud, tiles=batch.tiles + 50.0 * ~batch.tile_mask[..., None])
    assert torch.equal(model(other).logit, output.logit)
    trained = model.train()(batch)  # a batch in which nobody has the input trains, too
    (trained.logit.sum() + trained.losses["contrast"]).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_without_a_slide_and_with_an_empty_bag_are_one(model):
    empty = without(some_batch(), slide=True)
    torch.testing.assert_close(model(empty).logit, model(dataclasses.replace(empty, tiles=None, tile_mask=None)).logit)


def test_a_case_with_nothing_to_read_is_refused(model):
    batch = without(some_batch(), T1, slide=True)
    with pytest.raises(MissingInput, match="none of t1_pre, t1_post, slide"):
        model(batch)
    with pytest.raises(MissingInput, match="5 features; the model needs 24"):
        model(dataclasses.replace(some_batch(), tiles=torch.zeros(3, 6, 5)))
    assert torch.isfinite(model.train()(batch).logit).all()  # augmentation may withhold everything


def test_explanation_shows_the_volumes_it_reads(model):
    explanation = explain(model, some_batch(cases=1))
    assert list(explanation.saliency) == ["t1_pre", "t1_post"]
    assert max(float(m.max()) for m in explanation.saliency.values()) > 0
    assert float(explanation.tile_attention.sum()) == pytest.approx(1, rel=1e-4)


def test_preset_sizes():
    def count(config):
        return sum(p.numel() for p in M2Fusion(config).parameters())

    assert count(compact()) <= 3_000_000
    assert 33e6 < count(paper()) < 37e6
    assert paper().width == 512
