"""Every numerical tolerance of the tests, in one place: name -> (rtol, atol, reason)."""

TOLERANCES: dict[str, tuple[float, float, str]] = {
    "bitwise": (0.0, 0.0, "a copied weight is the same bits"),
    "module": (1e-5, 1e-5, "one float32 module; sums run in another order than torch's"),
    "stack": (1e-4, 1e-4, "a stack of layers in float32"),
    "logits": (1e-3, 1e-3, "float32 logits behind a whole stack"),
    "gradient": (1e-4, 1e-6, "float32 gradients, relative"),
    "stack_gradient": (1e-4, 5e-5, "float32 gradients of size 10; small ones are sums that cancel"),
    "bfloat16": (0.0, 0.15, "eight bits of mantissa behind a few layers, values near 1"),
    "resize": (1e-6, 1e-4, "dB; torch rounds the cubic's weights, differences of 6s, in another order"),
    "block": (1e-4, 2e-5, "one transformer block: two norms, softmax and three products in float32"),
    "tower gradient": (1e-3, 1e-4, "float32 gradients through a tower, relative to the leaf's largest"),
    "bfloat16 tower": (3e-2, 0.0, "relative norm; bfloat16 keeps 8 bits and errors add over layers"),
}


def tolerance(name: str) -> dict[str, float]:
    """Keyword arguments for numpy's and chex's assert_allclose."""
    rtol, atol, _ = TOLERANCES[name]
    return {"rtol": rtol, "atol": atol}
