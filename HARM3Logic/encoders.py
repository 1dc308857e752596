"""The tile encoders known by name: what each is, how its tiles are prepared, and where its weights are asked for.

Data alone: nothing is loaded and nothing downloaded. The weights are their makers'; none but the default's comes with the program.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

Pooling = Literal["cls", "mean", "cls+mean", "model"]
Names = Literal["timm", "dinov2", "coca", "swin"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HUB = "https://huggingface.co/"
RESEARCH = "CC-BY-NC-ND-4.0 (no commercial use)"


@dataclass(frozen=True)
class EncoderEntry:
    """What must be known of an encoder besides its weights.

    Args:
        timm_model: name of `timm.create_model`, or of one of our own parts in `encoder_weights`.
        timm_kwargs: arguments of `timm.create_model` beside the name; must fit into JSON.
        mean: subtracted from RGB / 255, then divided by `std`; 0 and 1 leave RGB / 255.
        pooling: `cls` token, `mean` of the patch tokens, both one after the other, or what the `model` itself returns.
        features: length of a tile's feature vector.
        mpp: µm per pixel of the tiles it was made for.
    """

    name: str
    timm_model: str
    timm_kwargs: dict[str, Any]
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    features: int
    licence: str
    mpp: float = 0.5

    @classmethod
    def from_json(cls, text: str) -> EncoderEntry:
        """The entry in a file's metadata.

        Raises:
            ValueError: the text is not an entry.
        """
        data = json.loads(text)
        names = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        if not isinstance(data, dict) or not needed <= set(data) <= names or data["pooling"] not in get_args(Pooling):
            raise ValueError("not an encoder entry")
        data["mean"], data["std"] = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
        if len(data["mean"]) != 3 or len(data["std"]) != 3 or not all(data["std"]):
            raise ValueError("mean and std must have three values, std not 0")
        for key, kind in (("size_px", int), ("features", int), ("mpp", float)):
            value = float(data.get(key, 1))
            if not (math.isfinite(value) and value > 0 and kind(value) == value):
                raise ValueError(f"{key} must be above 0")
        return cls(**data)


@dataclass(frozen=True)
class Known:
    """An encoder known by name.

    Args:
        parameters: number of weights, millions.
        url: where its weights are asked for.
        names: how its file calls the weights.
    """

    entry: EncoderEntry
    parameters: float
    url: str
    names: Names = "timm"


def _known(
    name: str,
    timm_model: str,
    timm_kwargs: dict[str, Any],
    features: int,
    parameters: float,
    page: str,
    *,
    look: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET,
    pooling: Pooling = "cls",
    licence: str = RESEARCH,
    size_px: int = 224,
    mpp: float = 0.5,
    names: Names = "timm",
) -> Known:
    url = page if page.startswith("https") else HUB + page
    return Known(EncoderEntry(name, timm_model, timm_kwargs, size_px, *look, pooling, features, licence, mpp), parameters, url, names)


SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}

_ENTRIES = (
    # Chen et al. 2024, doi 10.1038/s41591-024-02857-3; github.com/mahmoodlab/UNI (README, get_encoder.py)
    _known("uni", "vit_large_patch16_224", {"num_classes": 0, "init_values": 1e-5}, 1024, 303.4, "MahmoodLab/UNI"),
    # model card of MahmoodLab/UNI2-h; the same arguments in github.com/mahmoodlab/TRIDENT, patch_encoder_models/load.py
    _known(
        "uni2-h",
        "vit_giant_patch14_224",
        {
            "num_classes": 0, "img_size": 224, "embed_dim": 1536, "depth": 24, "num_heads": 24, "init_values": 1e-5,
            "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8, **SWIGLU,
        },
        1536, 681.4, "MahmoodLab/UNI2-h",
    ),
    # Zimmermann et al. 2024, arXiv:2408.00738; model card: class token, then the mean of the patch tokens behind four registers
    _known(
        "virchow2",
        "vit_huge_patch14_224",
        {"num_classes": 0, "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": "", **SWIGLU},
        2560, 631.2, "paige-ai/Virchow2", pooling="cls+mean",
    ),
    # github.com/bioptimus/releases, models/h-optimus/v0/README.md
    _known(
        "h-optimus-0", "vit_giant_patch14_reg4_dinov2", {"num_classes": 0, "img_size": 224, "init_values": 1e-5}, 1536, 1134.8,
        "bioptimus/H-optimus-0", look=BIOPTIMUS, licence="Apache-2.0",
    ),
    # model card of bioptimus/H-optimus-1: H-optimus-0's network, other weights
    _known(
        "h-optimus-1", "vit_giant_patch14_reg4_dinov2", {"num_classes": 0, "img_size": 224, "init_values": 1e-5}, 1536, 1134.8,
        "bioptimus/H-optimus-1", look=BIOPTIMUS,
    ),
    # Xu et al. 2024, doi 10.1038/s41586-024-07441-w; config of the model card. Its recipe cuts the middle 224 of 256 px at 0.5 µm/px
    _known(
        "prov-gigapath",
        "vit_giant_patch14_dinov2",
        {"num_classes": 0, "img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, "init_values": 1e-5},
        1536, 1135.0, "prov-gigapath/prov-gigapath", licence="Apache-2.0 (research only, by its model card)",
    ),
    # Filiot et al. 2024, arXiv:2409.09173; a transformers Dinov2Model
    _known(
        "phikon-v2", "vit_large_patch16_224", {"num_classes": 0, "init_values": 1.0}, 1024, 303.4, "owkin/phikon-v2",
        licence="Owkin non-commercial licence", names="dinov2",
    ),
    # Lu et al. 2024, doi 10.1038/s41591-024-02856-4; github.com/mahmoodlab/CONCH (encode_image without projection, not normalised).
    # Its makers take 512 px at 20x and shrink them to 448 (TRIDENT, README)
    _known(
        "conch", "conch_image", {}, 512, 87.6, "MahmoodLab/CONCH", look=CLIP, pooling="model", size_px=448, mpp=0.5 * 512 / 448,
        names="coca",
    ),
    # Wang et al. 2022, doi 10.1016/j.media.2022.102559; github.com/Xiyue-Wang/TransPath (ctran.py; 1.0 µm/px advised)
    _known(
        "ctranspath", "swin_conv_stem", {"num_classes": 0}, 768, 27.5, "https://github.com/Xiyue-Wang/TransPath", pooling="model",
        licence="GPL-3.0", mpp=1.0, names="swin",
    ),
)  # fmt: skip

KNOWN = {known.entry.name: known for known in _ENTRIES}


def as_table(shipped: Sequence[Known]) -> str:
    """The encoders for a reader.

    Args:
        shipped: those that come with the program.
    """
    rows = [("name", "µm/px", "tile px", "features", "weights", "licence", "where to get it")]
    for known in (*shipped, *KNOWN.values()):
        entry = known.entry
        count = f"{known.parameters:.0f} M"
        place = "comes with the program" if known in shipped else known.url
        rows.append((entry.name, f"{entry.mpp:.3g}", str(entry.size_px), str(entry.features), count, entry.licence, place))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    numbers = range(1, 5)
    lines = (
        "  ".join(f"{v:>{w}}" if k in numbers else f"{v:<{w}}" for k, (v, w) in enumerate(zip(row, widths, strict=True))) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
