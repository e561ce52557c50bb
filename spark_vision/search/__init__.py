"""Search: from a table's column of vectors to the rows that are nearest to a text or a picture."""
