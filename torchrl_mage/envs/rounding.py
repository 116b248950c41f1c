"""What float32 takes from an observation or a reward, said once."""

from __future__ import annotations

import warnings

import numpy as np

# Below this magnitude float32 steps by less than a thousandth.
LARGE = 1e4
# Observations before a feature's range is judged, and the share of it that a step may be.
ENOUGH, SHARE = 100, 0.01


class RoundingWatch:
    """Warns of each feature, once, whose variation float32 rounds to a few levels.

    That is one that lies far from 0, at ``1e7``, say, or at the seconds since 1970, and varies by
    little: float32 steps by 1 and by 128 there.

    Args:
        name: what the message calls the environment.
        what: whose numbers they are; ``{}`` is a number's place.
        remedy: what centres them.

    Example:
        >>> watch = RoundingWatch("clock")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     for second in range(200):
        ...         exact = np.array([1.7e9 + second])
        ...         watch(exact, exact.astype(np.float32))
        >>> len(caught), str(caught[0].message)[:27]
        (1, 'clock: feature 0 of the obs')
    """

    def __init__(
        self,
        name: str,
        what: str = "feature {} of the observation",
        remedy: str = "gymnasium.wrappers.TransformObservation",
    ) -> None:
        self._name, self._what, self._remedy = name, what, remedy
        self._seen = 0
        self._low, self._high = np.array(np.inf), np.array(-np.inf)
        self._rounded = self._told = np.array(False)

    def __call__(self, exact: np.ndarray, rounded: np.ndarray) -> None:
        """Takes in real numbers ``[D]`` and their copy in float32."""
        if exact.dtype == np.float32 or not (np.abs(rounded) > LARGE).any():
            return
        self._seen += 1
        self._low, self._high = np.fmin(self._low, exact), np.fmax(self._high, exact)
        self._rounded = self._rounded | (rounded != exact)
        if self._seen < ENOUGH:
            return
        with np.errstate(invalid="ignore"):  # of what is not finite
            varied, step = self._high - self._low, np.spacing(np.abs(rounded))
            lost = self._rounded & (np.abs(rounded) > LARGE) & (varied > 0)
            lost = lost & (step > SHARE * varied) & ~self._told
        self._told = self._told | lost
        for i in np.flatnonzero(lost):
            digits = max(0.0, float(np.log10(varied[i] / step[i])))
            warnings.warn(
                f"{self._name}: {self._what.format(i)}, near {rounded[i]:g}, has varied by "
                f"{varied[i]:g}, and float32 steps by {step[i]:g} there. It keeps {digits:.1f} "
                "decimal digits of that. Give the Task a wrap that centres it, e.g. "
                f"{self._remedy}.",
                stacklevel=2,
            )
