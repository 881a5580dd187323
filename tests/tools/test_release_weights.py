"""tools/release_weights.py, whole: small stand-ins in the reference's containers, pushed to the test Hub and pinned.

The catalog is replaced before the models are registered, so everything runs in a process of its own, which imports
torch once and then forks for each step.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.support.checkpoints import FileServer
from tests.support.forks import Forks
from tests.support.hub_server import Fault, HubServer

ROOT = Path(__file__).resolve().parents[2]
ENCODER, PAIR = "crocov2_small_patch8_32.test", "crocov2_small_patch8_32_dec32d1.test"
CHECKPOINT = "/CroCo_V2.pth"

PRELOAD = """
import os, sys
from dataclasses import replace
from zoo import catalog

source = catalog.Source("url", {url!r})
encoder = dict(patch_size=8, embed_dim=48, depth=3, num_heads=3, pos_embed="rope")
decoder = dict(decoder_dim=32, decoder_depth=1, decoder_num_heads=2)
tiny = dict(input_size=(3, 32, 32), sources=(source,), tag="test", recipe="")
like = {{variant.form: variant for variant in catalog.VARIANTS if variant.name.startswith("crocov2_base")}}
metric = catalog.Metric("optical flow", "Sintel", "EPE", 1.5, "clean pass", "them")
catalog.VARIANTS = (
    replace(like["encoder"], architecture="crocov2_small_patch8_32", args=encoder, parameters=66_000, **tiny),
    replace(
        like["binocular"],
        architecture="crocov2_small_patch8_32_dec32d1",
        args={{**encoder, **decoder}},
        parameters=100_000,
        metrics=(metric,),
        **tiny,
    ),
)
import timm, torch, release_weights
"""
STEP = """
import logging, os, sys, timm, torch, release_weights
from pathlib import Path
from huggingface_hub import constants
from zoo.weights import sources

arguments = {arguments!r}
sources.LOCK_FILE = Path({lock!r})
constants.HF_HUB_CACHE = os.environ["ZOO_CACHE"] + "-hub"
constants.ENDPOINT = os.environ.get("HF_ENDPOINT")
constants.HF_HUB_OFFLINE = "HF_HUB_OFFLINE" in os.environ
logging.basicConfig(level="INFO", format="%(message)s")
"""
SAVE = "torch.save({'model': timm.create_model(arguments[0]).reference_state(), 'epoch': 3}, arguments[1])"
RELEASE = "sys.exit(release_weights.main(arguments))"
LOAD = """
model = timm.create_model(arguments[0], pretrained=True)
print(sum(p.double().abs().sum() for p in model.parameters()).item())
"""


class Steps:
    """Runs code in forks of one process. hub, authors: the servers."""

    def __init__(self, folder: Path, hub: HubServer, authors: FileServer) -> None:
        self.folder, self.hub, self.authors = folder, hub, authors
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tools")))
        self.environment = hub.environment(folder / "home", hub.owner_token) | {"PYTHONPATH": paths}
        self.forks = Forks(PRELOAD.format(url=authors.url + CHECKPOINT), **self.environment)

    def start(self, code: str, *arguments: str, lock: Path, cache: str = "cache", **environment: str) -> int:
        """Returns the process's number."""
        environment = self.environment | {"ZOO_CACHE": str(lock.parent / cache)} | environment
        (number,) = self.forks.start(STEP.format(arguments=arguments, lock=str(lock)) + code, ROOT, environment)
        return number

    def run(self, code: str, *arguments: str, **options: Any) -> tuple[int, str]:
        """Returns exit status and output."""
        self.start(code, *arguments, **options)
        done = self.forks.wait()
        return done.statuses[0], done.errors + done.output

    def kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        self.forks.wait()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    folder = tmp_path_factory.mktemp("release")
    with HubServer(folder / "server") as hub, FileServer({}) as authors:
        steps = Steps(folder, hub, authors)
        checkpoint = folder / "checkpoint.pth"
        status, output = steps.run(SAVE, PAIR, str(checkpoint), lock=folder / "lock.json")
        assert status == 0, output
        authors.files[CHECKPOINT] = checkpoint.read_bytes()
        yield steps
        steps.forks.close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "weights.lock.json"
    path.write_text("{}\n")
    return path


def test_release(steps: Steps, lock: Path) -> None:
    hub = steps.hub
    # refused at the second variant's commit: the first one stays done
    hub.faults.append(Fault("commit", times=None, path=f"*{PAIR}*", status=503))
    status, output = steps.run(RELEASE, "--org", "zoo-org", lock=lock)
    assert status == 1 and f"Not released: {PAIR}." in output and "the Hub is out of order (HTTP 503)" in output, output
    assert list(json.loads(lock.read_text())) == [ENCODER]
    # killed in the middle of it
    hub.faults[:] = [Fault("commit", times=None, delay=60)]
    before = hub.count("commit")
    child = steps.start(RELEASE, "--org", "zoo-org", lock=lock)
    while hub.count("commit") == before:
        os.kill(child, 0)  # it is alive
    steps.kill(child)
    assert list(json.loads(lock.read_text())) == [ENCODER]
    # and gone on with
    hub.faults.clear()
    status, output = steps.run(RELEASE, "--org", "zoo-org", lock=lock)
    assert status == 0 and f"[1/2] {ENCODER}: done before" in output and output.count("done before") == 1, output
    pins = json.loads(lock.read_text())
    assert list(pins) == sorted([ENCODER, PAIR]) and steps.authors.gets(CHECKPOINT) == 1
    for name, pin in pins.items():
        repo = f"zoo-org/{name}"
        assert pin["repo"] == repo and pin["filename"] == "model.safetensors"
        assert pin["revision"] == hub.repos[repo].refs["main"]
        assert pin["sha256"] == hub.repos[repo].commits[pin["revision"]].files["model.safetensors"].sha256
        card = ModelCard(hub.read(repo, "README.md").decode())
        assert card.data.license == "cc-by-nc-sa-4.0" and card.data.library_name == "timm"
        assert {"timm", "pretext-zoo", "croco"} <= set(card.data.tags)
        assert f'timm.create_model("hf-hub:{repo}", pretrained=True)' in card.text
        picture = "features.png" if name == ENCODER else "completion.png"
        assert f"]({picture})" in card.text and picture in hub.listing(repo)
        assert ".md)" not in card.text and "../" not in card.text
    assert f"]({hub.url}/zoo-org/{PAIR})" in hub.read(f"zoo-org/{ENCODER}", "README.md").decode()
    (figure,) = ModelCard(hub.read(f"zoo-org/{PAIR}", "README.md").decode()).data.eval_results
    assert (figure.dataset_name, figure.metric_value) == ("Sintel", 1.5)

    # what was converted here before is not what is pinned: it comes from the Hub, as on every other machine
    sums = set()
    for cache in ("cache", "fresh"):
        status, output = steps.run(LOAD, PAIR, lock=lock, cache=cache)
        assert status == 0 and f"{PAIR}: weights from Hugging Face Hub zoo-org/{PAIR}" in output, output
        sums.add(output.splitlines()[-1])
    status, output = steps.run(LOAD, PAIR, lock=lock, cache="fresh", HF_HUB_OFFLINE="1")
    assert "weights from the cache" in output and {output.splitlines()[-1]} == sums, output
    # config.json says all that timm needs
    status, output = steps.run(LOAD, f"hf-hub:zoo-org/{PAIR}", lock=lock, cache="third")
    assert {output.splitlines()[-1]} == sums, output
    assert steps.authors.gets(CHECKPOINT) == 1

    # with the Hub out of reach nothing else serves them, unless it is asked to
    nowhere = "http://127.0.0.1:9"
    status, output = steps.run(LOAD, PAIR, lock=lock, cache="empty", HF_ENDPOINT=nowhere)
    assert status == 1 and "set ZOO_UPSTREAM=1 to have the authors' own checkpoint converted" in output, output
    assert "127.0.0.1 can't be reached" in output and steps.authors.gets(CHECKPOINT) == 1
    status, output = steps.run(LOAD, PAIR, lock=lock, cache="empty", HF_ENDPOINT=nowhere, ZOO_UPSTREAM="1")
    assert status == 0 and {output.splitlines()[-1]} == sums, output


def test_dry_run_and_filter(steps: Steps, lock: Path) -> None:
    asked = len(steps.hub.seen)
    status, output = steps.run(RELEASE, "--org", "owner", "--dry-run", "--filter", "*dec32d1*", lock=lock)
    assert status == 0 and f"[1/1] {PAIR}: fine, README.md, config.json, model.safetensors" in output, output
    assert len(steps.hub.seen) == asked and lock.read_text() == "{}\n"
    status, output = steps.run(RELEASE, "--org", "owner", "--filter", "resnet*", lock=lock)
    assert status == 2 and "no variant with weights is called like resnet*" in output


def test_weights_of_the_hub_are_not_released_again(steps: Steps, lock: Path) -> None:
    assert steps.run(RELEASE, "--org", "owner", "--filter", ENCODER, lock=lock)[0] == 0
    lock.write_text("{}\n")
    status, output = steps.run(RELEASE, "--org", "owner", lock=lock, cache="new", ZOO_HUB_ORG="owner")
    assert status == 1 and f"The weights of {ENCODER} on this machine came from the Hub" in output, output
