"""What all quantizers share: what is made of fitted arrays is never stale."""

import pickle

import numpy as np
import pytest

from fastvq import (
    AdditiveQuantizer,
    BinaryQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
)

# A quantizer, an attribute of its fit, and what to put there.
REPLACED = {
    "vector": (VectorQuantizer(16), "codebook_", lambda a: a[::-1].copy()),
    "lengths": (VectorQuantizer(16, rate_weight=0.1), "code_lengths_", lambda a: a[::-1].copy()),
    "price": (VectorQuantizer(16, rate_weight=0.1), "rate_weight", lambda _: 5.0),
    "steps": (ScalarQuantizer(4), "zero_point_", lambda a: a + 3),
    "levels": (ScalarQuantizer(4, scheme="quantile"), "codebooks_", lambda a: a + 0.5),
    "product": (ProductQuantizer(3, n_bits=4), "codebooks_", lambda a: a[:, ::-1].copy()),
    "rotation": (ProductQuantizer(3, n_bits=4, rotation="random"), "rotation_", lambda a: -a),
    "feature_scale": (
        ProductQuantizer(3, n_bits=4, feature_weight=np.arange(1.0, 7.0)),
        "feature_scale_",
        lambda a: a[::-1].copy(),
    ),
    "list": (ProductQuantizer(2, n_bits=[3, 4]), "codebooks_", lambda a: [b[::-1] for b in a]),
    "residual": (ResidualQuantizer(2, n_bits=4), "codebooks_", lambda a: a[:, ::-1].copy()),
    "additive": (
        AdditiveQuantizer(2, n_bits=[3, 4], max_iter=2),
        "codebooks_",
        lambda a: [b[::-1].copy() for b in a],
    ),
    "binary": (BinaryQuantizer(8), "planes_", lambda a: -a),
}


def rows():
    return np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)


def fitted(name):
    quantizer, attribute, change = REPLACED[name]
    if "random_state" in quantizer.get_params():
        quantizer.set_params(random_state=0)
    return quantizer.fit(rows()), attribute, change


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_is_noticed(name):
    q, attribute, change = fitted(name)
    before = q.transform(rows())
    setattr(q, attribute, change(getattr(q, attribute)))
    codes = q.transform(rows())
    assert not np.array_equal(codes, before)
    again = pickle.loads(pickle.dumps(q))  # all made anew
    assert np.array_equal(codes, again.transform(rows()))
    assert np.array_equal(q.inverse_transform(codes), again.inverse_transform(codes))


@pytest.mark.parametrize("name", ["product", "list", "residual", "vector", "binary"])
def test_what_is_written_into_a_users_array_is_noticed(name):
    q, attribute, change = fitted(name)
    mine = change(getattr(q, attribute))
    setattr(q, attribute, [each.copy() for each in mine] if isinstance(mine, list) else mine)
    before = q.transform(rows())
    getattr(q, attribute)[0][...] *= -3
    assert not np.array_equal(q.transform(rows()), before)


def test_a_codebook_of_a_list_is_replaced():
    q, *_ = fitted("list")
    before = q.transform(rows())
    q.codebooks_[1] = q.codebooks_[1][::-1].copy()
    codes = q.transform(rows())
    assert np.array_equal(codes[:, 1], 15 - before[:, 1]) and (codes[:, 0] == before[:, 0]).all()


@pytest.mark.parametrize("name", REPLACED)
def test_what_things_are_made_of_is_read_only(name):
    q, *_ = fitted(name)
    for each in (q, pickle.loads(pickle.dumps(q))):
        arrays = [a for a in each._sources() if isinstance(a, np.ndarray)]
        assert arrays and not any(array.flags.writeable for array in arrays)
        assert each._ready() is each._compiled[1]  # and kept
