"""Every numerical tolerance of the tests, in one place: name -> (rtol, atol, reason)."""

TOLERANCES: dict[str, tuple[float, float, str]] = {
    "bitwise": (0.0, 0.0, "a copied weight is the same bits"),
    "module": (1e-5, 1e-5, "one float32 module; sums run in another order than torch's"),
    "stack": (1e-4, 1e-4, "a stack of layers in float32"),
    "logits": (1e-3, 1e-3, "float32 logits behind a whole stack"),
    "gradient": (1e-4, 1e-6, "float32 gradients, relative"),
}


def tolerance(name: str) -> dict[str, float]:
    """Keyword arguments for numpy's and chex's assert_allclose."""
    rtol, atol, _ = TOLERANCES[name]
    return {"rtol": rtol, "atol": atol}
