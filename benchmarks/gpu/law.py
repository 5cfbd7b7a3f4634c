"""Whether matrices are Haar: statistics computed on the host, in float64, however the matrices were computed.

Every claim is a p-value, and counts as refuted below 1e-6, so N claims on a right sampler raise a false alarm with a
probability of at most N · 1e-6. QR with the signs that the library returns must fall below 1e-12.
"""

import math
from typing import Any

import numpy as np
import scipy.stats as st

FALSE_ALARM = 1e-6
POWER = 1e-12


def deviation(q: Any) -> float:
    """The largest entry of |QᴴQ − I|, or of |QQᴴ − I| if there are fewer rows."""
    q = _wide(q)
    gram = q @ q.conj().swapaxes(-1, -2)
    return float(np.abs(gram - np.eye(q.shape[-2])).max())


def claims(q: Any, special: bool = False) -> dict[str, float]:
    """Name → p-value, for (samples, n, m) matrices; `special` ones have determinant one."""
    q = np.asarray(q)
    q = q.astype(np.complex128 if q.dtype.kind == "c" else np.float64)
    found = _entries(q)
    if q.shape[-1] == q.shape[-2]:
        found |= _traces(q) | _invariance(q)
        if q.dtype.kind != "c" and not special:
            signs = np.linalg.slogdet(q)[0]
            found["both determinants"] = _balanced(signs > 0)
    return found


def _wide(q: Any) -> np.ndarray:
    q = np.asarray(q)
    q = q.astype(np.complex128 if q.dtype.kind == "c" else np.float64)
    return q if q.shape[-2] <= q.shape[-1] else q.swapaxes(-1, -2)


def _mean(values: np.ndarray, expected: float) -> float:
    """The two-sided p-value of a sample mean, by the central limit theorem."""
    z = (values.mean() - expected) / max(values.std(ddof=1) / math.sqrt(len(values)), 1e-300)
    return float(2 * st.norm.sf(abs(z)))


def _balanced(flags: np.ndarray) -> float:
    """The p-value of the hypothesis that true and false are equally likely."""
    return float(st.binomtest(int(flags.sum()), len(flags), 0.5).pvalue)


def _traces(q: np.ndarray) -> dict[str, float]:
    """E|tr|² = 1; on O(n) with n ≥ 4 also E tr⁴ = 3 and E tr Q² = 1, on U(n) with n ≥ 2 E|tr|⁴ = 2."""
    trace = np.trace(q, axis1=1, axis2=2)
    if q.dtype.kind == "c":
        parts = {"E Re tr": _mean(trace.real, 0), "E Im tr": _mean(trace.imag, 0)}
        return parts | {"E|tr|²": _mean(abs(trace) ** 2, 1), "E|tr|⁴": _mean(abs(trace) ** 4, 2)}
    found = {"E tr": _mean(trace, 0), "E tr²": _mean(trace**2, 1)}
    if q.shape[-1] > 4:  # on SO(4) the fourth moment differs from that on O(4)
        found |= {"E tr⁴": _mean(trace**4, 3), "E tr Q²": _mean(np.einsum("bij,bji->b", q, q), 1)}
    return found


def _entries(q: np.ndarray) -> dict[str, float]:
    """|q|² ~ Beta(1/2, (n − 1)/2) with both signs, for complex ones Beta(1, n − 1) with uniform phases."""
    _, rows, columns = q.shape
    n = max(rows, columns)
    is_complex = q.dtype.kind == "c"
    law = st.beta(1, n - 1) if is_complex else st.beta(0.5, (n - 1) / 2)
    found = {}
    for place in {(0, 0), (rows // 2, columns // 3), (rows - 1, 0), (rows - 1, columns - 1)}:
        entry = q[:, *place]
        found[f"size {place}"] = float(st.kstest(abs(entry) ** 2, law.cdf).pvalue)
        if is_complex:
            found[f"phase {place}"] = float(st.kstest(np.angle(entry), st.uniform(-np.pi, 2 * np.pi).cdf).pvalue)
        else:
            found[f"sign {place}"] = _balanced(entry > 0)
    return found


def _invariance(q: np.ndarray) -> dict[str, float]:
    """U Q and Q U have the law of Q: compares one half of the sample with the other, rotated by a fixed Haar matrix."""
    n = q.shape[-1]
    rotation = st.special_ortho_group.rvs(n, random_state=0)  # which keeps SO(n), too
    weights = np.arange(n * n).reshape(n, n) + 1.0

    def functional(x: np.ndarray) -> np.ndarray:
        return np.einsum("ij,bij->b", weights, x.real**3)

    first, second = q[: len(q) // 2], q[len(q) // 2 :]
    return {
        "U Q": float(st.ks_2samp(functional(first), functional(rotation @ second)).pvalue),
        "Q U": float(st.ks_2samp(functional(first), functional(second @ rotation)).pvalue),
    }
