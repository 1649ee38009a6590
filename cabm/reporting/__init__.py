"""Figures, and the HTML page of `cabm report`."""
