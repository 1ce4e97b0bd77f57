"""What a search found, for people and programs: the schema of its result, tables, pictures and the page."""
