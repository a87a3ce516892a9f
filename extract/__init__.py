"""Images in, embeddings out: listing, decoding, backbones, the extraction loop.

The public API has a function of this folder's name. Python binds the name ``headstart.extract`` to this module as soon
as anything in it is imported, so the module itself can be called and passes the call on to `headstart.extract.job`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Extraction


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Extraction:
        """Do what `headstart.extract.job.extract` does."""
        from .job import extract

        return extract(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
