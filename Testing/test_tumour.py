"""What masks teach in training."""

import pytest
import torch

from HARM3Logic.models.tumour import DIAMETER_SCALE, NOWHERE, RATIO_SCALE, Change, Radiomics, belief_of_case, mask_loss


def test_mask_loss_counts_only_known_masks():
    logit, tumour = torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 4, 4)
    tumour[0, :, :2, :2] = 1.0  # one cell of four is all tumour
    logit[0, 0] = torch.tensor([[30.0, -30.0], [-30.0, -30.0]])
    tumour[1] = torch.nan
    assert float(mask_loss(logit, tumour)) < 1e-6
    assert float(mask_loss(-logit, tumour)) == pytest.approx(30)
    assert float(mask_loss(logit[1:], tumour[1:])) == 0


def reader(diameter: float, intensity: float) -> Radiomics:
    """Says the same of every volume."""
    part = Radiomics(4)
    torch.nn.init.zeros_(part.read.weight)
    part.read.bias.data = torch.tensor([diameter, intensity])
    return part


def test_radiomics_are_the_diameter_and_the_mean_intensity_in_the_mask():
    volume, tumour = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    tumour[0, :2, :2, :2] = 1.0
    volume[0, :2, :2, :2], volume[0, 3] = 3.0, -9.0
    tokens = torch.randn(1, 5, 4)
    size, mean = DIAMETER_SCALE * (8 / 64) ** (1 / 3), 3.0
    assert reader(size, mean).loss(tokens, volume, tumour).item() == pytest.approx(0, abs=1e-6)
    assert reader(size + 2, mean).loss(tokens, volume, tumour).item() == pytest.approx(1.5)  # Huber beyond 1: distance less a half
    assert reader(size, mean - 2).loss(tokens, volume, tumour).item() == pytest.approx(1.5)


def test_a_vanished_tumour_has_a_size_and_no_intensity():
    volume, tumour = torch.ones(2, 4, 4, 4), torch.zeros(2, 4, 4, 4)
    tumour[1] = torch.nan  # no mask was given
    tokens = torch.randn(2, 5, 4)
    assert reader(0.0, 7.0).loss(tokens, volume, tumour).item() == 0
    assert reader(2.0, 7.0).loss(tokens, volume, tumour).item() == pytest.approx(1.5)


def changed(*said: float) -> Change:
    """Says the same of every case."""
    part = Change(4, sequences=2)
    torch.nn.init.zeros_(part.read.weight)
    part.read.bias.data = torch.tensor(said)
    return part


def two_timepoints() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cube of 4^3 voxels that therapy made one of 2^3, which is 3 on T1 and -1 on T2."""
    mri, tumour = torch.full((1, 2, 2, 4, 4, 4), 9.0), torch.zeros(1, 2, 4, 4, 4)
    tumour[0, 0], tumour[0, 1, :2, :2, :2] = 1.0, 1.0
    mri[0, 1, 0, :2, :2, :2], mri[0, 1, 1, :2, :2, :2] = 3.0, -1.0
    return mri, torch.ones(1, 2, 2, dtype=torch.bool), tumour


def test_change_is_the_ratio_of_diameters_and_the_mean_of_what_is_left_on_each_sequence():
    mri, present, tumour = two_timepoints()
    tokens, half = torch.randn(1, 5, 4), RATIO_SCALE * 0.5
    assert changed(half, 3.0, -1.0).loss(tokens, mri, present, tumour).item() == pytest.approx(0, abs=1e-6)
    for wrong in ((half + 2, 3.0, -1.0), (half, 1.0, -1.0), (half, 3.0, 1.0)):  # Huber beyond 1: distance less a half; of three numbers
        assert changed(*wrong).loss(tokens, mri, present, tumour).item() == pytest.approx(1.5 / 3)


def test_change_counts_what_can_be_known():
    mri, present, tumour = two_timepoints()
    tokens = torch.randn(1, 5, 4)

    def loss(*said: float) -> float:
        return changed(*said).loss(tokens, mri, present, tumour).item()

    present[0, 1, 1] = False  # no T2 after therapy: nothing to say of its brightness
    assert loss(RATIO_SCALE * 0.5, 3.0, 50.0) == pytest.approx(0, abs=1e-6)
    present[0, 0] = False  # nothing from before: no ratio
    assert loss(50.0, 3.0, 50.0) == pytest.approx(0, abs=1e-6)
    present[:] = True
    tumour[0, 1] = 0.0  # gone: a ratio of 0, and nothing is left that could be bright
    assert loss(0.0, 50.0, 50.0) == pytest.approx(0, abs=1e-6)
    assert loss(2.0, 50.0, 50.0) == pytest.approx(1.5 / 3)
    tumour[0, 1] = torch.nan  # no mask was given
    assert loss(50.0, 50.0, 50.0) == 0
    mri, present, tumour = two_timepoints()
    tumour[0, 0] = 0.0  # nothing was outlined that could have shrunk
    assert loss(50.0, 3.0, -1.0) == pytest.approx(0, abs=1e-6)


def test_belief_is_the_mean_of_the_sequences_there_are():
    present = torch.tensor([[[True, True], [False, True]], [[True, False], [False, False]]])
    t1 = torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1)  # case 0 pre, case 1 pre
    t2 = torch.tensor([3.0, -4.0]).reshape(2, 1, 1, 1)  # case 0 pre and post
    belief = belief_of_case([t1, t2], present)[..., 0, 0, 0]
    assert belief.tolist() == [[2.0, -4.0], [5.0, NOWHERE]]
