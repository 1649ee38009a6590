"""Model directories: saving, loading, finding, importing published checkpoints, exporting. The
models that ship with the package lie here too."""
