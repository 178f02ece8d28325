"""The best setting for a given budget, from a profile of the network measured once (METHOD.md section 5)."""

import os
import zipfile
from typing import NamedTuple

import numpy as np

from ssmd_jax.diffusion import schedule
from ssmd_jax.diffusion.window import TableWindow
from ssmd_jax.sampling.config import SpeculativeConfig

PROFILE_FILE = "profile.npz"


class Profile(NamedTuple):
    """What draft and target know of held-out text, by revealed tokens `i` and distance `s = k - i`.

    Entries with `i + s >= D` mean nothing. Measured by `evaluation.tuning.measure`.

    Attributes:
        draft_nll_DxS: `E[-log p_{i,i+s}(x)]`, nats.
        target_nll_DxS: `E[-log q_{i,i+s}(x)]`, nats.
        rejections_DxS: probability that the draft of track `i + s` is rejected once its turn comes.
        rounds_DxS: rounds with shared noise until track `i + s` is settled; None where they were not
            measured, and on a plain network.
        trunk_cost: NFE of a trunk pass.
        verify_cost: NFE of a verify round; 0 on a plain network.
        num_sequences: held-out sequences, each under one random order.
    """

    draft_nll_DxS: np.ndarray
    target_nll_DxS: np.ndarray
    rejections_DxS: np.ndarray
    rounds_DxS: np.ndarray | None
    trunk_cost: float
    verify_cost: float
    num_sequences: int

    def save(self, path: os.PathLike | str) -> None:
        """Writes the profile; half precision for the tables, whose own errors are larger."""
        fields = {name: value for name, value in self._asdict().items() if value is not None}
        tables = {name: value.astype(np.float16) for name, value in fields.items() if name.endswith("DxS")}
        part = f"{os.fspath(path)}.part"
        with open(part, "wb") as file:
            np.savez_compressed(file, **(fields | tables))
        os.replace(part, path)

    @classmethod
    def load(cls, path: os.PathLike | str) -> "Profile":
        """Reads what `save` wrote.

        Raises:
            ValueError: where there is no such file, or it is no profile.
        """
        try:
            with np.load(path) as file:
                # Profiles of before there was shared noise have no rounds, and serve all else.
                values = {name: file[name] for name in cls._fields if name != "rounds_DxS" or name in file}
        except FileNotFoundError:
            raise ValueError(f"there is no profile at {path}: launch/tune.py measures one") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no profile of launch/tune.py: {error}") from error
        tables = {name: value.astype(np.float64) for name, value in values.items() if name.endswith("DxS")}
        numbers = {name: value.item() for name, value in values.items() if name not in tables}
        return cls(**({"rounds_DxS": None} | tables | numbers))


def best_windows(
    profile: Profile, budget_nfe: float, *, plain: bool = False, tie_first: bool = False, shared_noise: bool = False
) -> schedule.Schedule:
    """The `Schedule` with the best likelihood bound whose mean NFE is at most a budget.

    Args:
        profile: of the network.
        budget_nfe: mean NFE of a sequence.
        plain: for the plain sampler.
        tie_first: for a tied first track.
        shared_noise: for rounds with shared noise; those of a tied first track are a little fewer than predicted.

    Raises:
        BudgetError: if the budget is below the NFE of the cheapest windows.
        ValueError: for shared noise, if the profile has no rounds with it.
    """
    if plain:
        cost_DxS = schedule.window_costs(None, profile.draft_nll_DxS.shape, profile.trunk_cost, 0.0)
        return schedule.schedule_within(profile.draft_nll_DxS, cost_DxS, budget_nfe)
    nll_DxS, rejections_DxS = np.array(profile.target_nll_DxS), np.array(profile.rejections_DxS)
    if tie_first:
        nll_DxS[:, 0], rejections_DxS[:, 0] = profile.draft_nll_DxS[:, 0], 0.0
    if not shared_noise:
        cost_DxS = schedule.window_costs(rejections_DxS, nll_DxS.shape, profile.trunk_cost, profile.verify_cost)
    elif not profile.verify_cost:
        raise ValueError("the profile is of a plain network, which has no verify rounds to share noise with")
    elif profile.rounds_DxS is None:
        raise ValueError("the profile knows no rounds with shared noise: measure it again by launch/tune.py")
    else:
        cost_DxS = schedule.shared_noise_costs(profile.rounds_DxS, profile.trunk_cost, profile.verify_cost)
    return schedule.schedule_within(nll_DxS, cost_DxS, budget_nfe)


def recommend(
    profile: Profile,
    budget_nfe: float,
    *,
    plain: bool = False,
    tie_first: bool = False,
    shared_noise: bool = False,
    **options,
) -> SpeculativeConfig:
    """The setting with the best likelihood bound at a mean of at most `budget_nfe` function evaluations a sample.

    Windows by dynamic programming (`diffusion.schedule`), and as many verify rounds as they may need: then the
    sampler's law is the product of the target's conditionals, which is what the profile knows.

    The mean is a prediction, from what the network says of held-out text. It holds for the laws that were profiled: a
    temperature, a nucleus, an adaptive order or fewer rounds among the options change what is accepted, and with it
    what a sample costs and what its law is.

    Args:
        profile: of the network.
        budget_nfe: mean NFE of a sample; `SpeculativeConfig.budget_nfe` is a hard bound on each row.
        plain: for `ancestral.sample`.
        tie_first, shared_noise: as in `SpeculativeConfig`.
        **options: other fields of `SpeculativeConfig`.

    Raises:
        ValueError: if the budget is below the NFE of the cheapest windows, or an option is out of range.
    """
    laws = {"tie_first": tie_first, "shared_noise": shared_noise and not plain}
    sizes = best_windows(profile, budget_nfe, plain=plain, **laws).sizes
    rounds = {"verify_rounds": 1 if plain else int(sizes.max())}
    return SpeculativeConfig(TableWindow(tuple(sizes.tolist())), **(laws | rounds | options))
