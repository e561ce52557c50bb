"""A page in the browser that searches a table of vectors by texts and pictures."""
