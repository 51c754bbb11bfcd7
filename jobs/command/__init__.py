"""The console command ``safetydpo``, which has every job as a subcommand."""
