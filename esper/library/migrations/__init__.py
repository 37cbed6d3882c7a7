"""How a catalogue comes to have today's tables, step by step (alembic); `catalogue.py` applies what is missing."""
