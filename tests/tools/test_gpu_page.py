"""docs/gpu.md says what docs/gpu.json holds."""

from __future__ import annotations

import json

from tools import gpu_page

ABOUT = dict(
    date="2030-01-01 00:00 UTC", command="python tools/gpu.py", python="3", processor="x86_64", cores=2, commit=None
)


def test_page_is_current() -> None:
    runs = json.loads(gpu_page.KEPT.read_text()) if gpu_page.KEPT.exists() else []
    assert gpu_page.PAGE.read_text(encoding="utf-8") == gpu_page.page(runs)


def test_goals_and_rows() -> None:
    rows = [
        dict(stage="b", name="one", precision="fp32", holds=True),
        dict(stage="b", name="two", precision="fp32", error="ValueError: a | b"),
        dict(stage="b", name="one", precision="bf16", outputs=0.01),
        dict(stage="c", name="CroCo v2 large, pair", how="eager", batch=64, share=0.4, per_second=1234.5),
        dict(stage="c", name="CroCo v2 large, pair", how="compiled", batch=64, share=0.5, per_second=2000.0),
        dict(stage="c", name="CroCo v2 large, pair", how="compiled", batch=256, share=0.9),
        dict(stage="c", name="PIRL ResNet-50", how="graph", batch=1, skipped="1 s were left"),
        dict(stage="c", name="the stage", ended="cut off", seconds=90.0),
        dict(stage="d", name="convmae_base", how="eager", per_second=100.0),
        dict(stage="d", name="convmae_base", how="dense", per_second=70.0),
        dict(stage="f", name="dust3r_nano", skipped="without croco_nano_rich"),
    ]
    text = gpu_page.page([dict(about=ABOUT, rows=rows)])
    for line in (
        "| golden cases within the tests' bars in float32, share | at least 1 | 0.5 | no |",
        "| CroCo v2 large pair, forward at batch 64: share of the matrix rate | at least 0.45 | 0.5 | yes |",
        "| ConvMAE's sparse step, share of the dense one's time | at most 0.62 | 0.7 | no |",
        "| two | fp32 |  | ValueError: a / b |  |",
        "| CroCo v2 large, pair | eager | 64 | 0.4 | 1,234 |",
        "**c. forward passes** (cut off)",
        "Its time ended before 1 of 4 rows, which docs/gpu.json names.",
        "**d. pretraining steps** (cut off with the whole run)",
        "| dust3r_nano | without croco_nano_rich |",
    ):
        assert line in text.splitlines(), line
    assert "graph" not in text.partition(gpu_page.BEGIN)[2].partition(gpu_page.END)[0], "a row without figures"
    assert "pretraining step: share" not in text, "not measured"
    assert gpu_page.NOTHING not in text
