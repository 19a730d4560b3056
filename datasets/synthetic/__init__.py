"""Procedural endoscopy-like and ultrasound-like video with exact boxes (numpy, Pillow, scipy).

`tracks` moves the lesion over the picture, `colon` and `breast` render what the camera sees,
`degrade` spoils single frames, `clips` puts the three together into frames with masks, and
`layouts` names the files as SUN, SUN-SEG and BUV do.  `../make_synthetic.py` is the program.
"""
