"""Keys below `distillation`, in a module that does not import torch."""

LOSSES = ("tfd", "fd", "ed", "cqd", "qd")
