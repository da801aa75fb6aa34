"""Judges the installed ExecuTorch: does it carry what a native runner of Core ML models needs?"""
