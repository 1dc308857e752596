"""Low-rank adaptation of a pretrained trunk, by peft: few parameters learn, all others stay as they are.

    W x  becomes  W x + (alpha / rank) B A x        B = 0 at the start: the model is what it was

Only training needs this module; a merged model is an ordinary one and its checkpoint knows nothing of it.

Source: Hu et al. 2022. Rank, alpha and layers are ours; the GIST abstract says "low-rank adaptation" alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from HARM3Logic.errors import BadOption

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # attention and MLP of a timm block


@dataclass(frozen=True)
class LoraSettings:
    """Args:
    alpha: the update counts alpha / rank times.
    layers: of each block, by the end of their names.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    layers: tuple[str, ...] = LAYERS


@dataclass(frozen=True)
class Share:
    """How many parameters learn."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters learn ({self.trainable / self.total:.2%})"


def adapt(trunk: nn.Module, settings: LoraSettings = LoraSettings()) -> Share:
    """Freeze a trunk and give the named layers their low-rank updates, in place; what lies outside the trunk is not touched.

    Raises:
        BadOption: the rank is no rank, or the trunk has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds and is needed by those who adapt alone

    names = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear) and name.endswith(settings.layers)]
    if settings.rank < 1 or not names:
        raise BadOption(
            f"LoRA has the rank {settings.rank} and finds {len(names)} layers called {', '.join(settings.layers)}; both are wanted.",
            "Correct the settings.",
        )
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names, bias="none")
    inject_adapter_in_model(config, trunk)  # freezes all else
    return share(trunk)


def share(model: nn.Module) -> Share:
    """The parameters of a model that learn."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Share(sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes))


def merge(model: nn.Module) -> nn.Module:
    """The model with its updates added to the weights and every LoRA layer an ordinary one again, in place; all parameters can learn."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    return model.requires_grad_(True)
