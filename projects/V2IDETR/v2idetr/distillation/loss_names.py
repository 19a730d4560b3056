"""The keys below `distillation`, apart from the losses, which need torch."""

LOSSES = ("tfd", "fd", "ed", "cqd", "qd")
