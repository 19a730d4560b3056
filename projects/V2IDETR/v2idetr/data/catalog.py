"""Registration of splits in Detectron2's catalogs, for its tools."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from v2idetr.data.coco_vid import SplitData


def register_splits(splits: Mapping[str, SplitData], prefix: str) -> None:
    """Register each split as ``<prefix>/<name>``, replacing an earlier one of that name.

    ``DatasetCatalog.get`` gives its records, ``MetadataCatalog.get`` the classes, the JSON, the
    image folder and the settings of ``COCOEvaluator``.
    """
    for part, split in splits.items():
        name = f"{prefix}/{part}"
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)
        DatasetCatalog.register(name, partial(list, split.records))
        MetadataCatalog.get(name).set(
            thing_classes=split.class_names,
            thing_dataset_id_to_contiguous_id={k + 1: k for k in range(len(split.class_names))},
            json_file=str(split.json_path),
            image_root=str(split.image_root),
            evaluator_type="coco",
        )
