"""What every model of the zoo is: a timm model that takes the authors' checkpoints, by its family's key rules."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    adapt_input_conv,
)
from torch import Tensor, nn

from zoo import weights
from zoo.errors import CheckpointMismatchError, ZooError, printable
from zoo.layers.positions.tables import GridTable
from zoo.models.shared.ancestry import Ancestor, ancestor_of
from zoo.models.shared.identify import check_model_state
from zoo.weights import Checkpoint, KeyRules, without_prefixes
from zoo.weights.disk import records

_logger = logging.getLogger("zoo")

_MAX_TENSORS = 2000  # of a variant's checkpoint; the largest have 900


class ZooModel(nn.Module):
    """What every model of the zoo knows about its own checkpoints."""

    layouts: Mapping[str, KeyRules] = {}
    """Foreign key layouts that this form can read, by name; each with rules that say what becomes of every key."""

    first_conv = "patch_embed.proj"
    default_out_indices: int | tuple[int, ...] = 3
    """What features_only gives when nobody says; an int: that many last ones."""
    features_only_advice = "{} is no backbone of one image, so features_only does not apply; create {} with it."
    cfg: Mapping[str, Any] = {}
    """What timm's pretrained config of this form has otherwise than `_pretrained_cfg` says."""
    config_file = False
    """Whether the authors' repositories have a config.json that weights are to be compared with."""
    head_name: str | None = None
    """The part that a checkpoint may lack or have in another size: then it is drawn anew, with a warning."""

    file_args: Mapping[str, Callable[[Checkpoint], Any]] = {}
    """The few constructor arguments that a checkpoint decides, whatever the catalog says: how to read each from it.

    A reader gives None for a checkpoint that does not tell."""

    in_chans: int
    num_classes: int
    patch_size: int
    pretrained_cfg: dict[str, Any]  # timm sets it

    ancestor: Ancestor | None = None
    """Whose license the weights keep; None for those of a model that started at random."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # TorchScript takes a class's annotations, or the next ones above it, for types of its own, which ours are not
        cls.__annotations__ = {"training": bool}

    def init_weights(self) -> None:
        """Draw all parameters anew."""
        raise NotImplementedError

    def init_weights_unless_meta(self) -> None:
        """What constructors end with: a model on the meta device is about to be given its weights."""
        if not next(self.parameters()).is_meta:
            self.init_weights()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit tensors that depend on the image size to this model's."""
        for key, module in self._grid_tables(state).items():
            state[key] = _fitted(key, module.fit, state[key])
        return state

    def _grid_tables(self, state: Mapping[str, Tensor]) -> dict[str, GridTable]:
        """The modules of a state's tables of positions."""
        modules = {f"{name}.table": module for name, module in self.named_modules() if isinstance(module, GridTable)}
        return {key: module for key, module in modules.items() if key in state}

    def convert(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """A checkpoint in any layout this form knows -> its tensors under our names, every key accounted for.

        Raises CheckpointMismatchError (a ValueError) when a key is unknown or missing.
        """
        state = self._renamed(checkpoint)
        for key, module in self._grid_tables(state).items():
            state[key] = _fitted(key, module.place, state[key])
        return state

    def _renamed(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        name = str(checkpoint.path)
        found = self.layout_of(checkpoint)
        if found is None:
            return dict(checkpoint.tensors)  # load_pretrained's comparison says what is wrong
        prefix, tensors, rules = found
        if prefix:
            _logger.info("%s: took %s off the names of its tensors", name, prefix)
        if rules is None:
            return dict(tensors)
        return rules.fill(rules.to_zoo(tensors, name=name), self.state_dict() if rules.fresh else {}, name=name)

    def layout_of(self, checkpoint: Checkpoint) -> tuple[str, Mapping[str, Tensor], KeyRules | None] | None:
        """What stands in front of a checkpoint's names, its tensors without it, and the rules that cover all of them,
        None for this form's own names. None if no layout fits."""
        own = set(self.state_dict())
        for prefix, tensors in without_prefixes(checkpoint.tensors):
            if set(tensors) == own:
                return prefix, tensors, None
            for rules in self.layouts.values():
                if rules.covers(tensors):
                    return prefix, tensors, rules
        return None

    @classmethod
    def args_from(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """The arguments that a checkpoint decides (`file_args`), as far as it tells them."""
        found = {name: read(checkpoint) for name, read in cls.file_args.items()}
        return {name: value for name, value in found.items() if value is not None}

    def file_metadata(self) -> dict[str, str]:
        """What a safetensors file of this model says besides its tensors, so that `file_args` finds it there."""
        args = {name: getattr(self, name) for name in self.file_args if hasattr(self, name)}
        return {"model_args": json.dumps(args)} if args else {}

    def reference_state(self) -> dict[str, Tensor]:
        """This model's tensors under the names of the reference's checkpoints: the inverse of `convert`.

        Raises CheckpointMismatchError (a ValueError) for a form or a layer that the reference does not have.
        """
        for name, module in self.named_modules():
            if isinstance(module, GridTable) and not module.tells_grid():
                raise CheckpointMismatchError(
                    f"The reference's checkpoints don't tell a grid, and {name} is of {module.grid[0]} x "
                    f"{module.grid[1]} patches. Export it under the zoo's own names, or set_input_size to a square."
                )
        for layout, rules in self.layouts.items():
            if layout.endswith("reference"):
                return rules.to_reference(self.state_dict())
        raise CheckpointMismatchError(
            f"The reference has no checkpoints of {type(self).__name__}; export it under the zoo's own names."
        )

    def reference_settings(self) -> dict[str, Any]:
        """What the reference's checkpoints hold besides the tensors, for code that builds a model from it."""
        return {}

    def load_pretrained(self, checkpoint_path: str | Path) -> None:
        """Load a safetensors file or a reference checkpoint, strictly, from where it lies.

        Only two things may differ from the file: input channels (the first convolution is adapted as timm
        does) and the head (`head_name`: a classifier of other classes, a dense head to be trained).
        Raises CheckpointMismatchError, CorruptWeightsError or UnsafeCheckpointError (all ValueErrors or OSErrors).
        """
        ours = weights.sources.is_ours(checkpoint_path)
        self._load(weights.read_checkpoint(checkpoint_path, **({"mapped": True} if ours else {})))

    def load_encoder(self, checkpoint: Checkpoint) -> None:
        """Start from a checkpoint of this form's `encoder` alone, strictly; one warning says what stays at random.

        Raises what `load_pretrained` does.
        """
        encoder: Any = self.encoder
        encoder._load(without_classifier(checkpoint, encoder))
        self.ancestor = encoder.ancestor
        others = dict.fromkeys(key.partition(".")[0] for key in self.state_dict() if not key.startswith("encoder."))
        _logger.warning(
            "%s: %s holds the encoder alone, so %s start at random, to be trained.",
            *(self.pretrained_cfg["architecture"], checkpoint.path, ", ".join(others)),
        )

    def takes(self, checkpoint: Checkpoint) -> bool:
        """Whether `load_pretrained` would load a checkpoint."""
        try:
            state, expected, _ = self._fit(checkpoint)
            weights.check_state(state, expected, name="", path=checkpoint.path)
        except CheckpointMismatchError:
            return False
        return True

    def _fit(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor], set[str]]:
        """A checkpoint's tensors fitted to this model, those that it should have, and the keys that are drawn anew."""
        state = self.adapt_state(dict(self.convert(checkpoint)))
        own = self.state_dict()
        self._adapt_in_chans(state, own)
        fresh = self._fresh_head(state, own)
        return state, {key: value for key, value in own.items() if key not in fresh}, fresh

    def _load(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.path
        state, expected, fresh = self._fit(checkpoint)
        own = self.state_dict()
        name = getattr(self, "pretrained_cfg", {}).get("architecture") or type(self).__name__
        check_model_state(type(self), state, expected, name, checkpoint)
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
        _warn_of_nan(state, name, path)
        building = next(self.parameters()).is_meta  # else others may hold the parameters: they are copied into
        if building and not checkpoint.mapped:
            state = _own_memory(state, checkpoint.size)
        self.load_state_dict(state, strict=not fresh, assign=building)
        if fresh:
            assert self.head_name is not None
            head = self.get_submodule(self.head_name)
            if building:
                head.to_empty(device="cpu")
            for module in head.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm)):
                    module.reset_parameters()
            head.apply(init_linear)
            _logger.warning("%s: %s is not in %s and starts at random, to be trained.", name, self.head_name, path)
        license = getattr(self, "pretrained_cfg", {}).get("license") or ""
        self.ancestor = ancestor_of(checkpoint.extra, path.name, license)

    def _adapt_in_chans(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        key = self.first_conv + ".weight"
        if key in state and state[key].ndim == 4 and state[key].shape[1] == 3 != own[key].shape[1]:
            state[key] = adapt_input_conv(self.in_chans, state[key])

    def _fresh_head(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
        """Keys of the head, if this model's is of another size than the checkpoint's (or that has none)."""
        if self.head_name is None:
            return set()
        keys = {key for key in own if key.startswith(self.head_name + ".")}
        theirs = {key for key in state if key.startswith(self.head_name + ".")}
        fit = theirs <= keys and all(state[key].shape == own[key].shape for key in theirs)
        if fit and theirs:  # this very head; if a part of it is missing, that is damage and no other head
            return set()
        for key in theirs:
            del state[key]
        return keys


_MOST_REPEATED = 1 << 22
"""Numbers of a table of positions that are one, repeated; a table of 64 x 64 patches and 1,024 channels has as many."""


def _fitted(key: str, fit: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """A checkpoint's table of positions as the model wants it; what is no table stays, to be told by its shape, and so
    does one of which less is stored than it says: resampling would make all of it."""
    if table.numel() * table.element_size() > table.untyped_storage().nbytes() and table.numel() > _MOST_REPEATED:
        return table
    try:
        return fit(table)
    except ZooError:
        raise
    except ValueError as error:
        raise CheckpointMismatchError(f"{printable(key)}: {error}") from error
    except (LookupError, TypeError, RuntimeError, ArithmeticError):
        return table


def _warn_of_nan(state: Mapping[str, Tensor], name: str, path: Path) -> None:
    known = records.recorded_not_finite(path)
    bad = [key for key, value in state.items() if not records.is_finite(value)] if known is None else known
    bad = [key for key in bad if key in state]
    if bad:
        listed = ", ".join(map(printable, bad[:3])) + (", ..." if len(bad) > 3 else "")
        _logger.warning("%s: %d tensors of %s hold NaN or infinity, such as %s.", name, len(bad), path, listed)


def _own_memory(state: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Tensors that are parts of a checkpoint in memory as a model can keep them: each with memory of its own.

    size: of the checkpoint in bytes. Tensors that have memory of their own stay where they are, unless that would keep
    much else of the checkpoint, such as the optimizer.
    """
    copy = sum(value.nbytes for value in state.values()) < 0.75 * size
    seen: set[int] = set()
    own = {}
    for key, value in state.items():
        storage = value.untyped_storage()
        alone = value.is_contiguous() and storage.nbytes() == value.nbytes and storage.data_ptr() not in seen
        own[key] = value if alone and not copy else value.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return own


def without_classifier(checkpoint: Checkpoint, encoder: ZooModel) -> Checkpoint:
    """A checkpoint without the classifier and its norm, which an encoder under a pretext task does not have."""
    own = encoder.state_dict()
    kept = {k: v for k, v in checkpoint.tensors.items() if k in own or not k.startswith(("fc_norm.", "head."))}
    return replace(checkpoint, tensors=kept)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, the ViT's norms at one: the masked-image papers' start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
