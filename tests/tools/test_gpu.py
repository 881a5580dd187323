"""tools/gpu.py, in tiny sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load

from tools import gpu

ROOT = Path(__file__).parents[2]


def run(output: Path, *arguments: str) -> dict[str, list[dict]]:
    """The rows that the program writes, by stage."""
    command = [sys.executable, "tools/gpu.py", "--tiny", "--output", str(output), "--scratch", str(output / "scratch")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((output / "gpu.json").read_text())
    assert result["rows"] == gpu.rows_of(output)
    assert (output / "tables.txt").read_text() in done.stdout
    stages: dict[str, list[dict]] = {}
    for row in result["rows"]:
        assert "error" not in row and "fault" not in row["name"], row
        stages.setdefault(row["stage"], []).append(row)
    return stages


def test_speed(tmp_path: Path) -> None:
    stages = run(tmp_path, "--stages", "a", "b", "c", "d", "e")
    assert list(stages) == ["a", "b", "c", "d", "e"]
    for rows in stages.values():
        assert rows[-1]["ended"] == "finished", rows
    assert all(row["holds"] for row in stages["b"] if row.get("precision") == "fp32")
    forwards = {(row["name"], row["how"]) for row in stages["c"][:-1]}
    assert forwards == {(name, how) for name in ("pair", "ConvMAE") for how in ("eager", "compiled")}
    work = {row["how"]: row["tflop"] for row in stages["d"] if row["name"] == "convmae_nano"}
    assert work["dense"] > 1.5 * work["eager"]


def test_training(tmp_path: Path) -> None:
    stages = run(tmp_path, "--stages", "f", "--minutes", "0.6")
    rows = {row["name"]: row for row in stages["f"]}
    for name in ("croco_nano", "mae_nano"):  # finished or, on a busy machine, stopped in time
        assert rows[name]["steps"] > 0 and rows[name]["ended"] in ("finished", "stopped at its time"), rows
    assert "pairs" in rows and rows["the stage"]["ended"] == "finished"

    files = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert len(files) <= 8 and max(files.values()) < 2**24 and sum(files.values()) < 2**26
    weights = {}
    for path in tmp_path.glob("weights-*.tar"):
        with tarfile.open(path) as archive:
            weights |= {name: load(archive.extractfile(name).read()) for name in archive.getnames()}  # type: ignore[union-attr]
    assert weights.keys() == {"croco_nano.safetensors", "mae_nano.safetensors"}
    assert weights["croco_nano.safetensors"]["head.weight"].dtype == torch.float32
    assert weights["mae_nano.safetensors"]["decoder.head.weight"].dtype == torch.float16
    timm.create_model("croco_nano_patch8_64_dec128d4").load_state_dict(weights["croco_nano.safetensors"])
    with tarfile.open(tmp_path / "training.tar.gz") as archive:
        assert {"croco_nano/recipe.yaml", "croco_nano/log.jsonl"} <= set(archive.getnames())


def test_a_stage_that_is_cut_off_or_crashes_keeps_its_rows(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tools import gpu

def slow(lab):
    lab.row("first", figure=1.0)
    lab.attempt("second", lambda: 1 / 0)
    time.sleep(60)

def crash(lab):
    lab.row("first", figure=1.0)
    os.kill(os.getpid(), signal.SIGSEGV)

sys.modules["stages"] = sys.modules["__main__"]
gpu.STAGES = {{name: gpu.Stage(name, "stages", name, None) for name in ("slow", "crash")}}
for name in gpu.STAGES:
    output = Path({str(tmp_path)!r})
    gpu.run_stage(gpu.Lab(name, "cpu", True, output, output, time.monotonic() + 3), output / (name + ".log"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    rows = [{key: row[key] for key in row if key not in ("at", "seconds")} for row in gpu.rows_of(tmp_path)]
    assert rows == [
        dict(stage="slow", name="first", figure=1.0),
        dict(stage="slow", name="second", error="ZeroDivisionError: division by zero"),
        dict(stage="slow", name="the stage", ended="cut off"),
        dict(stage="crash", name="first", figure=1.0),
        dict(stage="crash", name="the stage", ended="ended with exit code -11"),
    ]


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.missing_packages() == []
    versions = {"timm": "1.0.2"}

    def version(name: str) -> str:
        if name == "tqdm":
            raise gpu.metadata.PackageNotFoundError(name)
        return versions.get(name, "99")

    monkeypatch.setattr(gpu.metadata, "version", version)
    assert gpu.missing_packages() == ["timm>=1.0.31 (1.0.2 is here)", "tqdm"]
