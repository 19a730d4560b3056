"""Surgical phase recognition on frame features: temporal model, k-NN, linear probe, metrics.

Shape legend, beside that of ``v2idetr.modeling.interface``::

    T  frames of one video     d  width of a frame's features     K  phases
    N  labelled frames         Q  frames to classify              S  stages of the temporal model
"""
