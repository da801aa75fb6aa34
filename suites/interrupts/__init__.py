"""Commands that write files, ended at every moment: what is left is never taken for whole."""
