"""What depends on the hardware: numerical precision, and formulations that one backend runs better."""
