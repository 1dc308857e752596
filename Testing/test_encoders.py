"""Facts about the encoders known by name: what they compute with, how foreign names become timm's, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from HARM3Logic.__main__ import main
from HARM3Logic.collection import write_collection
from HARM3Logic.encoder_weights import ConchImage, build, make, read_weights, renamed
from HARM3Logic.encoders import KNOWN, EncoderEntry, Known
from HARM3Logic.errors import BadCheckpoint, BadOption
from HARM3Logic.tile_encoder import TileEncoder, pool

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0, "img_size": 32}
TINY = EncoderEntry("tiny-known", "vit_tiny_patch16_224", SMALL, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "cls", 16, "none", mpp=1.0)


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("name", KNOWN)
def test_an_entry_gives_the_features_and_weights_it_says(name: str) -> None:
    known = KNOWN[name]
    entry = known.entry
    with torch.device("meta"):  # shapes alone
        model = make(entry).eval()
        features = pool(model, torch.empty(1, 3, entry.size_px, entry.size_px), entry.pooling)
    assert features.shape == (1, entry.features)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(known.parameters, abs=0.06)
    assert known.url.startswith("https://") and EncoderEntry.from_json(json.dumps(dataclasses.asdict(entry))) == entry


def test_registers_count_for_neither_feature() -> None:
    entry = dataclasses.replace(KNOWN["virchow2"].entry, timm_kwargs={**KNOWN["virchow2"].entry.timm_kwargs, "embed_dim": 32, "depth": 1})
    torch.manual_seed(0)
    model, pixels = make(entry).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = model.forward_features(pixels)  # type: ignore[operator]
        assert tokens.shape[1] == 1 + 4 + 256
        wanted = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)  # the model card's recipe
        torch.testing.assert_close(pool(model, pixels, entry.pooling), wanted)


def swin_of_old_timm() -> dict[str, Tensor]:
    """Names and shapes of CTransPath's file: Swin-T as timm 0.5.4 has it, with the stem of ctran.py."""
    found = {"patch_embed.proj.0.weight": empty(12, 3, 3, 3), "patch_embed.proj.3.weight": empty(24, 12, 3, 3)}
    found |= {"patch_embed.proj.6.weight": empty(96, 24, 1, 1), "patch_embed.proj.6.bias": empty(96)}
    for place, width in ((1, 12), (4, 24)):
        found |= {f"patch_embed.proj.{place}.{name}": empty(width) for name in ("weight", "bias", "running_mean", "running_var")}
        found[f"patch_embed.proj.{place}.num_batches_tracked"] = empty()
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.norm": (96,), "norm": (768,)}
    for stage, depth in enumerate((2, 2, 6, 2)):
        width, heads = 96 * 2**stage, 3 * 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}."
            shapes |= {
                at + "norm1": (width,),
                at + "norm2": (width,),
                at + "attn.qkv": (3 * width, width),
                at + "attn.proj": (width, width),
            }
            shapes |= {at + "mlp.fc1": (4 * width, width), at + "mlp.fc2": (width, 4 * width)}
            found[at + "attn.relative_position_bias_table"] = empty(169, heads)
            found[at + "attn.relative_position_index"] = empty(49, 49)
            if block % 2 and stage < 3:
                found[at + "attn_mask"] = empty(64 // 4**stage, 49, 49)
        if stage < 3:
            shapes[f"layers.{stage}.downsample.norm"] = (4 * width,)
            found[f"layers.{stage}.downsample.reduction.weight"] = empty(2 * width, 4 * width)
    for name, shape in shapes.items():
        found |= {f"{name}.weight": empty(*shape), f"{name}.bias": empty(shape[0])}
    return found


def conch_file() -> dict[str, Tensor]:
    """Names and shapes of CONCH's file, as its CoCa class has them."""
    with torch.device("meta"):
        trunk = make(
            dataclasses.replace(KNOWN["uni"].entry, timm_model="vit_base_patch16_224", timm_kwargs={"num_classes": 0, "img_size": 448})
        )
    found = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    for kind, width, queries in (("contrast", 512, 1), ("caption", 768, 256)):
        at = f"visual.attn_pool_{kind}."
        found |= {at + "query": empty(queries, width), at + "attn.in_proj_bias": empty(3 * width)}
        found |= {at + f"attn.{part}_proj_weight": empty(width, 768 if part != "q" else width) for part in "qkv"}
        found |= {at + "attn.out_proj.weight": empty(width, width), at + "attn.out_proj.bias": empty(width)}
        for name, size in ((at + "ln_q", width), (at + "ln_k", 768), (f"visual.ln_{kind}", width)):
            found |= {f"{name}.weight": empty(size), f"{name}.bias": empty(size)}
    return {**found, "visual.proj_contrast": empty(512, 512), "text.cls_emb": empty(768), "logit_scale": empty()}


def dinov2_file(depth: int = 24, width: int = 1024) -> dict[str, Tensor]:
    """Names and shapes of Phikon-v2's file, a Dinov2Model of transformers 4."""
    found = {"embeddings.cls_token": empty(1, 1, width), "embeddings.mask_token": empty(1, width)}
    found |= {
        "embeddings.position_embeddings": empty(1, 197, width),
        "embeddings.patch_embeddings.projection.weight": empty(width, 3, 16, 16),
    }
    found |= {"embeddings.patch_embeddings.projection.bias": empty(width), "layernorm.weight": empty(width), "layernorm.bias": empty(width)}
    for block in range(depth):
        at = f"encoder.layer.{block}."
        shapes: dict[str, tuple[int, ...]] = {"norm1": (width,), "norm2": (width,), "mlp.fc1": (4 * width, width)}
        shapes |= {"mlp.fc2": (width, 4 * width), "attention.output.dense": (width, width)}
        shapes |= {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
        for name, shape in shapes.items():
            found |= {f"{at}{name}.weight": empty(*shape), f"{at}{name}.bias": empty(shape[0])}
        found |= {f"{at}layer_scale{k}.lambda1": empty(width) for k in (1, 2)}
    return found


FILES = {"ctranspath": swin_of_old_timm, "conch": conch_file, "phikon-v2": dinov2_file}


@pytest.mark.parametrize("name", FILES)
def test_the_names_of_a_makers_file_become_timms(name: str) -> None:
    known = KNOWN[name]
    model = build(known.entry, renamed(FILES[name](), known.names), "weights.bin")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(known.parameters, abs=0.06)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_weight_is_named(name: str) -> None:
    known = KNOWN[name]
    for lost in [key for key in FILES[name]() if key.endswith(("norm.weight", "ln_contrast.bias", "layernorm.bias"))][-1:]:
        file = FILES[name]()
        del file[lost]
        with pytest.raises(BadCheckpoint, match=f"{lost.split('.')[-1]}' is missing"):
            build(known.entry, renamed(file, known.names), "weights.bin")


def test_transformers_and_timm_agree() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    reference = transformers.Dinov2Model(config).eval()
    for weight in reference.parameters():
        weight.data = torch.randn_like(weight) * 0.3
    pixels = torch.randn(2, 3, 32, 32)
    entry = dataclasses.replace(KNOWN["phikon-v2"].entry, timm_kwargs={**KNOWN["phikon-v2"].entry.timm_kwargs, **SMALL})
    model = build(entry, renamed(reference.state_dict(), "dinov2"), "").eval()
    with torch.no_grad():
        torch.testing.assert_close(pool(model, pixels, "cls"), reference(pixels).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)


def test_conch_pools_by_attention_of_its_query() -> None:
    """The pooling written out: softmax of scaled products in 8 heads, then the last norm."""

    class Trunk(nn.Module):
        num_features = 24

        def forward_features(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(2).mT

    torch.manual_seed(0)
    tower = ConchImage(Trunk(), width=16, heads=8)
    for weight in tower.parameters():
        weight.data = torch.randn_like(weight) * 0.5
    pixels = torch.randn(3, 24, 2, 2)
    pooler = tower.attn_pool_contrast
    with torch.no_grad():
        tokens = pooler.ln_k(pixels.flatten(2).mT)
        bias = pooler.attn.in_proj_bias.chunk(3)
        q = pooler.ln_q(pooler.query) @ pooler.attn.q_proj_weight.T + bias[0]
        k, v = tokens @ pooler.attn.k_proj_weight.T + bias[1], tokens @ pooler.attn.v_proj_weight.T + bias[2]
        heads = [t.unflatten(-1, (8, 2)).movedim(-2, 1) for t in (q.expand(3, 1, 16), k, v)]
        mixed = (heads[0] @ heads[1].mT / 2**0.5).softmax(-1) @ heads[2]
        wanted = tower.ln_contrast(pooler.attn.out_proj(mixed.movedim(1, -2).flatten(-2)))[:, 0]
        torch.testing.assert_close(tower(pixels), wanted)


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    monkeypatch.setitem(KNOWN, "tiny-known", Known(TINY, 0.01, "https://example.org/tiny"))
    torch.save({"state_dict": {f"module.{k}": torch.randn_like(v) for k, v in make(TINY).state_dict().items()}}, tmp_path / "w.bin")
    return tmp_path / "w.bin"


def test_a_known_encoder_needs_its_weights(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadCheckpoint, match=r"example\.org/tiny.*--weights.*HARM3_ENCODERS"):
        TileEncoder.load("tiny-known")
    given = TileEncoder.load("tiny-known", precision="float32", weights=tiny_weights)
    assert given.entry == TINY and given.weights_sha256 == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    (tmp_path / "granted").mkdir()
    tiny_weights.rename(tmp_path / "granted" / "tiny-known.bin")
    monkeypatch.setenv("HARM3_ENCODERS", str(tmp_path / "granted"))
    found = TileEncoder.load("tiny-known", precision="float32")
    tile = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(found.encode(tile), given.encode(tile))
    with pytest.raises(BadOption, match="takes no weights"):
        TileEncoder.load("default", weights=tmp_path / "granted" / "tiny-known.bin")


def _shape(weights: dict[str, Tensor]) -> None:
    weights["pos_embed"] = torch.zeros(1, 7, 16)


def _two(weights: dict[str, Tensor]) -> None:
    del weights["norm.weight"]
    weights["head.weight"] = torch.zeros(2, 16)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [(_shape, r"'pos_embed' has the shape \(1, 7, 16\) where \(1, 5, 16\)"), (_two, r"'norm.weight' is missing and 'head.weight' is none")],
)
def test_wrong_weights_are_told_in_one_sentence(tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], match: str) -> None:
    weights = make(TINY).state_dict()
    spoil(weights)
    with pytest.raises(BadCheckpoint, match=match):
        build(TINY, weights, "w.bin")


class Spy:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (open, (str(self.path), "w"))


def test_weights_are_read_and_not_executed(tmp_path: Path) -> None:
    torch.save({"model": Spy(tmp_path / "mark")}, tmp_path / "w.bin")
    with pytest.raises(BadCheckpoint, match="not executed"):
        read_weights(tmp_path / "w.bin")
    assert not (tmp_path / "mark").exists()
    (tmp_path / "w.bin").write_bytes(b"garbage")
    with pytest.raises(BadCheckpoint, match=r"w\.bin"):
        read_weights(tmp_path / "w.bin")


def test_the_list_says_what_each_encoder_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "--list-encoders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(KNOWN) and len(KNOWN) >= 9
    assert "comes with the program" in lines[1] and not any("comes with the program" in line for line in lines[2:])
    assert all(word in lines[-1] for word in ("ctranspath", " 1 ", "768", "GPL-3.0", "TransPath"))


def test_features_carry_the_encoders_name_and_hash_and_no_path(tiny_weights: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(100, 200, (300, 400, 3)).astype(np.uint8)
    picture[..., 1] //= 2
    tifffile.imwrite(tmp_path / "s.tif", picture, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    encoder = TileEncoder.load("tiny-known", precision="float32", weights=tiny_weights)
    assert write_collection([tmp_path / "s.tif"], encoder, tmp_path / "out") == []
    with h5py.File(tmp_path / "out" / "s.h5") as file:
        said = {**file.attrs, **file["coords"].attrs, **file["features"].attrs}
    assert (said["encoder"], said["weights_sha256"], said["mpp"]) == ("tiny-known", encoder.weights_sha256, 1.0)  # tiles of its own µm/px
    assert not any(str(tmp_path) in str(value) for value in said.values())


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A TorchScript program: the mean of each channel, twice."""

    class Means(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.cat([pixels.mean((2, 3))] * 2, 1)

    torch.jit.trace(Means(), torch.zeros(2, 3, 32, 32)).save(tmp_path / "own.ts")
    describe(tmp_path / "own.json")
    return tmp_path / "own.ts"


def describe(path: Path, **said: object) -> None:
    entry = {"name": "own", "size_px": 32, "mpp": 0.25, "mean": [0, 0, 0], "std": [1, 1, 1], "features": 6, "licence": "mine"}
    path.write_text(json.dumps({**entry, **said}))


def test_a_foreign_program_is_run_only_with_leave(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("executed"))
        with pytest.raises(BadOption, match=r"executes.*--run-foreign-code"):
            TileEncoder.load(program)
        assert main(["features", "x.svs", "--out", str(tmp_path / "o"), "--device", "cpu", "--encoder", str(program)]) == 2
    encoder = TileEncoder.load(program, run_foreign_code=True)
    assert (encoder.entry.name, encoder.entry.mpp, encoder.precision) == ("own", 0.25, "float32")
    tiles = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode(tiles), np.tile(tiles.mean((1, 2)) / 255, 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("said", "match"), [({"features": 7}, r"\(1, 6\).*\(1, 7\)"), ({"mean": None}, "must say"), ({"size_px": 0}, "must say")]
)
def test_what_is_said_of_a_foreign_program_is_checked(program: Path, said: dict[str, object], match: str) -> None:
    describe(program.with_suffix(".json"), **said)
    with pytest.raises(BadCheckpoint, match=match):
        TileEncoder.load(program, run_foreign_code=True)


def test_an_onnx_program_gives_its_features(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    node = onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    axes = onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 3, 32, 32]), ("y", ["n", 3]))]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [axes])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "own.onnx")
    describe(tmp_path / "own.json", features=3)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    got = TileEncoder.load(tmp_path / "own.onnx", run_foreign_code=True).encode(tiles)
    np.testing.assert_allclose(got, tiles.mean((1, 2)) / 255, rtol=1e-4)


def test_onnx_without_its_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.onnx").write_bytes(b"")
    describe(tmp_path / "own.json")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BadOption, match=r"onnxruntime.*harm3slicer\[onnx\]"):
        TileEncoder.load(tmp_path / "own.onnx", run_foreign_code=True)
