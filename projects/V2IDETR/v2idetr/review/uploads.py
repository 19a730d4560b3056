"""Videos that a browser sent: stored under names of our own, opened only as what they claim to be.

FFmpeg also opens playlists, which are small files that name others, also of this machine and of the
network. So an upload is opened by the demuxers of ordinary video files alone.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import av

# Demuxers that read nothing but the file itself.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegts", "asf", "flv", "ogg", "mxf")
MOST_PIXELS = 8192 * 8192  # of a frame


def new_place(folder: Path) -> Path:
    """A path in a folder for an upload; nothing of the name that the browser sent is in it."""
    return folder / f"upload_{secrets.token_hex(8)}.video"


def check_video(path: Path, name: str) -> None:
    """Check that a file is a video by itself, of a size that can be decoded.

    Args:
        path: the file.
        name: its name for the message.

    Raises:
        ValueError: it is not.
    """
    try:
        with av.open(str(path), options={"format_whitelist": ",".join(FORMATS)}) as container:
            streams = container.streams.video
            if not streams:
                raise ValueError(f"{name}: holds no video")
            context = streams[0].codec_context
            if context is not None and context.width * context.height > MOST_PIXELS:
                raise ValueError(
                    f"{name}: frames of {context.width} x {context.height} px are too large"
                )
    except av.FFmpegError as error:
        raise ValueError(
            f"{name}: is no video file that can be read ({error.strerror}); give an MP4, MOV, MKV, "
            "WebM, AVI or MPEG file"
        ) from error
