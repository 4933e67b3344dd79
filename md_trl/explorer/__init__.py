"""A local page to read thoughts: filter questions, compare both paths and several models, see why a vote failed.

`sources.py` reads datasets and stores into a catalog, `results.py` joins results with the thoughts of their students,
`thought_files.py` holds texts, `catalog.py` keeps it on disk, `queries.py` asks it,
`explanation.py` says why a question has its type, `markup.py` and `charts.py` write HTML, `page.py` is the Gradio page
and `app.py` serves it on loopback. Everything before `page.py` works without Gradio.
"""
