"""Mean, spread, confidence interval, paired test, correction: pure functions of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SAME = 1e-12  # differences that spread less than this are equal but for rounding


@dataclass(frozen=True)
class Estimate:
    """Mean of a sample and how sure it is.

    Args:
        mean: Arithmetic mean.
        standard_deviation: Of the sample, with ``count - 1`` in the denominator; ``None`` of one
            value.
        half_width: Half the width of the confidence interval around the mean; ``None`` of one
            value.
        count: Number of values.
    """

    mean: float
    standard_deviation: float | None
    half_width: float | None
    count: int


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a paired t-test, or why there is none.

    Args:
        difference: Of the pairs, first minus second; ``None`` without pairs.
        statistic: Student's t; ``None`` where undefined.
        p_value: Two-sided; ``None`` where undefined.
        reason: Why ``p_value`` is ``None``; else ``None``.
    """

    difference: Estimate | None
    statistic: float | None = None
    p_value: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation and how sure it is.

    Args:
        value: In [-1, 1].
        low: Lower end of the confidence interval.
        high: Upper end.
        count: Number of pairs.
    """

    value: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    r"""Return mean, standard deviation and confidence interval of a sample.

    .. math:: \bar x \pm t_{n-1,\,(1+c)/2} \, s / \sqrt n, \quad
              s^2 = \frac{1}{n-1} \sum_i (x_i - \bar x)^2

    Args:
        values: ``n`` independent values, at least one.
        confidence: ``c``, between 0 and 1.

    Raises:
        ValueError: If there is no value.

    Source:
        Student, The Probable Error of a Mean, Biometrika 1908. Differs: nothing.

    Example:
        >>> e = estimate([0.5, 0.6, 0.7])
        >>> round(e.mean, 3), round(e.standard_deviation, 3), round(e.half_width, 3), e.count
        (0.6, 0.1, 0.248, 3)
        >>> estimate([0.5])
        Estimate(mean=0.5, standard_deviation=None, half_width=None, count=1)
    """
    count = len(values)
    if not count:
        raise ValueError("there is no mean of no values")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    from scipy import stats  # half a second that one seed does not need

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = float(stats.t.ppf((1 + confidence) / 2, count - 1))
    return Estimate(mean, deviation, quantile * deviation / math.sqrt(count), count)


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Return the two-sided t-test that the mean difference of pairs is zero.

    Args:
        first: Values of one method.
        second: Values of the other, pair by pair.

    Returns:
        The test; without ``p_value`` but with a ``reason`` if there are fewer than two pairs or
        the difference is the same for every pair.

    Raises:
        ValueError: If the two are not equally long.

    Source:
        Student, The Probable Error of a Mean, Biometrika 1908; scipy.stats.ttest_rel.
        Differs: nothing.

    Example:
        >>> test = paired_t_test([0.9, 0.8, 0.7], [0.8, 0.75, 0.65])
        >>> round(test.difference.mean, 4), round(test.statistic, 3), round(test.p_value, 4)
        (0.0667, 4.0, 0.0572)
        >>> paired_t_test([0.9], [0.8]).reason
        'one common seed'
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need as many values of both: {len(first)} and {len(second)}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        reason = "one common seed" if differences else "no common seed"
        return PairedTest(estimate(differences) if differences else None, reason=reason)
    if np.ptp(differences) <= _SAME:
        return PairedTest(estimate(differences), reason="the same difference for every seed")
    from scipy import stats

    result = stats.ttest_rel(first, second)
    return PairedTest(estimate(differences), float(result.statistic), float(result.pvalue))


def correlation(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95
) -> Correlation | None:
    r"""Return the correlation of pairs and its interval after Fisher's transformation.

    .. math:: \tanh\Bigl(\operatorname{artanh} r \pm \frac{z_{(1+c)/2}}{\sqrt{n - 3}}\Bigr)

    Args:
        first: A number a pair.
        second: The other.
        confidence: ``c``, between 0 and 1.

    Returns:
        ``None`` of fewer than four pairs, or where one side does not vary but for rounding.

    Source:
        Fisher, On the "Probable Error" of a Coefficient of Correlation, Metron 1921.
        Differs: nothing.

    Example:
        >>> found = correlation([1, 2, 3, 4], [1, 2, 3, 5])
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3), found.count
        (0.983, 0.389, 1.0, 4)
    """
    count = len(first)
    if count < 4:
        return None
    sides = []
    for values in (first, second):
        side = np.asarray(values, dtype=np.float64)
        side = side / (np.abs(side).max() or 1.0)
        if np.ptp(side) <= count * np.finfo(np.float64).eps:
            return None
        sides.append(side - side.mean())
    value = float(sides[0] @ sides[1] / (np.linalg.norm(sides[0]) * np.linalg.norm(sides[1])))
    value = min(1.0, max(-1.0, value))
    if abs(value) == 1:
        return Correlation(value, value, value, count)
    from scipy import stats

    spread = float(stats.norm.ppf((1 + confidence) / 2)) / math.sqrt(count - 3)
    middle = math.atanh(value)
    return Correlation(value, math.tanh(middle - spread), math.tanh(middle + spread), count)


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Return p-values corrected for being several.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})

    with the ``m`` p-values sorted upwards. A hypothesis is rejected at level ``a`` if its corrected
    value is at most ``a``; then the chance of any false rejection among all is at most ``a``.

    Args:
        p_values: In any order, each in [0, 1].

    Returns:
        In the same order.

    Source:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
        Statistics 1979. Differs: nothing.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
