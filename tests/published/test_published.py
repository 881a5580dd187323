"""Every published file that the catalog names, made as the evidence says, loads by `pretrained=True`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.published.files import entry_of, evidence, save_sparse, write_file
from tests.support.checkpoints import FileServer
from tests.support.kinds import first_of_each
from tests.support.meta import kept_model, leave_out_blocks
from zoo.catalog import VARIANTS, Source, Variant
from zoo.errors import WeightsUnavailableError
from zoo.models.inspection import Inspection, inspect_checkpoint
from zoo.models.itpn import ITPNClip
from zoo.models.shared import identify
from zoo.models.shared import model as shared_model
from zoo.models.shared.masked import MaskedAutoencoder
from zoo.train.recipe import load_recipe
from zoo.weights import authors, cached_path, sources
from zoo.weights.disk import files, records, safetensors_format
from zoo.weights.network import download as download_module

REMOTE = [variant for variant in VARIANTS if any(source.kind != "package" for source in variant.sources)]


def first_of_each_kind(variant: Variant) -> list[Source]:
    kinds = {source.kind: source for source in reversed(variant.sources)}
    return list(kinds.values())


CASES = [(variant, source) for variant in REMOTE for source in first_of_each_kind(variant)]


def layout(case: tuple[Variant, Source]) -> tuple[str, ...]:
    """What decides how a file is read, and into what."""
    variant, source = case
    entry = entry_of(source) or {}
    about = (entry.get(key) for key in ("keys", "container", "prefix", "lacks", "adds", "dtype", "args"))
    return (variant.architecture, str(variant.args), str(variant.num_classes), source.kind, *map(str, about))


CHECKED: set[str] = set()
INSPECTED: dict[Source, Inspection] = {}


def test_every_source_has_its_evidence_and_no_evidence_is_left_over() -> None:
    entries = [(source, entry_of(source)) for variant in REMOTE for source in variant.sources]
    assert [source for source, entry in entries if entry is None] == []
    assert {entry["at"] for _, entry in entries if entry} == {entry["at"] for entry in evidence()}
    assert all(entry["evidence"] for entry in evidence())


def test_every_published_file_has_a_recipe_or_says_why_not() -> None:
    page = (Path(__file__).parents[2] / "docs" / "not_taken.md").read_text("utf-8")
    without = page[page.index("## Here, but without a recipe") : page.index("## Kept as they are")]
    for variant in REMOTE:
        assert variant.recipe or "not known here" in variant.unknown, variant.name
        assert bool(variant.recipe) != (f"`{variant.name}`" in without), variant.name
        if variant.recipe:
            load_recipe(variant.recipe)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Source], FileServer]:
    """Makes a source's file and serves it on the loopback in place of the network; large files are sparse."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    monkeypatch.setattr(safetensors_format, "save_safetensors", save_sparse)
    # both read every number, which are gigabytes of zeros here
    monkeypatch.setattr(shared_model, "_warn_of_nan", lambda *args: None)
    monkeypatch.setattr(records, "_not_finite", lambda path: [])
    monkeypatch.setattr(identify, "create_model", kept_model)
    whole = files.sha256

    def sha256(path: Path, *args: Any, **kwargs: Any) -> str:
        """Of a sparse file, its length in place of gigabytes of zeros."""
        size = path.stat().st_size
        return f"{size:064x}" if size > 1 << 24 else whole(path, *args, **kwargs)

    for module in (files, records):
        monkeypatch.setattr(module, "sha256", sha256)

    def start(source: Source) -> FileServer:
        entry = entry_of(source)
        assert entry is not None
        path = served_path(tmp_path, source)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(entry, path)
        server = FileServer({} if source.kind == "hub" else {"/file": path.read_bytes()})
        arrived = authors.Arrived(path, files.sha256(path), "0" * 40)
        monkeypatch.setattr(sources, "fetch_from_authors", lambda *args, **kwargs: arrived)
        get = download_module.download
        for name in ("download", "download_from_drive"):
            monkeypatch.setattr(
                sources, name, lambda location, path, **options: get(f"{server.url}/file", path, **options)
            )
        monkeypatch.setattr(sources, "_remote_sources", lambda variant: [sources._CatalogSource(source)])
        return server

    return start


@pytest.mark.parametrize(
    ("variant", "source"), first_of_each(CASES, layout), ids=lambda case: getattr(case, "name", None) or case.kind
)
def test_published_file_loads(
    variant: Variant,
    source: Source,
    serve: Callable[[Source], FileServer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(source), caplog.at_level(logging.WARNING, logger="zoo"):
        model: Any = timm.create_model(variant.name, pretrained=True)
        check_inspection(served_path(tmp_path, source), variant, source)
    told = [record for record in caplog.records if "SHA-256" not in record.message]  # these are zeros, not the file
    assert told == [], "nothing is missing, nothing starts at random"
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == variant.parameters
    assert cached_path(variant).stat().st_size >= 2 * variant.parameters
    assert not any(p.is_meta for p in model.parameters())
    if variant.form == "dense":  # the file's own settings are those of the catalog
        assert (model.tile_size, model.tile_confidence) == (
            variant.args["tile_size"],
            variant.args["tile_confidence"],
        )
    if variant.architecture not in CHECKED:  # other tags give the same shapes
        leave_out_blocks(monkeypatch)
        check_shapes(model.to("meta").eval(), variant)
        CHECKED.add(variant.architecture)


def served_path(folder: Path, source: Source) -> Path:
    """Where a source's file lies in these tests: under the name, and in the folder, that it was published with."""
    if source.kind == "url":
        return folder / "served" / "/".join(source.location.split("/")[-2:])
    return folder / "served" / (source.filename or "model.safetensors")


def check_inspection(path: Path, variant: Variant, source: Source) -> None:
    """`zoo inspect` names the variant, with nothing missing, and where the file's name tells, no other one."""
    if source not in INSPECTED:
        INSPECTED[source] = inspect_checkpoint(path, digest=False)
    found = INSPECTED[source]
    match = next(match for match in found.matches if variant.name in match.variants)
    assert match.missing == () and match.args == {}
    if path.name != "model.safetensors":
        same_file = {other.name for other in VARIANTS if source in other.sources}
        assert set(match.known) == same_file & set(match.variants) and found.matches[0].known
    code, command = found.code(), found.command()
    assert code is not None and command is not None and found.matches[0].variant in code and path.name in command


@torch.no_grad()
def check_shapes(model: Any, variant: Variant) -> None:
    image = torch.empty(1, *variant.input_size, device="meta")
    _, height, width = variant.input_size
    tokens = (height // 16) * (width // 16)
    if variant.form == "encoder":
        assert model(image).shape == (1, variant.num_classes or model.num_features)
    elif variant.form == "binocular":
        assert model(image, image).shape == (1, tokens, variant.args["decoder_dim"])
    elif variant.form == "dense":
        assert model(image, image).shape == (1, variant.args["out_chans"], height, width)
    elif variant.form == "pointmaps":
        assert model(image, image).points1.shape[1:3] == (height, width)
    elif isinstance(model, ITPNClip):
        mask = torch.zeros(1, tokens, dtype=torch.bool, device="meta")
        assert [output.shape for output in model(image, mask)] == [(1, tokens, model.head.out_features)] * 2
    elif isinstance(model, MaskedAutoencoder):
        assert model.encoder(image).shape == (1, model.encoder.num_features)
    else:
        assert all(math.prod(output.shape) for output in model(image))


def test_files_of_dense_models_decide_their_tiles(serve: Callable[[Source], FileServer], tmp_path: Path) -> None:
    """The settings in a checkpoint's args go before the catalog's, into the safetensors file and into the model."""
    variant = next(variant for variant in REMOTE if variant.name.endswith("dec512d8_stereo.crocostereo_subtrain"))
    entry = entry_of(variant.sources[0])
    assert entry is not None
    entry["args"] = entry["args"] | dict(crop=[96, 160], tile_conf_mode="conf_expbeta3")
    try:
        with serve(variant.sources[0]):
            models: list[Any] = [timm.create_model(variant.name, pretrained=True) for _ in range(2)]  # fetched, cached
    finally:
        entry["args"] = entry["args"] | dict(crop=[352, 704], tile_conf_mode="conf_expsigmoid_15_3")
    for model in models:
        assert (model.tile_size, model.tile_confidence, model.tile_overlap) == ((96, 160), "conf_expbeta3", 0.9)
        assert model._model_args["tile_size"] == (96, 160)
    about = safetensors_format.read_metadata(cached_path(variant))
    assert '"tile_size": [96, 160]' in about["model_args"] and about["variant"] == variant.name


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_head_of_fast_itpn_starts_at_random_with_a_warning(
    size: str, serve: Callable[[Source], FileServer], caplog: pytest.LogCaptureFixture
) -> None:
    variant = next(v for v in REMOTE if v.architecture == f"fast_itpn_{size}_patch16_224")
    with serve(variant.sources[0]), caplog.at_level(logging.INFO, logger="zoo"):
        model: Any = timm.create_model(variant.name, pretrained=True, num_classes=1000)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("head" in text and "starts at random" in text for text in warnings)
    for family in ("token of hidden patches", "pyramid's projections", "pyramid's outputs", "the decoder", "teacher's"):
        assert family in caplog.text, "what is left out is said"
    assert model.head.weight.shape[0] == 1000 and model.head.weight.std() > 0


def test_an_encoder_key_too_few_or_too_many_is_an_error(serve: Callable[[Source], FileServer]) -> None:
    variant = next(v for v in REMOTE if v.architecture == "fast_itpn_tiny_patch16_224")
    entry = entry_of(variant.sources[0])
    assert entry is not None
    for change in (dict(lacks=[*entry["lacks"], "blocks.5.mlp.*"]), dict(adds=entry["adds"] | {"blocks.0.odd": [2]})):
        before = {key: entry[key] for key in change}
        entry.update(change)
        try:
            with serve(variant.sources[0]), pytest.raises(ValueError, match="blocks"):
                timm.create_model(variant.name, pretrained=True)
        finally:
            entry.update(before)


def test_forms_whose_decoder_is_not_published_have_no_weights() -> None:
    for name in ("hivit_base_patch16_224_mae", "convmae_base_patch16_224_mae"):
        with pytest.raises(WeightsUnavailableError, match="no published weights"):
            timm.create_model(name, pretrained=True)
