"""Runs inside the emulated root: one text translated, profiled by onnxruntime.

    profile_guest.py BUNDLE FOLDER BEAM SOURCE_LANG TARGET_LANG TEXT

Prints the profiles' paths by graph, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime as ort


def main() -> None:
    bundle, folder, beam, source_lang, target_lang, text = sys.argv[1:]
    sessions = {}
    plain = ort.InferenceSession

    def profiling(path: str, options: ort.SessionOptions, **more):
        role = Path(path).stem
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/{role}"
        sessions[role] = plain(path, options, **more)
        return sessions[role]

    ort.InferenceSession = profiling
    import edgemt

    edgemt.load(bundle).translate(text, source_lang=source_lang, target_lang=target_lang, beam=int(beam))
    json.dump({role: session.end_profiling() for role, session in sessions.items()}, sys.stdout)


if __name__ == "__main__":
    main()
