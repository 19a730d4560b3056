"""A part of a config, as a user would write it."""

from detectron2.config import LazyCall as L

model = L("my_parts.Memory")(class_names="${data.class_names}")
