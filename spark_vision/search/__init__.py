"""From the table's vectors to answers: exact search, vector indexes and what follows from them."""
