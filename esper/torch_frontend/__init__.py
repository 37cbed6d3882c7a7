"""Floor 3, the torch half: capture modules as Programs, blueprints, and the way back. No jax."""
