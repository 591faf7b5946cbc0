"""Training over the API: uploaded files, jobs on disk, and one process per running job."""
