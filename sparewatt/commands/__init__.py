"""The subcommands, by what they are about; heavy imports stand inside their functions."""
