"""Names of transformers 4 that scripts use and transformers 5 takes without a word, or no longer has.

``GPT2Tokenizer(vocab_file=..., merges_file=...)`` and ``BertTokenizer(vocab_file=...)`` give a tokenizer with an empty
vocabulary in transformers 5: no error, only wrong answers. Here the files are read, as they were before. Pipelines that
are gone are refused with what to do. Does not cover: vocabularies of sentencepiece given by keyword.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import ModuleType
from typing import Any

from container.errors import LoadFailed

#: Tasks of ``transformers.pipeline`` that version 5 dropped.
DROPPED = ("summarization", "translation", "text2text-generation", "conversational")
_SHIMMED = "_berth_shimmed"


def read_vocabulary_files(tokenizers: ModuleType) -> None:
    """Let tokenizers of transformers 5 read ``vocab_file=`` and ``merges_file=``; for their module once imported."""
    base = tokenizers.TokenizersBackend

    def init_subclass(cls: Any, /, **options: Any) -> None:
        """Let a tokenizer that is defined later read files, too."""
        super(base, cls).__init_subclass__(**options)
        _wrap(cls)

    if _SHIMMED not in vars(base):
        base.__init_subclass__ = classmethod(init_subclass)
        setattr(base, _SHIMMED, True)
        kinds = list(base.__subclasses__())
        while kinds:
            kind = kinds.pop()
            _wrap(kind)
            kinds.extend(kind.__subclasses__())


def _wrap(kind: Any) -> None:
    init = vars(kind).get("__init__")
    if init is None or "vocab" not in (parameters := inspect.signature(init).parameters):
        return

    @functools.wraps(init)
    def with_files(self: Any, *given: Any, **named: Any) -> None:
        """``__init__`` that reads the files it is given by keyword."""
        vocabulary = named.get("vocab_file")
        read_already = given or named.get("vocab") is not None or named.get("tokenizer_file") is not None
        if not read_already and isinstance(vocabulary, str) and vocabulary.endswith((".json", ".txt")):
            named["vocab"] = vocabulary
            if "merges" in parameters and named.get("merges") is None:
                named["merges"] = named.get("merges_file")
        init(self, *given, **named)

    kind.__init__ = with_files


def refuse_dropped_tasks(pipelines: ModuleType) -> None:
    """Say what to do instead of ``pipeline("summarization")``; for ``transformers.pipelines`` once imported."""
    make = pipelines.pipeline
    if hasattr(make, _SHIMMED) or not hasattr(pipelines, "PIPELINE_REGISTRY"):
        return
    known = pipelines.PIPELINE_REGISTRY.get_supported_tasks()

    @functools.wraps(make)
    def pipeline(task: Any = None, *given: Any, **named: Any) -> Any:
        """``transformers.pipeline`` that refuses tasks which are gone."""
        if task in DROPPED and task not in known:
            raise LoadFailed(
                f"the server's transformers no longer has pipeline({task!r}); name transformers<5 in "
                "code/requirements.txt (the model then gets an environment of its own), or call model.generate"
            )
        return make(task, *given, **named)

    setattr(pipeline, _SHIMMED, True)
    vars(pipelines)["pipeline"] = pipeline
    package = sys.modules.get(pipelines.__name__.partition(".")[0])
    if package is not None and vars(package).get("pipeline") is make:  # the package keeps what was once asked of it
        vars(package)["pipeline"] = pipeline
