"""Breaks artifacts, results, exporters, runners and timing: a check must find each fault."""
