"""Images of Hugging Face's `datasets`, of the Hub or on disk."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.models.making.arguments import MAX_CLASSES
from zoo.photos import read_image


class HubImages:
    """A data set of Hugging Face's `datasets`: one of the Hub, a folder that it saved, or one of parquet files.

    path: its name or folder. name: the configuration, where there are several. image, label: the columns; without
    that of the labels, there are none. Raises DataError (a ValueError).
    """

    def __init__(
        self, path: str, split: str = "train", name: str | None = None, image: str = "image", label: str = "label"
    ) -> None:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise DataError(
                "Hugging Face data needs the package datasets; get it with pip install 'pretext-zoo[data]'."
            ) from error
        try:
            if (Path(path) / "dataset_dict.json").is_file():
                table = datasets.load_from_disk(str(Path(path) / split))
            elif (Path(path) / "state.json").is_file():
                table = datasets.load_from_disk(path)
            else:
                table = datasets.load_dataset(path, name, split=split)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The data set {path} can't be loaded ({error}); check its name or folder and the split '{split}'."
            ) from error
        if image not in table.column_names:
            raise DataError(
                f"The data set {path} has no column '{image}'; set data.image to one of "
                f"{', '.join(table.column_names)}."
            )
        self.path, self.image, self.label = path, image, label
        columns = [image, label] if label in table.column_names else [image]
        # decoded here, so that a damaged image is named
        self.table = table.select_columns(columns).cast_column(image, datasets.Image(decode=False))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels' names, where they have some."""
        return self._labels[0]

    @property
    def num_classes(self) -> int:
        """How many classes there are, 0 without labels; asked for, the labels are read and samples have theirs."""
        return self._labels[1]

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], int]:
        """The classes' names and number. Raises DataError (a ValueError) for labels that are no classes."""
        if self.label not in self.table.column_names:
            return (), 0
        feature = self.table.features[self.label]
        where = f"The column '{self.label}' of the data set {self.path}"
        kind = str(getattr(feature, "dtype", type(feature).__name__))
        if names := getattr(feature, "names", ()):
            found: set[Any] = set()
        elif kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint")):
            found = set(self.table.unique(self.label))
        else:
            raise DataError(f"{where} holds no classes but {kind}; set data.label to a column of numbers or names.")
        known = self.table.with_format("arrow")[:][self.label].null_count == 0 if names else None not in found
        if not known:
            raise DataError(f"{where} has rows without a label; leave them out, or set data.label to another column.")
        if names:
            if -1 in self.table.unique(self.label):
                raise DataError(f"{where} has rows labeled -1, which are none; choose a split that has labels.")
            return tuple(names), len(names)
        if kind in ("string", "large_string"):
            return tuple(sorted(found)), len(found)
        if min(found) < 0:
            raise DataError(f"{where} has the label {min(found)}; number its classes from 0, or choose another split.")
        count = 1 + int(max(found))
        if count > MAX_CLASSES:
            raise DataError(
                f"The labels of the data set {self.path} go up to {count - 1:,}, and the most is "
                f"{MAX_CLASSES - 1:,}; number its classes from 0."
            )
        return (), count

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        image = row[self.image]
        sample = dict(image=read_image(image["path"] or f"Image {index} of {self.path}", image["bytes"]))
        if "_labels" not in self.__dict__ or not self.num_classes:  # nobody needs them
            return sample
        label = row[self.label]
        return {**sample, "label": self._numbers[label] if isinstance(label, str) else int(label)}
