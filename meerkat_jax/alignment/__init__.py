"""The alignment losses: AVOpT (optimal transport), AVACE (attention into the box), contrast."""
