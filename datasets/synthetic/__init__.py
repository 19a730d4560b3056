"""Procedural endoscopy-like and ultrasound-like video with exact boxes (numpy, Pillow, scipy).

`tracks` moves the lesion over the image; `wall` and `colon`, or `breast`, render the scene;
`degrade` degrades single frames; `clips` combines these into frames with masks; `sun`, `sunseg`
and `buv` write files in the layouts of these data sets (assumptions: `layouts`).
`../make_synthetic.py` is the program. `surgery` makes operations with their phases, from
`surgery_anatomy`, `surgery_tools` and `surgery_view`, for `../make_surgery.py`. `output` says what
made a folder.
"""
