"""BLEU, METEOR, ROUGE-L and CIDEr of captions, by the COCO caption tools.

Scorers and jars are those of `pycocoevalcap` (extra `[eval]`; nothing is downloaded, SPICE is not
used): the tokenizer of the Penn Treebank and METEOR 1.5 run in Java, BLEU, ROUGE-L and CIDEr in
Python. The two jars are called by the same commands as that package's, but once, with all captions
on standard input and in UTF-8 whatever the locale; the package itself writes into its own folder.

ROUGE-L is a mean over captions. BLEU and METEOR pool counts over captions before they divide, so
they are functions of sums and not means. CIDEr is a mean, but weighs words by how many images'
references have them. `caption_sums` keeps what each caption adds, so that a bootstrap draw is
scored as that set of captions would be, but with CIDEr's word weights of the whole set.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.evaluation.bootstrap import Scores, Summed, ratio

TIMEOUT = 3600  # seconds; METEOR takes 8 to start, several times that on a busy machine
BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")
# METEOR 1.5 for English: weights of matches by exact form, stem, synonym and paraphrase; content
# against function words; precision against recall; how much, and how steeply, disorder costs.
_MATCHES = np.array([1.0, 0.6, 0.8, 0.6])
_CONTENT, _ALPHA, _GAMMA, _BETA = 0.75, 0.85, 0.6, 0.2
CaptionSet = tuple[Sequence[str], Sequence[Sequence[str]]]
_SMALL, _TINY = 1e-9, 1e-15  # what BLEU's scorer adds to counts


def missing() -> str | None:
    """What is not installed of the tools, with how to install it; None if all is there."""
    try:
        _tool("tokenizer.ptbtokenizer")
        _find_java()
    except UserError as error:
        return str(error)
    return None


def caption_sums(sets: Sequence[CaptionSet]) -> list[Summed]:
    """What each candidate adds to the scores of its set; for `bootstrap.intervals`.

    A set is (candidates, references). Its scores are bleu1 to bleu4, meteor, rouge_l (0..1) and
    cider (0..10). Java, which takes seconds to start, reads all sets at once.

    Raises UserError where the extra or Java is missing and for a sample without references.
    """
    for candidates, references in sets:
        _check(candidates, references)
    said = [text for candidates, _ in sets for text in candidates]
    known = [some for _, references in sets for some in references]
    tokens = iter(tokenize([*said, *(text for some in known for text in some)]))
    said = [next(tokens) for _ in said]
    known = [[next(tokens) for _ in some] for some in known]
    meteor, found, end = _meteor_sums(said, known), [], 0
    for candidates, _ in sets:
        start, end = end, end + len(candidates)
        ours, theirs = said[start:end], known[start:end]
        parts = [_bleu_sums(ours, theirs), meteor[start:end], _means(ours, theirs)]
        found.append(Summed(np.concatenate(parts, axis=1), _scores))
    return found


def tokenize(texts: Sequence[str]) -> list[str]:
    """Each text as words in lower case with spaces between, punctuation left out."""
    module = _tool("tokenizer.ptbtokenizer")
    jar = Path(module.__file__).parent / module.STANFORD_CORENLP_3_4_1_JAR
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    lines = _java([*command, "-lowerCase"], [_line(text) for text in texts])
    drop = set(module.PUNCTUATIONS)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in drop) for line in lines]


# What each sample adds ----------------------------------------------------------------------------


def _bleu_sums(said: list[str], known: list[list[str]]) -> np.ndarray:
    """float[samples, 10]: right and all n-grams for n = 1 to 4, words said, words to be said."""
    scorer = _tool("bleu.bleu_scorer").BleuScorer(n=4)
    for text, references in zip(said, known, strict=True):
        scorer += (text, references)
    rows = []
    for own, (lengths, _) in zip(scorer.ctest, scorer.crefs, strict=True):
        closest = min((abs(length - own["testlen"]), length) for length in lengths)[1]
        rows.append([*own["correct"], *own["guess"], own["testlen"], closest])
    return np.array(rows, float)


def _meteor_sums(said: list[str], known: list[list[str]]) -> np.ndarray:
    """float[samples, 23]: METEOR's own statistics of each candidate against its best reference."""
    module = _tool("meteor.meteor")
    jar = Path(module.__file__).parent / module.METEOR_JAR
    lines = [
        " ||| ".join(["SCORE", *(_plain(r) for r in references), _plain(text)])
        for text, references in zip(said, known, strict=True)
    ]
    options = ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    table = np.array([[float(x) for x in line.split()] for line in _java(options, lines)])
    # A candidate that is its reference is one unbroken chunk; METEOR adds none, hence no disorder.
    table[(table[:, 21:23] == table[:, :2]).all(axis=1) & (table[:, 20] == 1), 20] = 0
    return table


def _means(said: list[str], known: list[list[str]]) -> np.ndarray:
    """float[samples, 3]: ROUGE-L, CIDEr, and 1 to divide by."""
    ours, theirs = dict(enumerate([text] for text in said)), dict(enumerate(known))
    rouge = _tool("rouge.rouge").Rouge().compute_score(theirs, ours)[1]
    cider = np.zeros(len(said))
    if any(text for some in known for text in some):  # of no words at all the tool has no weights
        cider = _tool("cider.cider").Cider().compute_score(theirs, ours)[1]
    return np.stack([rouge, cider, np.ones(len(said))], axis=1)


# Scores of sums -----------------------------------------------------------------------------------


def _scores(sums: np.ndarray) -> Scores:
    means = sums[..., 33:]
    return {
        **dict(zip(BLEU, _bleu(sums[..., :10]), strict=True)),
        "meteor": _meteor(sums[..., 10:33]),
        "rouge_l": means[..., 0] / means[..., 2],
        "cider": means[..., 1] / means[..., 2],
    }


def _bleu(sums: np.ndarray) -> list[np.ndarray]:
    right, all_of_them = sums[..., :4], sums[..., 4:8]
    precision = np.cumprod((right + _TINY) / (all_of_them + _SMALL), axis=-1)
    share = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / share, 0))
    return [precision[..., n] ** (1 / (n + 1)) * brevity for n in range(4)]


def _meteor(sums: np.ndarray) -> np.ndarray:
    length, function = sums[..., 0:2], sums[..., 2:4]  # of candidate and reference, as all below
    content, functional = (
        np.stack([sums[..., 4 + i + side : 20 : 4] @ _MATCHES for side in (0, 1)], axis=-1)
        for i in (0, 2)
    )
    matched = _CONTENT * content + (1 - _CONTENT) * functional
    whole = _CONTENT * (length - function) + (1 - _CONTENT) * function
    precision, recall = np.moveaxis(ratio(matched, whole), -1, 0)
    mean = ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    disorder = ratio(2 * sums[..., 20], sums[..., 21] + sums[..., 22])
    return mean * (1 - _GAMMA * disorder**_BETA)


# Tools --------------------------------------------------------------------------------------------


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} candidates for {len(references)} lists of references")
    for number, some in enumerate(references):
        if isinstance(some, str) or not some:
            raise UserError(f"caption {number}: no references; expected a list of one text or more")


def _tool(name: str):
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise UserError(
            f"the COCO caption tools are not installed ({error}): pip install 'meerkat_jax[eval]'"
        ) from None


def _java(options: Sequence[str], lines: list[str]) -> list[str]:
    """One line of output for each line of input."""
    command = [_find_java(), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *options]
    text = "".join(line + "\n" for line in lines).encode()
    done = subprocess.run(command, input=text, capture_output=True, timeout=TIMEOUT)
    found = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(found) != len(lines):
        last = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(
            f"{' '.join(command)}: exit code {done.returncode}, {len(found)} lines for "
            f"{len(lines)}: {last}"
        )
    return found


def _find_java() -> str:
    java = shutil.which("java")
    if java is None:
        raise UserError(
            "captions are scored by tools in Java, and there is no java on the PATH: "
            "apt-get install default-jre-headless, or another Java 8 or later"
        )
    return java


def _line(text: str) -> str:
    """A text as one line that the tokenizer answers by one line: *NL* is its sign for two."""
    one = " ".join(str(text).replace("*NL*", " ").split())
    return one.encode(errors="replace").decode()


def _plain(tokens: str) -> str:
    """Words without METEOR's sign between texts."""
    return " ".join(tokens.replace("|||", " ").split())
