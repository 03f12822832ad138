"""The report of a study: page.py writes it, figures.py says what is drawn, canvas.py how to add a figure."""
