"""The subcommands of `genssl-fast`, each with `add_arguments(parser)` and `run(arguments)`."""
