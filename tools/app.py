#!/usr/bin/env python3
"""Look at detections in a browser: found, missed, false; thresholds; detectors side by side.

    python tools/app.py output/demo/run                     # detectors of a run, with ground truth
    python tools/app.py output/a --against output/b output/c
    python tools/app.py colonoscopy.mp4 --model student.xml output/demo/run/plain/best.pth
    python tools/app.py                                     # choose on the page

The page is for this machine alone: it listens on 127.0.0.1. What can be chosen on it lies below
--root. Ctrl-C ends it, and removes uploads.
"""

from __future__ import annotations

import argparse
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from v2i_runtime.stop_signals import stop_signals

MIB = 2**20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "source", nargs="?", type=Path, metavar="RUN|VIDEO", help="output folder of a run, or video"
    )
    add("--against", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare with")
    add("--model", nargs="+", type=Path, default=[], metavar="FILE", help="detectors of the video")
    add("--root", type=Path, default=Path(), help="folder of what can be chosen (default: here)")
    add("--fps", type=float, help="frames a second, in place of what a split's file says")
    add("--port", type=int, default=8080, help="port (default 8080; 0: any that is free)")
    add("--max-upload-mib", type=int, default=2048, help="largest upload (default 2048)")
    add("--no-browser", action="store_true", help="do not open the page in a browser")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for what does not fit together, before anything is read."""
    is_run = options.source is not None and (options.source / "config.yaml").is_file()
    if options.source is not None and not options.source.exists():
        raise ValueError(f"{options.source}: no such file or folder")
    if options.against and not is_run:
        raise ValueError("--against compares runs: give the folder of a run first")
    if options.model and (options.source is None or is_run):
        raise ValueError("--model is for a video: give the video, too")
    if options.source is not None and not is_run and not options.model:
        raise ValueError(f"{options.source}: is no run (no config.yaml); for a video give --model")
    if not options.root.is_dir():
        raise ValueError(f"--root {options.root}: no such folder")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}: must be 0 to 65535")
    if options.max_upload_mib < 1:
        raise ValueError(f"--max-upload-mib {options.max_upload_mib}: must be at least 1")
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise ValueError(f"--fps {options.fps}: must be above 0 and at most 1000")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; returns 2 after an error, 130 if cut off before."""
    options = parse(arguments)
    try:
        check(options)
    except ValueError as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    for number in stop_signals():  # whose default would leave uploads behind
        signal.signal(number, signal.default_int_handler)
    try:
        return serve(options)
    except KeyboardInterrupt:
        return 130


def serve(options: argparse.Namespace) -> int:
    """Open what is asked for, and serve the page."""
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()  # before the imports that warn
    try:
        from v2idetr.review.choices import check_model, look_for
        from v2idetr.review.desk import Desk
        from v2idetr.review.server import HOST, listen, own_folder, server
    except ImportError as error:
        print(f"app: {error}; pip install -r requirements-app.txt", file=sys.stderr)
        return 2
    with own_folder() as folder:
        desk = Desk(look_for(options.root), folder, options.max_upload_mib * MIB, options.fps)
        token = ""
        try:
            for path in options.model:
                check_model(path)
            own = listen(options.port)
            if options.model:
                source = options.source
                token = desk.open_video(source, str(source), options.model)
            elif options.source is not None:
                token = desk.open_runs([options.source, *options.against])
        except (ValueError, OSError) as error:
            print(f"app: {error}", file=sys.stderr)
            return 2
        path = f"review/{token}" if token else ""
        address = f"http://{HOST}:{own.getsockname()[1]}/{path}"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            webbrowser.open(address)
        try:
            server(desk).run(sockets=[own])
        except KeyboardInterrupt:
            pass
        finally:
            desk.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
