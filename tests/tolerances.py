"""Every numerical tolerance of the tests, in one place: name -> (rtol, atol, reason)."""

TOLERANCES: dict[str, tuple[float, float, str]] = {
    "bitwise": (0.0, 0.0, "a copied weight is the same bits"),
    "module": (1e-5, 1e-5, "one float32 module; sums run in another order than torch's"),
    "stack": (1e-4, 1e-4, "a stack of layers in float32"),
    "logits": (1e-3, 1e-3, "float32 logits behind a whole stack"),
    "gradient": (1e-4, 1e-6, "float32 gradients, relative"),
    "leaf gradient": (0.0, 1e-4, "float32 gradients as parts of the leaf's largest number"),
    "stack_gradient": (1e-4, 5e-5, "float32 gradients of size 10; small ones are sums that cancel"),
    "bfloat16": (0.0, 0.15, "eight bits of mantissa behind a few layers, values near 1"),
    "bfloat16 most": (
        0.0,
        0.05,
        "99 % of the logits at 4096 wide, in their standard deviations; torch's own bfloat16 is "
        "off by 0.036, and by 0.05 at most",
    ),
    "bfloat16 all": (0.0, 0.08, "the same, of all logits"),
    "turns": (0.0, 2e-4, "cosines of float32 angles below 1,000, of which a bit is 6e-5"),
    "ten losses": (0.0, 1e-4, "ten steps of AdamW; small gradients decide its steps' directions"),
    "resize": (1e-6, 1e-4, "dB; torch sums the cubic's float32 weights (terms near 6) another way"),
    "block": (
        1e-4,
        2e-5,
        "one transformer block: two norms, softmax and three products in float32",
    ),
    "tower gradient": (
        1e-3,
        1e-4,
        "float32 gradients through a tower, relative to the leaf's largest",
    ),
    "bfloat16 tower": (
        3e-2,
        0.0,
        "relative norm; bfloat16 keeps 8 bits and errors add over layers",
    ),
    "bfloat16 tower most": (0.0, 3.5e-2, "99 % of the features, in their rms; see bfloat16 tower"),
    "bfloat16 tower all": (0.0, 0.1, "the same, of all features: the tail of some 100,000 errors"),
    "emd_random": (5e-3, 0.0, "entropic bias at epsilon 0.01 of the mean cost"),
    "emd_clustered": (2e-2, 0.0, "the same, where costs within a cluster are below epsilon"),
    "emd_default_random": (2e-2, 0.0, "epsilon 0.02 and 50 iterations"),
    "emd_default_clustered": (5e-2, 0.0, "the same; mass between clusters converges slowly"),
    "emd": (1e-2, 1e-6, "the bound on the error at epsilon 0.003; 1 - cosine is rounded to 1e-7"),
    "solvers": (1e-3, 1e-6, "two orders of the same sums, converged, in float32"),
    "marginal": (1e-4, 1e-6, "float32 sums of a rounded plan"),
    "finite_difference": (1e-4, 1e-7, "central differences in float64"),
    "implicit": (1e-2, 1e-5, "a ridged float32 linear system"),
    "coverage": (1e-5, 1e-5, "float32 cell lengths"),
    "pixels": (1e-5, 1e-6, "float32; one subtraction and two divisions in another order"),
    "log mel float64": (0.0, 2e-5, "dB; the reference rounds its result to float32"),
    "log mel": (
        0.0,
        1e-2,
        "dB, where within 80 dB of the frame's strongest band; a float32 Fourier transform leaves "
        "noise at 1e-14 of the strongest bin's power, which is what quieter bands are made of",
    ),
    "accumulate": (1e-4, 1e-6, "float32 sums over two halves of a batch"),
    "xla flops": (5e-2, 0.0, "XLA also counts what is elementwise, some 1 in 30 at such widths"),
    "processes": (1e-5, 1e-6, "float32 sums over the batch, each process adding up its own rows"),
    "sharded": (1e-5, 2e-4, "float32 sums over devices; a step of AdamW follows small gradients"),
    "nf4 levels": (0.0, 1e-6, "float32 quantiles; the printed ones are of another library's"),
    "kept": (1e-4, 1e-6, "float32 sums in the towers, of batches of another size"),
    "mel power": (0.0, 1e-5, "mel power as a part of the frame's strongest band, everywhere"),
}


def tolerance(name: str) -> dict[str, float]:
    """Keyword arguments for numpy's and chex's assert_allclose."""
    rtol, atol, _ = TOLERANCES[name]
    return {"rtol": rtol, "atol": atol}
