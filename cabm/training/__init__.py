"""Training of one step: loop, resume state, losses, calibration, validation, and several processes."""
