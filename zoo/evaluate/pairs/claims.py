"""What may be claimed of a model from its figures."""

from __future__ import annotations

from typing import Any


def verdict(scenes: dict[str, Any], photos: dict[str, Any]) -> dict[str, Any]:
    """What may be claimed from two of `measure`'s results: each claim's conditions, with their values and bars.

    "Clearly" is read as a tenth, "most" as more than half. Since many patches hardly move, and random features match
    as well, matches must also be better than staying in place, pixels and an untrained encoder. The way of matching is
    the best one on patches that moved, lest an attention that only looks at its own place be taken for matching.
    """
    losses, real = scenes["losses"], photos["losses"]
    right, shift = losses["right"], losses["global_shift_two_scalars"]
    shares = scenes["matches"]["within_patch_width"]
    moved = scenes["matches"]["within_patch_width_moved"]
    ways = [name for name in shares if name == "features" or name.startswith("attention")]
    way = max(ways, key=lambda name: moved.get(name, 0.0))
    trivial = max(shares[name] for name in ("same_place", "pixels", "untrained_features"))
    reference = min(losses["wrong"]["loss"], losses["zeros"]["loss"])
    uses = [
        _condition("right", right["loss"], "<=", 0.70),
        _condition("right, against 0.70 * min(wrong, zeros)", right["loss"], "<=", 0.70 * reference),
        _condition("right, against color copy", right["loss"], "<", losses["color_copy"]["loss"]),
        _condition("share of pairs with right < wrong", scenes["share_right_below_wrong"], ">=", 0.95),
        _condition("photos: right, against 0.9 * wrong", real["right"]["loss"], "<=", 0.9 * real["wrong"]["loss"]),
    ]
    match = [
        _condition("right, against global shift", right["loss"], "<", shift["loss"]),
        _condition("structure, against global shift's", right["structure"], "<", shift["structure"]),
        _condition("self, against 0.9 * right", losses["self"]["loss"], "<=", 0.9 * right["loss"]),
        _condition("matches within a patch width", shares[way], ">", 0.5),
        _condition("matches, against same place, pixels, untrained", shares[way], ">", trivial),
    ]
    uses_reference = all(condition["holds"] for condition in uses)
    return dict(
        uses_reference=dict(holds=uses_reference, conditions=uses),
        matches_views=dict(
            holds=uses_reference and all(condition["holds"] for condition in match), matched_by=way, conditions=match
        ),
    )


def _condition(name: str, value: float, relation: str, bar: float) -> dict[str, Any]:
    holds = {"<": value < bar, "<=": value <= bar, ">": value > bar, ">=": value >= bar}[relation]
    return dict(name=name, value=value, relation=relation, bar=bar, holds=holds)
