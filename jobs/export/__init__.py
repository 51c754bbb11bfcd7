"""The job that writes a release in the forms that other programs want."""
