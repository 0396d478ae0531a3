"""From labels to certificates and calibrations, on the command line: files or the store in, proofs and plots out."""
