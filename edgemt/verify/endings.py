"""The tokens between a prompt and its answer: of those that a template may end in, which suits the weights?

HY-MT's model card renders its template without a generation prompt, edgemt and most clients with it. Both
are tried: the log-probability of reference translations behind each, and what the model says behind each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgemt import prompts
from edgemt.answers import doubt
from edgemt.runtimes.protocol import Want
from edgemt.search import search
from edgemt.translator import Translator
from edgemt.verify.sections import NotRun, Section, Table, counted
from edgemt.verify.texts import Pair, clinic, first

NAME, TITLE = "ending", "Which ending of the prompt the weights answer better to"
NO_PROMPT = "an encoder-decoder model has no prompt"
SCORED, SCORED_QUICK = 20, 3  # references a direction
ANSWERED = 3  # of them, answers side by side
SURE = 2.0  # standard errors of the mean difference


def compared(translator: Translator, endings: Mapping[str, Sequence[int]], quick: bool) -> Section:
    """`endings`: what each is called, and its tokens; the first is the one that edgemt uses.

    Log-probabilities are in nats a token of the reference, its end included.
    """
    manifest = translator.bundle.manifest
    if len(endings) < 2:
        raise NotRun("only one ending of the prompt is known here; a checkpoint's template may have others")
    pairs = clinic(manifest.languages, SCORED_QUICK if quick else SCORED)
    if not pairs:
        raise NotRun(f"no sentences are built in for {', '.join(map('-'.join, manifest.languages))}")
    values = np.array(
        [[scored(translator, pair, ids) for ids in endings.values()] for pair in counted(pairs, "reference")]
    )
    made = Section(NAME, TITLE)
    made.tables.append(
        Table(
            "log-probability of the reference, nats a token",
            ("ending", "ids", "sentences", "mean", "of its first token", "better in"),
            [
                (
                    name,
                    " ".join(map(str, ids)),
                    len(pairs),
                    round(float(values[:, i, 0].mean()), 4),
                    round(float(values[:, i, 1].mean()), 4),
                    int((values[:, :, 0].argmax(1) == i).sum()),
                )
                for i, (name, ids) in enumerate(endings.items())
            ],
        )
    )
    made.tables.append(answers(translator, pairs, endings))
    made.facts["edgemt uses"] = next(iter(endings))
    made.facts["recommended"], made.facts["why"] = recommended(list(endings), values[..., 0])
    return made


def scored(translator: Translator, pair: Pair, ending: Sequence[int]) -> tuple[float, float]:
    """The mean log-probability of the reference's tokens behind the plain prompt, and that of the first."""
    model = translator.bundle.manifest.model
    row, reference = source(translator, pair, ending), translator.tokenizer.encode(pair.target)
    wanted = np.array([*reference, model.eos_id], np.int32).reshape(1, -1, 1)
    ids = np.array([[row[-1], *reference]], np.int32)
    encoded = translator.program.encode(np.array([row[:-1]], np.int32), np.array([len(row) - 1], np.int32))
    session = translator.program.open(encoded, np.zeros(1, np.int32), ids.shape[1])
    step = session.step(ids, np.array([ids.shape[1]], np.int32), Want(score=wanted))
    assert step.scored is not None
    logp = step.scored[0, :, 0]
    session.close()
    return float(logp.mean()), float(logp[0])


def source(translator: Translator, pair: Pair, ending: Sequence[int]) -> list[int]:
    """The ids of the pair's plain prompt with this ending."""
    asked = prompts.prompt(pair.source, pair.source_lang, pair.target_lang)
    return [*translator.bundle.manifest.chat["before"], *translator.tokenizer.encode(asked), *ending]


def answers(translator: Translator, pairs: Sequence[Pair], endings: Mapping[str, Sequence[int]]) -> Table:
    """What the model says behind each ending, greedily, and whether it comes to an end by itself."""
    model, rows = translator.bundle.manifest.model, []
    for pair in counted(first(pairs, ANSWERED), "answer"):
        for name, ending in endings.items():
            row = source(translator, pair, ending)
            started = dataclasses.replace(model, start_id=row[-1])
            length = len(translator.tokenizer.encode(pair.source))
            (said,) = search(translator.program, [row[:-1]], started, translator.options, lengths=[length])
            text = translator.tokenizer.decode(said.tokens)
            rows.append((pair.source, name, text, said.finished, not doubt(text, pair.target_lang)))
    return Table("answers", ("text", "ending", "answer", "ended", "right script"), rows)


def recommended(names: Sequence[str], values: np.ndarray) -> tuple[str, str]:
    """Of two endings or more by [sentences, endings] log-probabilities: which to use, and by how much."""
    order = np.argsort(-values.mean(0), kind="stable")
    best, next_best = int(order[0]), int(order[1])
    differences = values[:, best] - values[:, next_best]
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    by = f"{names[best]} is {mean:.4f} nats a token above {names[next_best]} (standard error {error:.4f})"
    if mean > SURE * error:
        return names[best], by
    return "none", f"no clear difference, so keep {names[0]}: {by}"
