"""The reports: HTML pages made of the tables that are written."""
