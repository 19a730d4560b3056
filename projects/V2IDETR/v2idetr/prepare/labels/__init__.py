"""Label files of annotation tools -> the videos that a converter writes.

    label_set     what a reader returns: labelled frames, as their file names them
    cvat, label_studio, coco, yolo, pascal_voc, labelme   readers, one for each format
    tracks        keyframes -> the box of every frame
    shapes        polygons, rotated boxes, ellipses and masks -> their bounding box
    label_files   files below a folder -> their format, and all that is read of them
    classes       names in the files -> classes of the detector
    media         videos and images below a folder, by name and frame
    matching      labelled frames + media -> frames of videos
    splits        videos or patients -> train, val and test
    suggestion    what was imported -> sizes, steps and memory of a config

The readers are our own because no library keeps what medical video needs. For supervision 0.31 an
image without a label file is one without a lesion; it drops ids of lesions and rotation, and reads
no CVAT and no Label Studio. labelformat 0.1 leaves out polygons and rotation without a count, and
knows no tracks. datumaro 1.13 lists only the frames that a CVAT file lists, and takes a track's
boxes with ``outside="1"`` for visible ones. Libraries do the rest: defusedxml, PyYAML, pycocotools;
and in the tests, their writers make the files.

A path in a label file is never opened: it is compared with the names of the media that were found.
"""
