"""The reports: HTML pages drawn from the tables of a job."""
