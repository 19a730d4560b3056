"""Videos or frames on disk, with or without phase labels -> one COCO-VID JSON per split.

    phase_files    phase labels of Cholec80, M2CAI16 and CholecT50
    surgical       cached frames and their labels -> videos of a split
    command_line   common options and the run of ``datasets/prepare_*.py``

The files are COCO-VID as in `v2idetr.data.coco_vid`, without categories and annotations, and with

    phases               names of the phases in temporal order; labelled files alone
    images[].phase       name of the frame's phase; labelled files alone
    videos[].frame_rate  listed frames per second
"""
