"""A comparison as a sentence, a table, a picture or a record."""
