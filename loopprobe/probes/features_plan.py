"""The options of sparse dictionaries, and what follows from them: sizes, loops, tokens, a dictionary that is given."""

from __future__ import annotations

import dataclasses

import xarray as xr
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.budget import require
from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dictionaries import Dictionaries, dictionary_of, read_dictionary
from loopprobe.probes.loops import last_token, require_looped
from loopprobe.probes.steer_plan import Plan
from loopprobe.store.subject import Subject
from loopprobe.tasks import PromptBatch

PARTS = 8  # numbers that training holds for each of a dictionary: encoder, decoder, their gradients and moments


@configuration
class FeaturesConfig:
    """The dictionary, the features that are looked at, and where they are ablated.

    Attributes:
        n_features: of the dictionary that all loops share. None: four times d_model, and at least 2 k for each loop.
        k: how many features may be active in a state.
        dictionary: a file that an earlier run wrote, whose dictionary is used; nothing is trained or compared then.
        compare: also train a second seed, one dictionary a loop, and one of Gaussian states.
        feature: features to look at, by number, see ``config.selection``. None: the most active.
        top: how many these are.
        loops: iterations that are run. None: as many as trained.
        in_loops: the loops after which a feature is taken out of the state, from 1, see ``config.selection``.
        read_loop: the loop after which the answer is read, from 1. None: the last.
        positions: tokens at which it is taken out, see ``config.selection``.
        measure: what is measured of the answers, see ``probes.measures``.
        lives: the share of its largest mean activation from which on a feature counts as living in a loop.
        fit_prompts: the further prompts whose states dictionaries are trained on.
        steps, batch, learning_rate: of this training; a batch are states of all loops together.
        controls: random directions that ablations are compared with.
        seed: of the training, and of random directions.
    """

    n_features: PositiveInt | None = None
    k: PositiveInt = 8
    dictionary: str | None = None
    compare: bool = True
    feature: Choice | None = None
    top: PositiveInt = 6
    loops: PositiveInt | None = None
    in_loops: Choice = "all"
    read_loop: PositiveInt | None = None
    positions: Choice = "all"
    measure: str = "error"
    lives: float = Field(default=0.1, gt=0, lt=1)
    fit_prompts: PositiveInt = 256
    steps: PositiveInt = 800
    batch: PositiveInt = 256
    learning_rate: PositiveFloat = 5e-3
    controls: PositiveInt = 2
    seed: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class FeaturesPlan:
    """What the options mean for a model and its prompts.

    Attributes:
        edits: the loops and tokens at which features are taken out, and the loop at which the answer is read.
        tokens: the tokens whose states are described: all that the answer at the query can depend on.
        n_features, k: the sizes of the shared dictionary.
        by_loop: how many features a loop has where there are as many in total.
        chosen: features that are named, from 0; None: the most active.
        given: the dictionary that is given, with the dataset that holds it; None: it is trained.
    """

    edits: Plan
    tokens: list[int]
    n_features: int
    k: int
    by_loop: int
    chosen: list[int] | None
    given: tuple[Dictionaries, xr.Dataset] | None = None

    @property
    def loops(self) -> range:
        """The loops after which states are described, from 1."""
        return range(1, self.edits.n_loops + 1)

    @classmethod
    def of(
        cls, subject: Subject, prompts: PromptBatch, config: FeaturesConfig, dictionary: str | xr.Dataset | None = None
    ) -> FeaturesPlan:
        """Resolve the options.

        Raises:
            LoopprobeError: the model is not looped, options name loops, tokens, features or sizes that are not there,
                the dictionary does not fit, or the memory cannot hold what is trained.
        """
        require_looped(subject)
        edits = Plan.of(subject, prompts, config)
        n_loops, width = edits.n_loops, subject.model.sizes.d_model
        if n_loops < 2:
            raise LoopprobeError("features compares loops, and loops (1) leaves nothing to compare: run at least 2")
        tokens = list(range(last_token(subject, prompts) + 1))
        given = _given(config, dictionary, width)
        if given is not None:
            n_features, k = given[0].decoder.shape[1], given[0].k
        else:
            k = config.k
            n_features = config.n_features or max(4 * width, 2 * k * n_loops)
        least, words = (k * n_loops, "k for every loop") if config.compare and given is None else (k, "k")
        if n_features < least:
            raise LoopprobeError(f"n_features ({n_features}) must be at least {least}, {words}: raise it or lower k")
        chosen = resolve(config.feature, n_features, "feature")
        if given is None:
            several = 4 + n_loops if config.compare else 1
            states = 4 * n_loops * len(tokens) * width * (config.fit_prompts + prompts.n_prompts)
            trained = 4 * PARTS * several * n_features * (width + config.batch)
            what = f"dictionaries of {n_features:,} features over {n_loops} loops"
            remedy = "lower fit_prompts, n_features or batch, or leave out the comparison"
            require((4 if config.compare else 2) * states + trained, what, remedy)
        return cls(edits, tokens, n_features, k, n_features // n_loops, chosen, given)


def _given(
    config: FeaturesConfig, dictionary: str | xr.Dataset | None, width: int
) -> tuple[Dictionaries, xr.Dataset] | None:
    """The dictionary that is given as a dataset or a file, with the dataset."""
    given = config.dictionary if dictionary is None else dictionary
    if given is None:
        return None
    if config.n_features is not None:
        raise LoopprobeError(
            f"n_features ({config.n_features}) is of a dictionary that is trained, and one is given: leave it out"
        )
    data = read_dictionary(given) if isinstance(given, str) else given
    made = dictionary_of(data)
    if made.decoder.shape[-1] != width:
        raise LoopprobeError(
            f"the dictionary is of states of {made.decoder.shape[-1]} numbers and those of this model have {width}: "
            "give one of this model"
        )
    return made, data
