"""The stages as functions: what each reads, computes and writes. `stages/` only names them."""
