"""The `cabm` command: options and messages, one module per subcommand."""
