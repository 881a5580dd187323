"""Images of Hugging Face's `datasets`, of the Hub or on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.models.arguments import MAX_CLASSES
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
        self.classes: tuple[str, ...] = ()
        self.num_classes = 0
        if label in table.column_names:
            self.classes = tuple(getattr(table.features[label], "names", ()))
            self.num_classes = len(self.classes) or 1 + max(table.unique(label))
            if self.num_classes > MAX_CLASSES:
                raise DataError(
                    f"The labels of the data set {path} go up to {self.num_classes - 1:,}, and the most is "
                    f"{MAX_CLASSES - 1:,}; number its classes from 0."
                )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        image = row[self.image]
        sample = dict(image=read_image(image["path"] or f"Image {index} of {self.path}", image["bytes"]))
        return {**sample, "label": row[self.label]} if self.num_classes else sample
