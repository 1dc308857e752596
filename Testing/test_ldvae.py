"""LD-VAE against golden numbers of equations 1, 4 and 5, and what its losses do with missing timepoints."""

import dataclasses

import numpy as np
import pytest
import torch

from HARM3Logic.errors import MissingInput
from HARM3Logic.models import ldvae
from HARM3Logic.models.ldvae import LDVAE, LdvaeConfig

TIMES = ("pre", "post")


@pytest.fixture(scope="module")
def golden(parity):
    with np.load(parity / "ldvae_losses.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_equation_1(golden):
    for t in TIMES:
        mean, log_variance, noise = (golden[f"input.{n}_{t}"].double() for n in ("mu", "logvar", "eps"))
        close(ldvae.reparametrise(mean, log_variance, noise), golden[f"output.z_{t}"])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equation_4_reconstruction(golden, reduction):
    total = 0
    for i in TIMES:
        for j in TIMES:
            x, made = golden[f"input.X_{i}"].double(), golden[f"input.recon_{i}_from_{j}"].double()
            close(ldvae.squared_error(x, made, reduction).mean(), golden[f"output.rec.{i}_from_{j}.{reduction}"])
            normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
            total = total + ldvae.squared_error(normed, made, reduction).mean()
    close(total, golden[f"output.rec_ln.total.{reduction}"])


@pytest.mark.parametrize("reduction", ["mean", "sum_latent", "sum_all"])
def test_equation_4_divergence(golden, reduction):
    for t in TIMES:
        got = ldvae.kl_divergence(golden[f"input.mu_{t}"].double(), golden[f"input.logvar_{t}"].double(), reduction).mean()
        close(got, golden[f"output.kl.{t}.{reduction}"])


@pytest.mark.parametrize("per", ["token", "flat"])
@pytest.mark.parametrize("form", ["signed", "abs", "relu", "label_aware"])
@pytest.mark.parametrize("balance", [0, 0.5, 1])
def test_equation_5(golden, form, per, balance):
    parts = [golden[f"input.{kind}_{t}"].double() for kind in ("varia", "inher") for t in TIMES]
    got = ldvae.contrast(*parts, LdvaeConfig(cos=form, cos_per=per, balance=float(balance)), golden["input.label"]).mean()
    close(got, golden[f"output.l_contra.{per}.{form}.lambda{balance}"])


def small(**changes):
    torch.manual_seed(0)
    config = dataclasses.replace(LdvaeConfig(width=8, hidden=8, latent=4), **changes)
    return LDVAE(config).train(), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 4)


def losses(model, x, noise, present):
    return model(x, torch.tensor(present), None, noise)[1]


def test_module_losses_are_the_equations():
    model, x, noise = small(kl_weight=0.5, kl_scope=4, recon_weight=1.0, contra_weight=1.0)
    got = losses(model, x, noise, [[True, True]] * 3)
    with torch.no_grad():
        target = model.norm(x)
        z = [branch.latent(target[:, t], noise[:, t]) for t, branch in enumerate((model.pre, model.post))]
        made = [[branch.decode(z[j].inherent, z[i].variant) for j in (0, 1)] for i, branch in enumerate((model.pre, model.post))]
        recon = sum(ldvae.squared_error(target[:, i], made[i][j], "mean").mean() for i in (0, 1) for j in (0, 1))
        kl = sum(ldvae.kl_divergence(p.mean, p.log_variance, "mean").mean() for p in z)
    torch.testing.assert_close(got["recon"], recon)
    torch.testing.assert_close(got["kl"], 0.5 * 2 * kl)  # scope 4 counts every term twice


def test_a_missing_timepoint_adds_only_its_own_terms():
    model, x, noise = small()
    alone = losses(model, x[:1], noise[:1], [[True, False]])
    changed = x.clone()
    changed[0, 1] = 100.0  # what stands in for the missing volume must not matter
    assert losses(model, changed[:1], noise[:1], [[True, False]])["recon"] == alone["recon"]
    assert alone["contra"] == 0
    both = losses(model, x, noise, [[True, True]] * 3)
    assert both["contra"] > 0


def test_losses_leave_the_trunk_alone_unless_asked():
    for reach in (False, True):
        model, x, noise = small(losses_reach_trunk=reach)
        x.requires_grad_()
        _, terms = model(x, torch.ones(3, 2, dtype=torch.bool), None, noise)
        sum(terms.values()).backward()
        assert (x.grad is not None and x.grad.abs().sum() > 0) == reach


def test_label_aware_needs_labels():
    model, x, noise = small(cos="label_aware")
    with pytest.raises(MissingInput, match="label"):
        losses(model, x, noise, [[True, True]] * 3)


def test_evaluation_takes_the_mean_and_no_losses():
    model, x, _ = small()
    first, terms = model.eval()(x, torch.ones(3, 2, dtype=torch.bool), None, None)
    assert not terms
    assert torch.equal(first, model(x, torch.ones(3, 2, dtype=torch.bool), None, None)[0])


def test_conv1d_sees_neighbours_and_token_mlp_does_not():
    for kind, moves in (("token_mlp", False), ("conv1d", True)):
        model, x, _ = small(kind=kind)
        model.eval()
        present = torch.ones(3, 2, dtype=torch.bool)
        before = model(x, present, None, None)[0][:, :, 0]
        x[:, :, 1] += 1
        assert torch.equal(before, model(x, present, None, None)[0][:, :, 0]) != moves


def test_each_timepoint_hears_of_the_other_only_where_they_are_compared():
    for compare in (False, True):
        model, x, _ = small(compare=compare)
        model.eval()
        both, alone = torch.tensor([[True, True]] * 3), torch.tensor([[False, True]] * 3)
        before = model(x, both, None, None)[0]
        changed = x.clone()
        changed[:, 0, 2] += torch.randn(3, 8)  # one token of the pre-treatment volume
        after = model(changed, both, None, None)[0]
        same = (before == after).all(dim=-1).all(dim=0)
        assert not same[0, 2] and same[:, [0, 1, 3, 4]].all()  # token by token
        assert same[1, 2] == (not compare)
        assert torch.equal(model(x, alone, None, None)[0][:, 1], model(changed, alone, None, None)[0][:, 1])  # what is missing says nothing


def test_the_comparison_adds_no_loss_of_its_own():
    found = [losses(model, x, noise, [[True, True]] * 3) for model, x, noise in (small(compare=on) for on in (False, True))]
    assert found[0].keys() == found[1].keys() == {"recon", "kl", "contra"}
