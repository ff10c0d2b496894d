"""Minimax polynomials for fastvq/_kernels/functions.h: `python tests/minimax.py` prints them.

Remez' exchange in 40 digits (needs mpmath), for the least largest value of |weight · (f - p)|.
"""

from mpmath import mp, mpf

mp.dps = 40


def remez(f, weight, degree, low, high, rounds=12):
    """Coefficients, constant first, and the error, on low .. high."""
    n = degree + 2
    middle, half = mpf(low + high) / 2, mpf(high - low) / 2
    nodes = [middle - half * mp.cos(mp.pi * i / (n - 1)) for i in range(n)]
    grid = [middle - half * mp.cos(mp.pi * i / mpf(40 * n)) for i in range(40 * n + 1)]
    values = [(f(x), weight(x)) for x in grid]
    for _ in range(rounds):
        matrix = mp.matrix(n, n)
        right = mp.matrix(n, 1)
        for i, x in enumerate(nodes):
            for j in range(degree + 1):
                matrix[i, j] = x**j
            matrix[i, n - 1] = (-1) ** i / weight(x)
            right[i] = f(x)
        solution = list(mp.lu_solve(matrix, right))
        p, level = solution[:-1], abs(solution[-1])
        errors = [w * (y - mp.polyval(p[::-1], x)) for x, (y, w) in zip(grid, values, strict=True)]
        nodes = extremes(grid, errors, n)
        worst = max(map(abs, errors))
        if worst < level * mpf("1.001"):
            break
    return p, worst


def extremes(grid, errors, n):
    """The n places of largest error with signs in turn."""
    runs = []
    for x, e in zip(grid, errors, strict=True):
        if runs and (e > 0) == (runs[-1][1] > 0):
            if abs(e) > abs(runs[-1][1]):
                runs[-1] = (x, e)
        else:
            runs.append((x, e))
    while len(runs) > n:
        runs.pop(0 if abs(runs[0][1]) < abs(runs[-1][1]) else -1)
    return [x for x, _ in runs]


def scaled_tail(t):
    """exp(z²/2) Φ(-z) / t, where t = 4 / (z + 4) and Φ is the normal distribution."""
    z = 4 / t - 4
    return mp.exp(z * z / 2) * mp.erfc(z / mp.sqrt(2)) / 2 / t


def normal_slope(w):
    """z / (2p - 1), where w = -log(4p (1 - p)) and Φ(z) = p."""
    if not w:
        return mp.sqrt(mp.pi / 2)
    with mp.workdps(160):
        x = mp.sqrt(-mp.expm1(-w))
        return mp.sqrt(2) * mp.erfinv(x) / x


def past(terms, function, x):
    """(function(x) - its first terms) / x^n, by its series where the difference would cancel."""
    n = len(terms)
    if abs(x) > mpf(10) ** -6:
        return (function(x) - mp.polyval(terms[::-1], x)) / x**n
    return mp.taylor(function, 0, n)[n] + x * mp.taylor(function, 0, n + 1)[n + 1]


def main():
    tiny = mpf(10) ** -9
    half = mp.log(2) / 2
    erf = mp.taylor(mp.erf, 0, 1)[1]
    log1p = lambda f: mp.log(1 + f)  # noqa: E731
    fits = {
        "(exp(r) - 1 - r) / r², relative to exp(r) - 1": remez(
            lambda r: past([1, 1], mp.exp, r), lambda r: max(abs(r), tiny), 4, -half, half
        ),
        "(log(1 + f) - f + f²/2) / f³, relative to log(1 + f)": remez(
            lambda f: past([0, 1, mpf(-1) / 2], log1p, f),
            lambda f: max(f * f, tiny),
            7,
            mp.sqrt(mpf(1) / 2) - 1,
            mp.sqrt(2) - 1,
        ),
        "erf(√u) / √u, relative": remez(
            lambda u: mp.erf(mp.sqrt(u)) / mp.sqrt(u) if u else erf, lambda u: 1, 6, 0, 1
        ),
        "scaled_tail(t), relative": remez(
            scaled_tail, lambda t: 1 / scaled_tail(t), 9, mpf(4) / 19, 1
        ),
    }
    show(fits, 9, "f")
    show(wide_fits(), 17, "")
    with mp.workdps(100):
        bits = int(mp.floor(2 / mp.pi * mpf(2) ** 224))
    print("2 / π:", ", ".join(hex(bits >> 32 * i & 0xFFFFFFFF) for i in reversed(range(7))))


def wide_fits():
    """For functions_wide.h, in float64, whose results are rounded to float32."""
    far = lambda t: normal_slope(t**-2) * t  # noqa: E731
    return {
        name: remez(quotient(function, *terms), lambda u: 1, degree, 0, high)
        for name, function, terms, degree, high in [
            ("(sin r - r) / r³ of u = r²", mp.sin, (1, 3), 4, (mp.pi / 4) ** 2),
            ("(cos r - 1 + r²/2) / r⁴", mp.cos, (2, 4), 3, (mp.pi / 4) ** 2),
            ("(atan r - r) / r³", mp.atan, (1, 3), 12, 1),
            ("(asin r - r) / r³", mp.asin, (1, 3), 7, mpf(1) / 4),
            ("(atanh r - r) / r³", mp.atanh, (1, 3), 3, (mp.sqrt(2) - 1) ** 4),
        ]
    } | {
        "(exp r - 1 - r) / r²": remez(
            lambda r: past([1, 1], mp.exp, r), lambda r: 1, 6, -mp.log(2) / 2, mp.log(2) / 2
        ),
        "normal_slope(w), relative": remez(normal_slope, lambda w: 1 / normal_slope(w), 10, 0, 6),
        "t normal_slope(t^-2), relative": remez(
            far, lambda t: 1 / far(t), 11, 1 / mpf(10.3), 1 / mp.sqrt(6)
        ),
    }


def quotient(function, last, power):
    """(function(r) - its series up to r^last) / r^power as a function of r²."""
    series = mp.taylor(function, 0, power)[: last + 1]

    def value(u):
        r = mp.sqrt(u)
        if r < mpf(10) ** -5:
            return mp.taylor(function, 0, power)[power]
        return (function(r) - mp.polyval(series[::-1], r)) / r**power

    return value


def show(fits, digits, suffix):
    for name, (coefficients, error) in fits.items():
        print(name, mp.nstr(error, 3))
        print("   ", ", ".join(f"{mp.nstr(c, digits)}{suffix}" for c in coefficients))


if __name__ == "__main__":
    main()
