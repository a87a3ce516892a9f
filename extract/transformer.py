"""`FrozenBackbone`: pictures to embeddings as a transformer of scikit-learn."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ..cache.part import Keys
from ..cache.place import Place
from ..cache.space import canonical_json
from ..cache.store import FeatureStore, cache_dir
from ..errors import BackboneError, CacheMissError, DataError, UsageError
from .backbone import request_key
from .embedder import Embedder
from .files import some
from .network import request_of
from .options import DEFAULT_MAX_PIXELS, RunOptions, SpaceOptions
from .pictures import Embedded, as_pictures, embed_pictures, name_of
from .resolve import resolve

ON_ERROR = ("raise", "nan")


class FrozenBackbone(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Embeds pictures with a frozen pretrained network, each of them once: what was embedded before is in the cache.

    A picture is known by its content, so neither a clone, nor another fold of a cross-validation, nor another process
    embeds it again; and `extract` and this transformer share their embeddings. Nothing is learnt from the pictures that
    `fit` is given: it only checks the parameters.

    Parameters
    ----------
    backbone : str, default "resnet18"
        A name that ``headstart backbones`` lists.
    weights : str, default "default"
        "default", "none" (random, from `seed`) or the path of a state dict.
    layer, pool : str or None, default None
        The module whose output is taken, the classifier's input where it is None; and how its map becomes a vector.
    resize : int, "none" or None, default None
        Length of the short side in pixels, or no resizing. Here and below, None is what the weights were trained for.
    crop : int or None, default None
        Side of the centre crop in pixels.
    interpolation : str or None, default None
    mean, std : tuple of 3 floats or None, default None
        Normalisation of values between 0 and 1.
    precision : {"auto", "float32", "bfloat16", "float16"}, default "auto"
    store_dtype : {"float32", "float16"}, default "float32"
        Of the embeddings in the cache.
    seed : int, default 0
        For random weights.
    cache : path or None, default None
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    device : {"auto", "cpu", "cuda", "mps"}, default "auto"
    batch_size : int or None, default None
        Images a forward pass; found out where it is None.
    workers : int or None, default None
        Threads that read and decode; one a core where it is None.
    max_pixels : int or None, default None
        Larger images cannot be read; 89,478,485 where it is None.
    on_error : {"raise", "nan"}, default "raise"
        What becomes of pictures that cannot be read: an error that names them, or rows of NaN.

    Attributes
    ----------
    n_features_out_ : int
        Width of the embeddings. Asking for it loads the network if the cache does not know it yet.

    See Also
    --------
    headstart.extract : Embeds a folder of pictures with their labels and splits.

    Notes
    -----
    Several processes (``n_jobs``) may use one cache. Those that begin together may embed the same pictures: transform
    them once before a search. ``headstart cache compact --prune`` drops embeddings of pictures that are in no dataset
    which `extract` has listed.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from headstart import FrozenBackbone
    >>> model = make_pipeline(FrozenBackbone("efficientnet_lite0"), StandardScaler(), LogisticRegression())
    >>> cross_val_score(model, paths, y)  # doctest: +SKIP
    array([0.95918367, 0.95918367, 0.93877551, 0.97959184, 0.95833333])
    """

    _held: tuple[object, Embedder] | None = None  # what leads to an embedder, and the embedder with its network

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: str = "default",
        layer: str | None = None,
        pool: str | None = None,
        resize: int | str | None = None,
        crop: int | None = None,
        interpolation: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        precision: str = "auto",
        store_dtype: str = "float32",
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        max_pixels: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.pool = pool
        self.resize = resize
        self.crop = crop
        self.interpolation = interpolation
        self.mean = mean
        self.std = std
        self.precision = precision
        self.store_dtype = store_dtype
        self.seed = seed
        self.cache = cache
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.max_pixels = max_pixels
        self.on_error = on_error

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters; neither `X` nor `y` is looked at.

        Raises
        ------
        UsageError
            A parameter is wrong whatever the pictures.
        """
        self._options()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the embeddings of pictures; those that the cache lacks are computed, and kept there.

        Parameters
        ----------
        X : sequence of length n_samples
            Paths (str, bytes or path objects), images of Pillow's, and uint8 arrays of shape (height, width, 3), or
            (height, width) for grey ones, in any mixture. An array of shape (n_samples, 1), a column of a table and an
            iterator will do. Paths are looked at anew each time: a file that has changed is another picture.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out_), dtype float32
            Memory is this array and, for pictures that are embedded, a few batches.

        Raises
        ------
        DataError
            Pictures cannot be read, and `on_error` is "raise". What was embedded is in the cache.
        UsageError
            `X` holds something else, or a parameter is wrong.
        BackboneError, DeviceError, CacheError
            As their messages say.
        """
        pictures, embedder, store = as_pictures(X), self._embedder(), FeatureStore(self._cache())
        try:
            return self._rows(store, embedder, pictures)
        except CacheMissError:  # rows that were damaged, or went away since they were seen, are computed again
            return self._rows(store, embedder, pictures)
        except BackboneError:
            self._held = None
            raise

    @property
    def n_features_out_(self) -> int:
        """Width of the embeddings."""
        return self._embedder().spaces[0].dim

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column: ``frozenbackbone0`` and so on, (n_features_out_,) object."""
        names = [f"{type(self).__name__.lower()}{column}" for column in range(self.n_features_out_)]
        return np.array(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = False, True, True
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit, tags.no_validation = False, True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_held"}

    def _options(self) -> tuple[SpaceOptions, RunOptions]:
        if self.on_error not in ON_ERROR:
            raise UsageError(f"on_error must be one of {', '.join(ON_ERROR)}; got {self.on_error!r}")
        asked = SpaceOptions(
            backbone=self.backbone, weights=os.fspath(self.weights), layer=self.layer, pool=self.pool,
            resize=self.resize, crop=self.crop, interpolation=self.interpolation, mean=_triple(self.mean),
            std=_triple(self.std), precision=self.precision, store_dtype=self.store_dtype, seed=self.seed,
        )  # fmt: skip
        run = RunOptions(
            device=self.device, batch_size=self.batch_size, workers=self.workers,
            max_pixels=DEFAULT_MAX_PIXELS if self.max_pixels is None else self.max_pixels,
        )  # fmt: skip
        return asked, run

    def _cache(self) -> Place:
        return cache_dir(self.cache).absolute()

    def _embedder(self) -> Embedder:
        """Return what computes rows; the same one, with its network, while what leads to it is the same."""
        asked, run = self._options()
        key = (asked, run, self._cache(), canonical_json(request_key(request_of(asked))))
        if self._held is None or self._held[0] != key:
            self._held = key, resolve([asked], run, self._cache())
        return self._held[1]

    def _rows(self, store: FeatureStore, embedder: Embedder, pictures: list[Any]) -> np.ndarray:
        found = embed_pictures(store, embedder, pictures)
        if found.failures and self.on_error == "raise":
            raise DataError(_unreadable(found, pictures))
        space, usable = embedder.spaces[0], found.usable
        if usable.size == len(pictures) > 0:
            return store.gather(space.id, Keys.plain(found.digest))
        rows = np.full((len(pictures), space.dim), np.nan, np.float32)
        if usable.size:
            rows[usable] = store.gather(space.id, Keys.plain(found.digest[usable]))
        return rows


def _triple(values: Any) -> tuple[float, float, float] | None:
    if values is None:
        return None
    try:
        first, second, third = map(float, values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"mean and std take three numbers, and got {values!r}") from error
    return first, second, third


def _unreadable(found: Embedded, pictures: list[Any]) -> str:
    named = [f"{name_of(pictures[place], place)} ({found.failures[place]})" for place in sorted(found.failures)]
    return (
        f"{len(named)} of {len(pictures)} pictures cannot be read: {some(named)}; leave them out, or pass "
        "on_error='nan' for rows of NaN"
    )
