"""The weights of tile encoders: read from a file without executing it, named as timm names them, and put into the network.

    FILE.safetensors | .bin | .pt | .pth --read_weights--> state dict --renamed--> timm's names --build--> network

The only home of timm among the slides' modules. An encoder of ours is one `.safetensors` file with an `EncoderEntry` in its metadata.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from HARM3Logic.encoders import EncoderEntry, Names
from HARM3Logic.errors import BadCheckpoint
from HARM3Logic.writing import whole

KEY = "tile_encoder"  # where the entry lies in the file's metadata
WRAPPINGS = ("state_dict", "model_state_dict", "model")  # under which training programs keep the weights
DINOV2 = (  # transformers to timm
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp)\.", r"blocks.\1.\2."),
    (r"layernorm\.", "norm."),
)
NEWER = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}  # transformers 5
QKV = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")


class ConvStem(nn.Module):
    """The first layer of CTransPath: 224 px to 56 in two strided convolutions, where Swin has one of 4 x 4.

    Source: Wang et al. 2022, doi 10.1016/j.media.2022.102559; layers as in the official ctran.py. Re-implementation.
    """

    def __init__(self, img_size: int | tuple[int, int], embed_dim: int, norm_layer: Callable[[int], nn.Module], **_: Any) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // 4, width // 4)
        first, second = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, 2, 1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Conv2d(second, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))  # n h w c, as timm's Swin reads them
        return out


class Pooler(nn.Module):
    """One vector of all tokens by attention of a learnt query."""

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.attn = nn.MultiheadAttention(width, heads, kdim=token_width, vdim=token_width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(token_width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        out: Tensor = self.attn(query, tokens, tokens, need_weights=False)[0][:, 0]
        return out


class ConchImage(nn.Module):
    """The image tower of CONCH up to what its makers use for slides: pooled, before the projection onto text.

    Source: Lu et al. 2024, doi 10.1038/s41591-024-02856-4; layers as in the official vision_tower.py. Re-implementation.
    """

    def __init__(self, trunk: nn.Module, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.trunk = trunk
        token_width: int = trunk.num_features  # type: ignore[assignment]
        self.attn_pool_contrast = Pooler(width, token_width, heads)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.trunk.forward_features(pixels)  # type: ignore[operator]
        out: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens))
        return out


def make(entry: EncoderEntry) -> nn.Module:
    """The network of an entry, with weights of chance; nothing is downloaded.

    Raises:
        RuntimeError, TypeError, ValueError, AssertionError: timm's and torch's answers to wrong entries.
    """
    import timm  # here, for it takes seconds
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]

    kwargs = dict(entry.timm_kwargs)
    if kwargs.get("mlp_layer") == "SwiGLUPacked":
        kwargs["mlp_layer"] = SwiGLUPacked
    if entry.timm_model == "conch_image":
        return ConchImage(timm.create_model("vit_base_patch16_224", num_classes=0, img_size=entry.size_px, **kwargs))
    if entry.timm_model == "swin_conv_stem":
        return _module(timm.create_model("swin_tiny_patch4_window7_224", embed_layer=ConvStem, **kwargs))
    return _module(timm.create_model(entry.timm_model, pretrained=False, **kwargs))


def _module(made: Any) -> nn.Module:
    found: nn.Module = made
    return found


def build(entry: EncoderEntry, weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network of an entry with its weights.

    Raises:
        BadCheckpoint: timm does not know the model, or the weights do not fit it; the first of them that do not are named.
    """
    try:
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = make(entry)
        if misfit := _misfit(model.state_dict(), weights):
            raise BadCheckpoint(f"weights in {where!r} do not fit {entry.timm_model}: {misfit}.", f"Give the weights of {entry.name}.")
        if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in model.state_dict()):
            model = make(entry)  # the network computes constants that no file holds
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise BadCheckpoint(
            f"weights in {where!r} do not fit {entry.timm_model} ({str(error).splitlines()[0]}).", "Check its entry."
        ) from error
    return model


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first weights that do not fit, in words; empty where all do."""
    missing = next((name for name in wanted if name not in given), None)
    unexpected = next((name for name in given if name not in wanted), None)
    words = [f"{missing!r} is missing"] if missing else []
    words += [f"{unexpected!r} is none of its weights"] if unexpected else []
    for name in wanted if not words else ():
        if wanted[name].shape != given[name].shape:
            return f"{name!r} has the shape {tuple(given[name].shape)} where {tuple(wanted[name].shape)} is wanted"
    return " and ".join(words)


def renamed(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Weights by timm's names, without those the encoder has no use for.

    Args:
        names: whose names they have: `timm`'s own, transformers' `dinov2`, open_clip's `coca` (image tower), timm 0.5's `swin`.
    """
    if weights and all(name.startswith("module.") for name in weights):  # of several GPUs
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if names == "dinov2":
        return _from_dinov2({name.removeprefix("dinov2."): value for name, value in weights.items()})
    if names == "coca":
        left_out = ("proj_contrast", "attn_pool_caption.", "ln_caption.")
        image = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
        return {name: value for name, value in image.items() if not name.startswith(left_out)}
    if names == "swin":
        constants = ("attn_mask", "relative_position_index")
        # Trap: since 0.9 timm shrinks the picture at the beginning of a stage, not at the end of the one before
        return {
            re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name): value
            for name, value in weights.items()
            if not name.endswith(constants) and not name.startswith("head.")
        }
    return dict(weights)


def _from_dinov2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {re.sub(r"(?<=\.attention\.)[qkvo]_proj", lambda part: NEWER[part[0]], name): value for name, value in weights.items()}
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == "embeddings.mask_token" or re.search(r"attention\.attention\.(key|value)\.", name):
            continue
        if match := QKV.fullmatch(name):
            parts = [weights.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            if all(part is not None for part in parts):
                found[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([part for part in parts if part is not None])
            continue
        found[next((re.sub(old, new, name) for old, new in DINOV2 if re.match(old, name)), name)] = value
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file as 32-bit floats, by the names it gives them; nothing in it is executed.

    Raises:
        BadCheckpoint: the file is missing, damaged, or holds more than plain values and tensors.
    """
    if not path.is_file():
        raise BadCheckpoint(f"there is no weight file {str(path)!r}.", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: _wide(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  not a dictionary
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # the safe reader names what it will not make
        raise BadCheckpoint(
            f"weights {path.name!r} are damaged, or hold more than tensors; what they hold is not executed.",
            "Save the state_dict() alone with torch.save and give that.",
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"weights {str(path)!r} cannot be read ({type(error).__name__}).", "Get the file again.") from error
    while isinstance(found, Mapping) and (inner := next((name for name in WRAPPINGS if isinstance(found.get(name), Mapping)), None)):
        found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadCheckpoint(f"weights {path.name!r} hold no state dict.", "Save model.state_dict() with torch.save and give that.")
    return {str(name): _wide(value) for name, value in found.items()}


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value  # a counter stays a whole number


def read_entry(path: Path) -> EncoderEntry:
    """What an encoder file says of itself.

    Raises:
        BadCheckpoint: the file is missing, broken or no tile encoder.
    """
    try:
        with safe_open(path, "pt") as file:
            return EncoderEntry.from_json((file.metadata() or {})[KEY])
    except OSError as error:
        raise BadCheckpoint(f"tile encoder {str(path)!r} cannot be read ({error}).", "Check the path.") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadCheckpoint(
            f"{str(path)!r} is not a tile encoder; a .safetensors file with {KEY!r} in its metadata is wanted.",
            "Make one with Training/ship_encoder.py, or name the encoder whose weights it holds and give the file with --weights.",
        ) from error


def save_encoder(entry: EncoderEntry, weights: Mapping[str, Tensor], out: Path) -> None:
    """Write an encoder file in half precision, with position embeddings resampled to the entry's tile size.

    Raises:
        BadCheckpoint: the weights do not fit the entry.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    kept = {name: value.float() for name, value in weights.items()}
    model: Any = make(entry)
    if "pos_embed" in kept and kept["pos_embed"].shape != model.pos_embed.shape:
        grid = list(model.patch_embed.grid_size)
        kept["pos_embed"] = resample_abs_pos_embed(kept["pos_embed"], grid, num_prefix_tokens=model.num_prefix_tokens)
    build(entry, kept, str(out))
    with whole(out) as temporary:
        save_file({k: v.half().contiguous() for k, v in kept.items()}, temporary, metadata={"format": "pt", KEY: json.dumps(asdict(entry))})
