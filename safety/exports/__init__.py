"""A release in the forms that other programs want: fused into its base, as a folder or as a file in original layout."""
