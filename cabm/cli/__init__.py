"""The `cabm` command: one module per subcommand, and nothing but options and messages in them."""
