"""Results of many runs on one page; `lit_depth.tools.report` is the command."""
