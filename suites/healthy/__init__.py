"""Healthy models of varied make, of language and others: no check complains of any."""
