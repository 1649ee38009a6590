"""The training loop and what it needs: losses, calibration, resume state, several processes."""
