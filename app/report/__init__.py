"""The report: which runs it covers, comparisons, tables, plots, sentences, as text, Markdown and one HTML page.

Front door: render.py. Imports no torch; the statistics themselves stand in app/stats.
"""
