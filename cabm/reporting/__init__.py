"""Figures, and the HTML page that `cabm report` writes."""
