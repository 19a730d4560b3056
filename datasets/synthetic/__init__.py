"""Procedural endoscopy-like and ultrasound-like video with exact boxes (numpy, Pillow, scipy).

`tracks` moves the lesion over the image; `wall` and `colon`, or `breast`, render what the camera
sees; `degrade` spoils single frames; `clips` puts these together into frames with masks; `sun`,
`sunseg` and `buv` name the files as those data sets do (`layouts` chooses, and says what is
assumed).  `../make_synthetic.py` is the program.
"""
