"""Results of others' engines in the same paired tests as our records; `lit_depth.tools.ingest` is the command."""
