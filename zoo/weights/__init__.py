"""From a variant to a verified local .safetensors file: sources, download, safe reading, cache."""

from zoo.weights.disk.safetensors_format import save_safetensors
from zoo.weights.reading.unpickle import Checkpoint, read_checkpoint
from zoo.weights.rules import Alias, Drop, Fresh, KeyRules, Rename, check_state, without_prefixes
from zoo.weights.sources import cache_dir, cached_path, fetch, source_of, verify

__all__ = [
    "Alias",
    "Checkpoint",
    "Drop",
    "Fresh",
    "KeyRules",
    "Rename",
    "cache_dir",
    "cached_path",
    "check_state",
    "fetch",
    "read_checkpoint",
    "save_safetensors",
    "source_of",
    "verify",
    "without_prefixes",
]
