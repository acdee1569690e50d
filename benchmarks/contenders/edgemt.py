"""Contender: edgemt with one of its bundles.

python -m benchmarks.contenders.edgemt [--model BUNDLE] [--beam 1] [--threads 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.contenders.serve import loop

HELDOUT = 40  # sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="bundle (default: the one that edgemt has)")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import edgemt

    translator = edgemt.load(args.model, threads=args.threads)

    def translate(text: str, source_lang: str, target_lang: str) -> str:
        return translator.translate(text, source_lang=source_lang, target_lang=target_lang, beam=args.beam)

    loop(translate)


def prepare(checkpoint: Path, out: Path, *options: str) -> None:
    """`edgemt export` with these options. Whatever passes: the page shows what each precision costs."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "heldout.tsv"  # a gate that refuses nothing needs no thousand sentences
        lines = (checkpoint / "heldout.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        few.write_text("".join(lines[: HELDOUT + 1]), encoding="utf-8")
        gate = ["--heldout", str(few), "--max-bleu-drop", "100", "--max-new-critical", str(HELDOUT)]
        command = [sys.executable, "-m", "edgemt.cli", "export", str(checkpoint), *options, *gate]
        command += ["--name", "medical-zh-en", "-o", str(out)]
        if code := subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit(code)  # its last line on stderr says why


if __name__ == "__main__":
    main()
