"""Self-supervised pretraining on unlabelled surgical video, and surgical phase recognition.

Free Lunch for Surgical Video Understanding by Distilling Self-Supervisions (arXiv 2205.09292).
"""
