"""Image files and pixels: formats, reading, writing, resizing, colour and transparency."""
