"""Before a long run: each stage is trained on eight frames until it finds their lesions.

frames      which eight, as the stage sees them
training    the training on them, and what of it was found
data        what is wrong with the frames and boxes, measured without training
causes      what stands in the way where they are not found
cost        time, memory and disk of the whole run, from measured steps
run         all of it for a config
"""
