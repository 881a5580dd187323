"""`zoo inspect`: what a checkpoint is, exactly, in part or nearly, and how to load it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor

from tests.support.checkpoints import torch_bytes
from tests.support.hub_server import Fault, HubServer
from tests.weights.test_conversion import reference_checkpoint
from zoo.catalog import VARIANTS
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, UnsafeCheckpointError, WeightsUnavailableError
from zoo.models.inspection import inspect_checkpoint
from zoo.models.shared.identify import identify
from zoo.models.shared.known import known_variants
from zoo.weights import Checkpoint, save_safetensors
from zoo.weights.disk import files
from zoo.weights.sources import BUNDLED

Zoo = Callable[..., tuple[int, str, str]]
NANO = "croco_nano_patch8_64"


def state(name: str, **args: Any) -> dict[str, Tensor]:
    return dict(timm.create_model(name, **args).state_dict())


@pytest.mark.parametrize(
    ("keys", "variant", "args"),
    [
        ("croco_v2_large_basedec", "crocov2_large_patch16_224_dec768d12.habitat_real", {}),
        ("croco_v1_base_smalldec", "croco_base_patch16_224_dec512d8.habitat", {}),
        ("hivit_tiny", "hivit_tiny_patch16_224", {"num_classes": 1000}),
        ("itpn_base_pixel_pretrain", "itpn_base_patch16_224_pixel.pixel_in1k", {}),
    ],
)
def test_published_files(keys: str, variant: str, args: dict[str, Any]) -> None:
    matches, nearest = identify(reference_checkpoint(keys))
    assert (matches[0].variant, matches[0].args, matches[0].missing, nearest) == (variant, args, (), None)
    encoders = [match for match in matches if match.architecture.startswith("crocov2_large_patch16_224")]
    assert all(match.left_out for match in encoders[1:]), "the encoder alone, without the rest of the file"


def test_own_files_and_wrapped_ones(tmp_path: Path) -> None:
    pair = f"{NANO}_dec128d4"
    own = state(pair)
    for wrap in ("", "module._orig_mod.", "backbone.", "net.model."):
        matches, _ = identify(Checkpoint({wrap + key: value for key, value in own.items()}, {}, Path("x")))
        assert (matches[0].architecture, matches[0].prefix, matches[0].left_out) == (pair, wrap, ())
        assert [match.architecture for match in matches if match.left_out][:1] == [NANO]
    encoder, _ = identify(Checkpoint(state(NANO, num_classes=7), {}, Path("x")))
    assert (encoder[0].architecture, encoder[0].args) == (NANO, {"num_classes": 7})
    half, _ = identify(Checkpoint({k: v for k, v in own.items() if k.startswith("encoder.")}, {}, Path("x")))
    assert any(match.architecture == pair and set(match.missing) == {"decoder", "head"} for match in half)


def test_unknown_files() -> None:
    other = state("vit_tiny_patch16_224", depth=1)
    matches, _ = identify(Checkpoint(other, {}, Path("x")))
    assert not matches
    strange = state(NANO) | {"extra.weight": torch.zeros(2)}
    del strange["norm.weight"]
    matches, nearest = identify(Checkpoint(strange, {}, Path("x")))
    assert not matches and nearest is not None and nearest.architecture == NANO
    assert (nearest.missing, nearest.unexpected) == (("norm.weight",), ("extra.weight",))
    assert identify(Checkpoint({}, {}, Path("x"))) == ([], None)
    wrapped = {f"module.encoder_q.{key}": value for key, value in state(NANO).items()}
    matches, nearest = identify(Checkpoint(wrapped, {}, Path("x")))
    assert not matches and nearest is not None
    assert (nearest.architecture, nearest.share, nearest.prefix) == (NANO, 1.0, "module.encoder_q.")


def test_command(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "a file.pth"
    torch.save({"model": OrderedDict(state(NANO)), "epoch": 7, "args": {"lr": 0.1}, "optimizer": {"x": 1}}, path)
    code, out, _ = zoo("inspect", path)
    assert code == 0 and f"it is       {NANO}" in out and "exactly" in out
    assert "torch zip" in out and "epoch: 7" in out and "args.lr: 0.1" in out and "SHA-256" in out
    names: dict[str, Any] = {}
    exec(out[out.index("import timm, zoo") :].partition("\n\n")[0], names)
    assert type(names["model"]).__name__ == "CrocoEncoder"
    code, out, _ = zoo("inspect", path, "--json", "--no-digest")
    found = json.loads(out)
    assert found["matches"][0]["architecture"] == NANO and found["sha256"] is None
    assert found["dtypes"] == {"float32": len(state(NANO))} and found["size"] == path.stat().st_size
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text("utf-8")
    assert [key for part in (found, found["matches"][0]) for key in part if f"| `{key}` |" not in page] == []
    code, _, err = zoo("inspect", tmp_path / "nothing.pth")
    assert code == 2 and "There is no file" in err


def test_no_pickle_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": state(NANO), "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeCheckpointError):
        inspect_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


def test_loading_errors_point_to_it(tmp_path: Path) -> None:
    save_safetensors({"some.weight": torch.zeros(3)}, tmp_path / "some.safetensors", {})
    overlay = dict(file=str(tmp_path / "some.safetensors"))
    with pytest.raises(CheckpointMismatchError, match="`zoo inspect` tells what it is"):
        timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay)


def test_classifiers_are_recognized(tmp_path: Path) -> None:
    """A classifier's file given to an encoder of another size or family is told as what it is."""
    for name, other in (("croco_nano_patch8_64", "convmae_nano_patch16_64"), ("convmae_nano_patch16_64", NANO)):
        save_safetensors(state(name, num_classes=5), tmp_path / "x.safetensors", {})
        with pytest.raises(CheckpointMismatchError, match=f"but one of {name}"):
            overlay = dict(file=str(tmp_path / "x.safetensors"))
            timm.create_model(other, pretrained=True, pretrained_cfg_overlay=overlay)


def test_places(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsUnavailableError, match="has none of"):
        inspect_checkpoint(tmp_path / "folder")
    torch.save(state(NANO), tmp_path / "folder" / "pytorch_model.bin")
    assert inspect_checkpoint(tmp_path / "folder", digest=False).matches[0].architecture == NANO


def test_sizes_and_tags_of_the_code_are_the_file_s(tmp_path: Path) -> None:
    """Tags of one architecture differ in their arguments and normalization; the code names the right one."""
    checkpoint = reference_checkpoint("itpn_base_clip_pretrain")
    torch.save({"module": {f"module.{k}": v.half() for k, v in checkpoint.tensors.items()}}, tmp_path / "x.y.z.pt")
    found = inspect_checkpoint(tmp_path / "x.y.z.pt", digest=False)
    assert (found.entry, found.matches[0].prefix) == ("module", "module.")
    encoder = next(match for match in found.matches if match.architecture == "itpn_base_patch16_224")
    assert encoder.variants == ("itpn_base_patch16_224.clip_in1k",), "not the tag of pixels, which has no bias tables"
    model = timm.create_model(encoder.variant, pretrained=True, pretrained_cfg_overlay=dict(file=str(found.path)))
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_files_with_the_same_tensors_are_told_apart(tmp_path: Path) -> None:
    base = "fast_itpn_base_patch16_224.clipl_in1k_1600e"
    (source, *_) = next(variant.sources for variant in VARIANTS if variant.name == base)
    here = tmp_path / "x.pth"
    assert known_variants(here, None, source.recorded_sha256) == {base: "by its SHA-256"}
    assert known_variants(here, base, "0" * 64) == {base: "as it says itself"}
    assert known_variants(here, "a model of somebody", "0" * 64) == {}
    (tmp_path / "x.pth.json").write_text('{"gdrive": "1ddGbBm46FiUdNs9HPSepokhuOKhEnBdV", "sha256": "0"}')
    of_record = {"fast_itpn_base_patch16_224.clipl_in1k_ft_in21k": "by the record of its download"}
    assert known_variants(here, None, "0" * 64) == of_record
    assert list(known_variants(tmp_path, None, None, "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt")) == [
        "crocov2_large_patch16_224.dust3r_512",
        "dust3r_large_patch16_512_dpt.naver",
    ]
    inside = "croco_nano_patch8_64_dec128d4.scenes_far"
    assert known_variants(Path("bundled") / f"{inside}.safetensors", None)[inside] == "by its name"
    digest = files.sha256(BUNDLED / f"{inside}.safetensors")
    both = (inside, "croco_nano_patch8_64.scenes_far")
    assert known_variants(tmp_path / "copy", None, digest) == dict.fromkeys(both, "by its SHA-256")
    last = "model_final_checkpoint_phase199.torch"
    second = "pirl_jigsaw_4node_200ep_pirl_jigsaw_4node_resnet_22_07_20.ffd17b75"
    assert list(known_variants(tmp_path / second / last, None)) == ["pirl_resnet50.in1k_200e_run2"]
    assert {"pirl_resnet50.in1k_200e", "pirl_resnet50.in1k_200e_run2"} < set(known_variants(tmp_path / last, None))


def test_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Zoo) -> None:
    """The header is fetched, and the file only where a server has no parts of it."""
    body = save(state(NANO), {"variant": f"{NANO}.scenes_far"})
    with HubServer(tmp_path / "server") as hub:
        hub.patch(monkeypatch, tmp_path / "home")
        commit = hub.add_repo("owner/a.model", {"model.safetensors": body}).refs["main"]
        found = inspect_checkpoint("hf-hub:owner/a.model")
        assert found.repository == f"owner/a.model@{commit}" and found.sha256 == hashlib.sha256(body).hexdigest()
        assert found.matches[0].known == {f"{NANO}.scenes_far": "as it says itself"} and found.command() is None
        assert [seen.headers["range"] for seen in hub.seen if seen.route == "cdn"] == ["bytes=0-262143"]
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        code, out, _ = zoo("inspect", f"owner/a.model@{commit}")
        assert code == 0 and f"on the Hub  owner/a.model@{commit}" in out and "exactly, as it says itself" in out
        names: dict[str, Any] = {}
        exec(out[out.index("import timm, zoo") :], names)
        assert type(names["model"]).__name__ == "CrocoEncoder"

        hub.add_files("owner/a.model", {"model.safetensors": body[:-1]})
        with pytest.raises(CorruptWeightsError, match="damaged or no safetensors file"):
            inspect_checkpoint("owner/a.model")
        hub.add_repo("owner/pickle", {"pytorch_model.bin": torch_bytes(state(NANO))})
        found = inspect_checkpoint("owner/pickle")
        assert (found.path.name, found.matches[0].architecture) == ("pytorch_model.bin", NANO)
        assert "hf_hub_filename='pytorch_model.bin'" in (found.code() or "")
        hub.add_repo("owner/gated", {"model.safetensors": body}, gated=True)
        for place, reason in (("owner/gated", "it is gated"), ("owner/none", "there is no repository")):
            with pytest.raises(WeightsUnavailableError, match=reason):
                inspect_checkpoint(place)

        hub.add_repo("owner/whole", {"model.safetensors": body})
        hub.faults.append(Fault("cdn", method="GET", status=200, body=body))
        found = inspect_checkpoint("owner/whole")
        assert (found.repository or "").startswith("owner/whole@") and found.sha256 == hashlib.sha256(body).hexdigest()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert inspect_checkpoint("owner/whole") == found, "from the Hub's cache"
        with pytest.raises(WeightsUnavailableError, match="HF_HUB_OFFLINE is set"):
            inspect_checkpoint("owner/a.model")
    with pytest.raises(WeightsUnavailableError, match="There is no file owner/lost.safetensors"):
        inspect_checkpoint("owner/lost.safetensors")
