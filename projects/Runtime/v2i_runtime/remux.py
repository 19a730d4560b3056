"""Fragments of a video, and the sound of its source -> one MP4 with its index in front."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer

# Codecs of MP4 that players have; FFmpeg also stores PCM and others in it, which few play.
AUDIO_CODECS = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")


@dataclass(frozen=True)
class Sound:
    """Sound of a video file between two of its times; it is copied, never encoded again.

    Attributes:
        path: video file.
        start_s: time that becomes 0.
        end_s: end of the last frame.
    """

    path: Path
    start_s: Fraction
    end_s: Fraction


def remux(video: Path, target: Path, sound: Sound | None) -> list[str]:
    """Copy a video, with sound if there is one, to an MP4 with its index in front.

    Returns:
        Sentences about sound that could not be copied.

    Raises:
        OSError, av.FFmpegError: the video cannot be read, or the target not be written.
    """
    if sound is not None:
        try:
            return _remux(video, target, sound)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise  # a full disk
            return [*_remux(video, target, None), f"sound left out: {error.strerror}"]
    return _remux(video, target, None)


def _remux(video: Path, target: Path, sound: Sound | None) -> list[str]:
    notes: list[str] = []
    with ExitStack() as files:
        source = files.enter_context(av.open(video))
        output = files.enter_context(
            av.open(target, "w", format="mp4", options={"movflags": "+faststart"})
        )
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [_video_packets(source, stream)]
        if sound is not None:
            heard = files.enter_context(av.open(sound.path))
            packets.append(_sound_packets(heard, output, sound, notes))
        for packet in heapq.merge(*packets, key=_decoding_time_s):
            output.mux(packet)
    return notes


def _decoding_time_s(packet: av.Packet) -> Fraction:
    return (packet.dts or 0) * (packet.time_base or Fraction(0))


def _video_packets(source: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    for packet in source.demux(source.streams.video[0]):
        if packet.dts is not None:
            packet.stream = stream
            yield packet


def _sound_packets(
    source: InputContainer, output: OutputContainer, sound: Sound, notes: list[str]
) -> Iterator[av.Packet]:
    """Packets that begin within the excerpt, on the clock of the output."""
    streams = {}
    for stream in source.streams.audio:
        # A decoder has a name of its own, such as mp3float.
        name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
        if name in AUDIO_CODECS:
            streams[stream.index] = output.add_stream_from_template(stream)
        else:
            notes.append(f"sound left out: an MP4 with codec {name} does not play everywhere")
    return _within(source, streams, sound, notes)


def _within(
    source: InputContainer, streams: dict[int, av.AudioStream], sound: Sound, notes: list[str]
) -> Iterator[av.Packet]:
    if not streams:
        return
    try:
        for packet in source.demux([source.streams[index] for index in streams]):
            if packet.pts is None or packet.time_base is None:
                continue
            time_s = packet.pts * packet.time_base
            if sound.start_s <= time_s < sound.end_s:
                packet.stream = streams[packet.stream.index]
                packet.pts -= round(sound.start_s / packet.time_base)
                packet.dts = packet.pts  # no packet of sound depends on a later one
                yield packet
    except av.FFmpegError as error:
        notes.append(f"sound ends early: its data is damaged ({error.strerror})")
